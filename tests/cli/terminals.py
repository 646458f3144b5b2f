"""Commands in a pseudo-terminal of a given size, and what a person sees of what they write into it."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
import time
from collections.abc import Callable

from tests.cli.commands import started

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class SeenScreen:
    """The lines of a terminal, history included, after what was written into it; knows what rich writes."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[str] = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> SeenScreen:
        """Write into it; asserts that no sequence comes which it does not know."""
        at = 0
        while at < len(text):
            found = _SEQUENCE.match(text, at)
            if found:
                self._obey(found[1], found[2])
                at = found.end()
                continue
            self._put(text[at])
            at += 1
        return self

    def shown(self) -> list[str]:
        """The lines without what is blank at their ends."""
        return [line.rstrip() for line in self.lines]

    def _obey(self, number: str, letter: str) -> None:
        if letter == "A":
            self.row = max(0, self.row - int(number or 1))
        elif letter == "K":
            assert number == "2"
            self.lines[self.row] = ""
        else:
            assert letter == "m" or (letter in "hl" and number == "?25"), (number, letter)

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self._down()
        else:
            if self.column == self.width:
                self.column = 0
                self._down()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


def in_terminal(
    *words: str,
    columns: int = 80,
    rows: int = 24,
    interrupt_when: Callable[[str], bool] | None = None,
    cwd: str | None = None,
    **environment: str,
) -> tuple[str, int]:
    """All that a command wrote into a terminal, and its exit code; interrupted, as by Ctrl-C, when told to."""
    dropped = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    settings = {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | environment
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (rows, columns))
    command = started(*words, stdin=terminal, stdout=terminal, stderr=terminal, cwd=cwd, env=inherited | settings)
    os.close(terminal)
    written = bytearray()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            part = os.read(master, 65536)
        except OSError:  # EIO: the command has ended
            break
        if not part:
            break
        written += part
        if interrupt_when is not None and interrupt_when(written.decode("utf-8", "replace")):
            interrupt_when = None
            os.write(master, b"\x03")
    os.close(master)
    return written.decode("utf-8"), command.wait()
