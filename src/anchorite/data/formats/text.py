"""What label files are made of: numbers in plain ASCII only, and names of classes.

Python's own int() and float() take `1_0`, full-width digits and `nan`; a label file that holds these is broken.
"""

from __future__ import annotations

import math
import re
from unicodedata import category

_INTEGER = re.compile(r"[0-9]{1,18}")
# Only one way to match each text, so that a megabyte of digits costs no more than reading it.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


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
