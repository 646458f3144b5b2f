"""The loggers of a run that a command line asks for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anchorite.cli.options import LoggingOptions
    from anchorite.cli.progress import Display
    from anchorite.train import Listener


@contextmanager
def chosen_loggers(telling: LoggingOptions, display: Display, run: Path | None = None) -> Iterator[Listener]:
    """A listener that passes everything on to the loggers asked for, and to those that a run to go on with has had.

    What they hold open is closed on the way out. Raises InputError where one that was asked for needs a package that
    is missing; of one that was not asked for this is said, and the run goes on without it.
    """
    from anchorite.errors import InputError
    from anchorite.train import Event, RunStarted, TensorBoard, listeners, loggers
    from anchorite.train.events import ignore
    from anchorite.train.tensorboard import EVENTS_FOLDER

    tell = _to_stderr if telling.output.quiet or telling.output.json_lines else display.say
    has_events = run is not None and (run / EVENTS_FOLDER).is_dir()
    if not telling.tensorboard and not has_events:
        yield ignore
        return
    try:
        board = TensorBoard()
    except InputError as error:
        if telling.tensorboard:
            raise
        tell(f"{run}/{EVENTS_FOLDER} is not gone on with: {error}")
        yield ignore
        return

    def say_where(event: Event) -> None:
        if isinstance(event, RunStarted):
            place = shlex.quote(str(event.folder.parent))
            display.say(f"events: {event.folder / EVENTS_FOLDER}; to look at them: tensorboard --logdir {place}")

    with board:
        yield listeners(say_where, loggers(board, tell=tell))


def _to_stderr(text: str) -> None:
    print(f"anchorite: {text}", file=sys.stderr)
