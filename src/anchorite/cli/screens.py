"""Where `train` shows what happens: a log that anything can read, or a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from anchorite.cli.epoch_table import LOG_HEADER, EpochLine, EpochTable, RunningEpoch, log_line

_FEWEST_TOLD = 200  # images: decoding fewer is over before a line would be read
_MOST_ROWS = 25  # of a table before its header is shown again, fewer where the terminal is lower
_REDRAWS_PER_SECOND = 4


class Screen(Protocol):
    """Takes what is to be shown; each decides what of it, and how."""

    def __enter__(self) -> Screen: ...

    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None:
        """One line on how it goes."""

    def result(self, text: str) -> None:
        """One line of what came of it."""

    def hint(self, sentence: str, command: str | None = None) -> None:
        """For somebody who does this for the first time: a sentence, and the command that it leads to."""

    def decoding(self, split: str, num_done: int, num_images: int) -> None:
        """How far the decoding of a split is."""

    def start_table(self, num_epochs: int) -> None:
        """Once, before the first epoch."""

    def running(self, epoch: RunningEpoch) -> None:
        """How far an epoch is; soon replaced."""

    def epoch(self, line: EpochLine) -> None:
        """An epoch that is over."""

    def end_table(self) -> None:
        """Once, after the last epoch."""


class Log:
    """Plain lines, for a file or a pipe: no colours, nothing that is replaced later. quiet: only what came of it."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def say(self, text: str) -> None:
        """Print it; not by rich, which would end the process where nobody reads its output any more."""
        if not self.quiet:
            print(text)

    def result(self, text: str) -> None:
        """Print it in any case."""
        print(text)

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Nothing: who reads a log has asked for facts."""

    def decoding(self, split: str, num_done: int, num_images: int) -> None:
        """A line at each quarter, where there are enough images to wait for."""
        if num_images >= _FEWEST_TOLD and 4 * num_done // num_images > 4 * (num_done - 1) // num_images:
            self.say(f"decoded {num_done} of {num_images} {split} images")

    def start_table(self, num_epochs: int) -> None:
        """The header, once: a log is searched rather than scrolled."""
        self.say(LOG_HEADER)

    def running(self, epoch: RunningEpoch) -> None:
        """Nothing: the epoch's line comes soon enough."""

    def epoch(self, line: EpochLine) -> None:
        """One line."""
        self.say(log_line(line))

    def end_table(self) -> None:
        """Nothing: a log's table has no end."""


class Terminal:
    """Finished epochs as rows that scroll away as any output does, and below them the one that is going on.

    Only the lines at the bottom are ever redrawn, so that hundreds of epochs cost no more than one and stay in the
    terminal's history. What a colour says, a word says too.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, emoji=False)
        self._table = EpochTable(self.console.encoding)
        self._draw: Callable[[int], list[Text]] | None = None  # the lines at the bottom, for a width
        self._live = Live(
            console=self.console,
            get_renderable=self._bottom,
            refresh_per_second=_REDRAWS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._rows_since_header = 0
        self._columns: tuple[str, ...] = ()
        self._best: EpochLine | None = None

    def __enter__(self) -> Terminal:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._draw = None
        self._live.stop()

    def say(self, text: str) -> None:
        """One line above the bottom."""
        self.console.print(text, markup=False)

    def result(self, text: str) -> None:
        """One line, as any other."""
        self.say(text)

    def hint(self, sentence: str, command: str | None = None) -> None:
        """Begins with the word, so that nobody takes it for a fact of the run; the command can be copied whole."""
        self.console.print(Text(f"hint: {sentence}", style="italic"), soft_wrap=False)
        if command is not None:
            self.console.print(f"      {command}", markup=False, style="bold")

    def decoding(self, split: str, num_done: int, num_images: int) -> None:
        """A bar at the bottom."""
        self._draw = None
        if num_done < num_images:
            note = f"{num_done}/{num_images} images"
            self._draw = lambda width: [self._table.bar_line(f"decoding {split}", num_done / num_images, note, width)]

    def start_table(self, num_epochs: int) -> None:
        """Learn how long the run is; the header comes with the first epoch."""
        self._table = EpochTable(self.console.encoding, num_epochs)
        self._rows_since_header = 0
        self._columns = ()

    def running(self, epoch: RunningEpoch) -> None:
        """The bottom: the epoch under the columns of the table, and the best so far."""
        if self._header_is_due():
            self._header()

        def draw(width: int) -> list[Text]:
            lines = [self._table.running(epoch, width)]
            if self._best is not None:
                lines.append(
                    Text(f"best so far: mAP {self._best.map_all:.4f} at epoch {self._best.epoch}", style="dim")
                )
            return lines

        self._draw = draw

    def epoch(self, line: EpochLine) -> None:
        """A row that stays."""
        self._draw = None
        if line.is_best:
            self._best = line
        if self._header_is_due():
            self._header()
        self.console.print(self._table.row(line, self.console.width))
        self._rows_since_header += 1

    def end_table(self) -> None:
        """Nothing below the last row."""
        self._draw = None

    def _header_is_due(self) -> bool:
        columns = self._table.columns(self.console.width)
        most = max(5, min(_MOST_ROWS, self.console.height - 6))
        return columns != self._columns or self._rows_since_header >= most

    def _header(self) -> None:
        self.console.print(self._table.header(self.console.width))
        self._columns, self._rows_since_header = self._table.columns(self.console.width), 0

    def _bottom(self) -> RenderableType:
        lines = self._draw(self.console.width) if self._draw is not None else []
        return Text("\n", no_wrap=True, overflow="crop").join(lines)


def choose_screen(quiet: bool = False) -> Screen:
    """Quiet if asked for, else by what stdout is."""
    return Terminal() if sys.stdout.isatty() and not quiet else Log(quiet)
