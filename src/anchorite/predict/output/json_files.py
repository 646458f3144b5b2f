"""JSON written as it comes, so that no result has to stay in memory: lines, and long lists in one file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from anchorite.errors import StorageError
from anchorite.files import move_into_place


def rounded(entry: dict[str, Any]) -> dict[str, Any]:
    """Coordinates to a thousandth of a pixel, scores to a millionth: more is noise of float32."""
    for found in entry["detections"]:
        found["box_xyxy"] = [round(edge, 3) for edge in found["box_xyxy"]]
        found["score"] = round(found["score"], 6)
    return entry


class JsonLines:
    """One JSON object a line, each there for readers as soon as it is written; a full disk leaves no half of one."""

    def __init__(self, path: Path) -> None:
        self._file = _GrowingFile(path)

    def add(self, entry: dict[str, Any]) -> None:
        """Write a line."""
        self._file.append(_bytes(entry, indent=None) + b"\n")

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


class JsonDocument:
    """A JSON file that holds one long list: written beside its place as it comes, and moved there when it is whole.

    path: its place; key: the list's; None for a file that is nothing but the list. before: what stands before the
    list in its object.
    """

    def __init__(self, path: Path, key: str | None = None, before: dict[str, Any] | None = None) -> None:
        self.path, self._is_empty = path, True
        self._margin = b"  " if key else b" "
        self._spool = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file = _GrowingFile(self._spool)
        opening = b"["
        if key is not None:
            fields = [_field(name, value) for name, value in (before or {}).items()]
            opening = b"{\n" + b",\n".join([*fields, b" " + _bytes(key, None) + b": ["])
        self._has_key = key is not None
        self._file.append(opening)

    def add(self, entry: Any) -> None:
        """Write an entry of the list."""
        text = b"\n" + _indented(_bytes(entry, 1), self._margin)
        self._file.append(text if self._is_empty else b"," + text)
        self._is_empty = False

    def finish(self, after: dict[str, Any] | None = None) -> None:
        """End the list, write what stands after it, and move the file to its place."""
        closing = b"]" if self._is_empty else b"\n" + self._margin[1:] + b"]"
        if self._has_key:
            closing += b"".join(b",\n" + _field(name, value) for name, value in (after or {}).items()) + b"\n}"
        try:
            self._file.append(closing + b"\n")
            self._file.close()
            move_into_place(self._spool, self.path)
        finally:
            self._file.close()
            with suppress(OSError):
                self._spool.unlink(missing_ok=True)


class _GrowingFile:
    """A new file that grows by whole pieces: one that does not fit is taken back."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise self._refused(error) from error

    def append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise self._refused(error) from error
        self._size += len(piece)

    def close(self) -> None:
        self._file.close()

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._path}: cannot be written: {error.strerror or error}. "
            "Free some space or choose another folder with --out"
        )


def _field(name: str, value: Any) -> bytes:
    """A key and its value, as they stand in an object that is indented by 1."""
    return b" " + _bytes(name, None) + b": " + _indented(_bytes(value, 1), b" ").lstrip()


def _bytes(value: Any, indent: int | None) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Bytes of a file name that are no text become \\udc.., which is how JSON writes them.
    return text.encode("utf-8", "backslashreplace")


def _indented(text: bytes, margin: bytes) -> bytes:
    """Every line moved right; strings of JSON have no line ends of their own."""
    return margin + text.replace(b"\n", b"\n" + margin)
