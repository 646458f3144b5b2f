"""How far a pass over many images is: a bar on a terminal, a line at each quarter elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_FEWEST_TOLD = 200  # images: fewer are over before a line would be read


@contextmanager
def counting(verb: str) -> Iterator[Callable[[int, int], None]]:
    """What to call with (images done, images in all) while the work goes on; verb: "decoded"."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(verb, note="")

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, note=f"{done}/{total} images")
            if bar.disable and total >= _FEWEST_TOLD and 4 * done // total > 4 * (done - 1) // total:
                print(f"{verb} {done} of {total} images")

        yield tell
