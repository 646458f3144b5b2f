"""Reading the JSON object of a large file piece by piece: its lists a few thousand items at a time.

Python objects of a whole file take seven times its size. What is read, and what is refused, is as `read_json` has it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from anchorite.errors import InputError
from anchorite.reading import read_json, shorten

LEAST_BYTES = 16_000_000  # smaller files are read whole
_MOST_BYTES_AGAIN = 256_000_000  # of a file that is read whole after all, for the message that json has
_BLOCK_BYTES = 1 << 22
_SPACE = re.compile(r"[ \t\n\r]*")
_ITEM_END = re.compile(r"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")
_LONGEST_EXPONENT = 3  # letters behind a number that make it another only with the digit after them
_MOST_CUTS = 3  # places to cut a block at; of items with an object of their own in them every second may be within one
_LONGEST_TOKEN = 16  # letters by which text that is cut off may look wrong before its end


class Part(NamedTuple):
    """A member of the object. items None: `value` is all of it; else a list, of which these are the next items: at
    first none, so that a list is known by its beginning even where it is empty.
    """

    key: str
    value: Any = None
    items: list[Any] | None = None


class _SyntaxFault(Exception):
    """What is wrong, at the current place or, of the window's text, at another."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


def stream_json(path: Path, least_bytes: int = LEAST_BYTES) -> Iterator[Part]:
    """The members of a file's JSON object in their order, a key that stands twice twice.

    Raises InputError as file:line:column where it is none, which may be after some parts have been given.
    """
    try:
        is_large = path.stat().st_size >= least_bytes and path.is_file()
    except OSError:
        is_large = False  # read_json says why
    if not is_large:
        yield from _parts_of(read_json(path))
        return
    try:
        with path.open("rb") as file:
            window = _Window(file.read)
            try:
                yield from _parts(window)
            except (_SyntaxFault, UnicodeDecodeError, RecursionError, ValueError) as error:
                if path.stat().st_size <= _MOST_BYTES_AGAIN:
                    read_json(path)  # raises in its own words
                raise InputError(f"{path}:{window.place_of(error)}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parts_of(content: dict[str, Any]) -> Iterator[Part]:
    for key in list(content):
        value = content.pop(key)
        if isinstance(value, list):
            yield Part(key, items=[])
            yield Part(key, items=value)
        else:
            yield Part(key, value)


def _parts(window: _Window) -> Iterator[Part]:
    if window.next_sign() != "{":
        raise _SyntaxFault("a JSON object {...} is wanted", 0)
    window.at += 1
    sign = window.next_sign()
    while sign != "}":
        if sign != '"':
            raise _SyntaxFault("Expecting property name enclosed in double quotes", window.at)
        key = window.value()
        if window.next_sign() != ":":
            raise _SyntaxFault("Expecting ':' delimiter", window.at)
        window.at += 1
        if window.next_sign() == "[":
            window.at += 1
            yield Part(key, items=[])
            yield from (Part(key, items=items) for items in _items(window))
        else:
            yield Part(key, window.value())
        if (sign := window.next_sign()) == ",":
            window.at += 1
            sign = window.next_sign()
            if sign == "}":
                raise _SyntaxFault("Expecting property name enclosed in double quotes", window.at)
        elif sign != "}":
            raise _SyntaxFault("Expecting ',' delimiter", window.at)
    window.at += 1
    if window.next_sign():
        raise _SyntaxFault("Extra data", window.at)


def _items(window: _Window) -> Iterator[list[Any]]:
    if window.next_sign() == "]":
        window.at += 1
        return
    while True:
        yield window.several() or [window.value()]
        sign = window.next_sign()
        window.at += 1
        if sign == "]":
            return
        if sign != ",":
            raise _SyntaxFault("Expecting ',' delimiter", window.at - 1)
        window.next_sign()


class _Window:
    """The text at hand of a file, read on as it is used up; `at` is the current place in it."""

    def __init__(self, read: Any) -> None:
        self._read, self._decoder = read, codecs.getincrementaldecoder("utf-8-sig")()
        self._scanner = json.JSONDecoder()
        self._is_at_end = False
        self._lines, self._letters = 0, 0  # before the text: lines, and letters of the last one
        self.text, self.at = "", 0
        self._one_by_one_to = 0  # up to here items could not be told apart

    def more(self) -> bool:
        """Read on, as much again as is at hand; False at the end of the file."""
        if self._is_at_end:
            return False
        data = self._read(max(_BLOCK_BYTES, len(self.text) - self.at))
        added = self._decoder.decode(data, final=not data)
        if not data:  # places in the text stay what they are
            self._is_at_end = True
            return False
        self._lines, self._letters = self._lines_and_letters(self.at)
        self._one_by_one_to -= self.at
        self.text, self.at = self.text[self.at :] + added, 0
        return True

    def next_sign(self) -> str:
        """The next letter that is no space, which becomes the current place; none at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The value that begins at the current place."""
        while True:
            try:
                value, end = self._scanner.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                is_cut_off = error.pos >= len(self.text) - _LONGEST_TOKEN or error.msg.startswith("Unterminated")
                if not (is_cut_off and self.more()):
                    raise _SyntaxFault(error.msg, error.pos) from error
                continue
            # A number may go on behind what is at hand, which "1." or "1e+" does not show by itself.
            if len(self.text) - end >= _LONGEST_EXPONENT or not self.more():
                self.at = end
                return value

    def several(self) -> list[Any] | None:
        """As many objects of a list as are at hand, parsed at once; None where they cannot be told apart so easily.

        Text that parses as items, cut where a comma follows, is those items: no other reading of JSON has the same
        beginning.
        """
        if self.at < self._one_by_one_to:
            return None
        if len(self.text) - self.at < _BLOCK_BYTES // 4:
            self.more()
        if self.text[self.at : self.at + 1] != "{":
            return None
        ends = [found.start() + 1 for found in _ITEM_END.finditer(self.text, self._near_end())]
        for end in reversed(ends[-_MOST_CUTS:]):
            with suppress(json.JSONDecodeError):
                items = json.loads(f"[{self.text[self.at : end]}]")
                self.at = end
                assert isinstance(items, list)
                return items
        # All cuts were within items, or the list ends before, or something is wrong. Parsing the rest of it again
        # after every item would take time by the square of its length.
        self._one_by_one_to = ends[-1] if ends else self._near_end()
        return None

    def _near_end(self) -> int:
        return max(self.at, len(self.text) - _BLOCK_BYTES // 16)

    def place_of(self, error: Exception) -> str:
        """Line, column and what is wrong there, as `read_json` has it."""
        lines, letters = self._lines_and_letters(error.at) if isinstance(error, _SyntaxFault) else (0, 0)
        try:  # a file that is no text is said to be that
            while not isinstance(error, UnicodeDecodeError) and self.more():
                self.at = len(self.text)
        except UnicodeDecodeError as found:
            error = found
        if isinstance(error, UnicodeDecodeError):
            line = self._lines + self.text.count("\n") + error.object.count(b"\n", 0, error.start) + 1
            return f"{line}: not UTF-8 text (byte {error.object[error.start]:#04x})"
        if isinstance(error, _SyntaxFault):
            return f"{lines + 1}:{letters + 1}: not valid JSON: {error.reason}"
        return f" not readable as JSON: {shorten(str(error))}"

    def _lines_and_letters(self, at: int) -> tuple[int, int]:
        """How many lines end before a place of the text, and how many letters of its line stand before it."""
        newline = self.text.rfind("\n", 0, at)
        letters = self._letters + at if newline < 0 else at - newline - 1
        return self._lines + self.text.count("\n", 0, at), letters
