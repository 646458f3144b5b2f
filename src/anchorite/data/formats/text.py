"""Reading label text: whole files up to a limit, and numbers in plain ASCII only.

Python's own int() and float() take `1_0`, full-width digits and `nan`; a label file that holds these is broken.
"""

from __future__ import annotations

import math
import re
import stat
from pathlib import Path
from unicodedata import category

from anchorite.errors import InputError

_INTEGER = re.compile(r"[0-9]{1,18}")
# Only one way to match each text, so that a megabyte of digits costs no more than reading it.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`; InputError naming the path and the reason otherwise."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or device would block for ever
            raise InputError(f"{path}: not a regular file")
        if status.st_size > max_bytes:
            raise InputError(
                f"{path}: {status.st_size / 1e6:.1f} MB, more than the {max_bytes / 1e6:.0f} MB such a file may have"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: the file does not exist") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def decode_utf8(data: bytes, path: Path) -> str:
    """UTF-8 text, with or without a byte order mark; InputError naming the line of the first bad byte otherwise."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x})") from error


def plain_integer(text: str) -> int | None:
    """A whole number written in ASCII digits alone, or None."""
    return int(text) if _INTEGER.fullmatch(text) else None


def plain_number(text: str) -> float | None:
    """A finite decimal number written in plain ASCII, or None."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def is_class_name(name: object) -> bool:
    """Whether this can name a class: a text that is not blank and holds no control character or half a character."""
    return isinstance(name, str) and bool(name.strip()) and not any(category(c) in ("Cc", "Cs") for c in name)


def printable(words: str, max_length: int = 1000) -> str:
    """Words of a message, what is not printable escaped, and cut to a length: file names may come from strangers."""
    if not words.isprintable():
        words = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)
    return words if len(words) <= max_length else words[: max_length - 3] + "..."


def shorten(value: object, max_length: int = 60) -> str:
    """A value as shown in a message: printable ASCII, and cut to a length."""
    text = ascii(value)
    return text if len(text) <= max_length else text[: max_length - 3] + "..."
