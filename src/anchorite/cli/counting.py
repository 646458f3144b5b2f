"""How far a pass over many images is: a bar on a terminal, a line at each quarter elsewhere; and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_FEWEST_TOLD = 200  # images: fewer are over before a line would be read


@contextmanager
def counting(verb: str, shown: bool = True, in_logs: bool = True) -> Iterator[Callable[..., None]]:
    """What to call with (images done, images in all) while the work goes on; verb: "decoded".

    Work that goes on in another way is told by calling it with a third word in place of the verb.
    shown: False for nothing at all; in_logs: False for nothing where stdout is no terminal.
    """
    is_bar = shown and sys.stdout.isatty()
    are_lines = shown and in_logs and not is_bar
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=True, disable=not is_bar) as bar:
        task = bar.add_task(verb, note="")

        def tell(done: int, total: int, verb: str = verb) -> None:
            bar.update(task, description=verb, completed=done, total=total, note=f"{done}/{total} images")
            if are_lines and total >= _FEWEST_TOLD and 4 * done // total > 4 * (done - 1) // total:
                print(f"{verb} {done} of {total} images")

        yield tell


def hint(sentence: str, command: str) -> None:
    """The next command, for a person at a terminal; nothing in a log, where one looks for facts."""
    if sys.stdout.isatty():
        print(f"hint: {sentence}\n      {command}")
