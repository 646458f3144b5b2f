"""Ways to spoil bytes, and the values that break readers: for the fuzz tests and for `long_fuzz`.

All take a `random.Random`, so that a seed names a case.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

NUMBERS = (
    *("0", "1", "-1", "0.5", "1.0", "1.00005", "1.5", "2.7", "-0.0", "1e-9", "1e400", "-1e400", "1e-400", "nan", "inf"),
    *("-inf", "NaN", "Infinity", "1_0", "0x1", "+1", ".5", "5.", "1e", "--1", "00", "007", "9" * 19, "9" * 400),
    *("1" * 5000, "0." + "3" * 5000, "\uff11", "\u0661", "1e+308", "2147483648", "9223372036854775808", "True", "null"),
)
TEXTS = (
    *("", " ", "a", "cat", "no", "yes", "~", "null", "1", "..", "../..", "/etc/passwd", "a.png", "a\0b", "\x1b[2J"),
    *("\u2028", "\ufeff", "\ufeffcat", "\ud800", "\U0001f9b4", "\x85", "a" * 300, "x/" * 200, "<script>", "%s%n", "#"),
)
TOKENS = (
    *(text.encode("utf-8", "surrogatepass") for text in NUMBERS + TEXTS),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\t", b"\x0b", b"\xc0\xaf", b"\xed\xa0\x80"),
    *(b"[" * 40, b"{" * 40, b"[" * 2000, b'{"a":' * 1200, b"<a>" * 50, b"- " * 30, b"? ", b": ", b"---\n", b"...\n"),
    *(b"!!python/object/apply:os.system [id]", b"!!binary ", b"!x ", b"&a ", b"*a", b"<<: *a", b'"\\UFFFFFFFF"'),
    *(b"%YAML " + b"9" * 5000 + b".1\n---\n", b"%TAG ! tag:x\n", b"|\n", b">-\n", b"'", b'"', b"\\ud800", b"\\u0000"),
    *(
        b"<!DOCTYPE a [",
        b'<!ENTITY x SYSTEM "file:///etc/passwd">',
        b"&x;",
        b"&#0;",
        b"&#x110000;",
        b"]]>",
        b"<![CDATA[",
    ),
    *(b"<?xml version='1.0' encoding='utf-7'?>", b"<?pi", b"<!--", b"-->", b"</annotation>", b"<annotation/>"),
)
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")


def number(rng: Random) -> str:
    """A number as text: mostly one that fits into 0..1, else a trap."""
    return f"{rng.random():.{rng.randint(1, 17)}f}" if rng.random() < 0.95 else rng.choice(NUMBERS)


def spoilt(rng: Random, data: bytes) -> bytes:
    """The bytes after one to four mutations."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_MUTATIONS)(rng, data)
    return data


def maybe_spoilt(rng: Random, data: bytes) -> bytes:
    """The bytes, in two cases of five spoilt."""
    return spoilt(rng, data) if rng.random() < 0.4 else data


def _cut(rng: Random, data: bytes) -> tuple[bytes, bytes, bytes]:
    """The bytes in three parts, the middle one short most of the time."""
    start = rng.randint(0, len(data))
    longest = len(data) - start
    end = start + rng.randint(0, longest if rng.random() < 0.2 else min(longest, 12))
    return data[:start], data[start:end], data[end:]


def _flip_bit(rng: Random, data: bytes) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _set_byte(rng: Random, data: bytes) -> bytes:
    before, _, after = _cut(rng, data)
    return before + bytes([rng.choice((0, 9, 10, 13, 32, 34, 39, 44, 45, 46, 58, 60, 62, 92, 127, 255))]) + after[1:]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _delete(rng: Random, data: bytes) -> bytes:
    before, _, after = _cut(rng, data)
    return before + after


def _repeat(rng: Random, data: bytes) -> bytes:
    before, middle, after = _cut(rng, data)
    return before + middle * rng.choice((2, 3, 100)) + after


def _insert_token(rng: Random, data: bytes) -> bytes:
    before, _, after = _cut(rng, data)
    return before + rng.choice(TOKENS) + after


def _splice(rng: Random, data: bytes) -> bytes:
    """The beginning of the bytes, then some end of them."""
    return data[: rng.randint(0, len(data))] + data[rng.randint(0, len(data)) :]


def _replace_number(rng: Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    place = rng.choice(found)
    return data[: place.start()] + rng.choice(NUMBERS).encode("utf-8") + data[place.end() :]


def _move_line(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    line = lines.pop(rng.randrange(len(lines)))
    lines.insert(rng.randint(0, len(lines)), line)
    return b"\n".join(lines)


def _make_long(rng: Random, data: bytes) -> bytes:
    before, middle, after = _cut(rng, data)
    return before + (middle[:1] or b"7") * rng.choice((300, 20_000)) + after


_MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_flip_bit, _flip_bit, _set_byte, _truncate, _delete, _repeat, _insert_token, _insert_token, _splice),
    *(_replace_number, _replace_number, _move_line, _make_long),
)
