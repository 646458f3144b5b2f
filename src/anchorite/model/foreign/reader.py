"""The process that reads a checkpoint: the file is its standard input, a line of JSON its standard output.

Started by `sandbox`, with the standard library alone. It limits its own memory and time before it looks at the file.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import BinaryIO

from anchorite.errors import AnchoriteError, UnsafeFileError
from anchorite.model.foreign.archive import MAX_PICKLE_BYTES, Archive
from anchorite.model.foreign.contents import described
from anchorite.model.foreign.machine import unpickled

MEMORY_LIMIT_BYTES = 512 << 20
"""Address space of the process, of which Python itself takes a few dozen MB."""
SECONDS_LIMIT = 60
"""Processor time of the process; size n takes a tenth of a second."""
MAX_ANSWER_BYTES = 16 << 20


def main() -> None:
    """Read the checkpoint that is the standard input; print what it holds, or why it is refused."""
    _limit_itself()
    with io.BufferedReader(io.FileIO(0, closefd=False)) as file:
        text = answer(file)
    sys.stdout.write(text)
    sys.stdout.flush()
    os._exit(0)  # without taking apart, object by object, what a hostile file had put together


def answer(file: BinaryIO) -> str:
    """What the file holds as `sandbox` reads it, in JSON, or why it is refused."""
    try:
        archive = Archive(file)
        found = described(unpickled(archive.read("data.pkl", MAX_PICKLE_BYTES), archive))
        text = json.dumps({"found": found})
        if len(text) <= MAX_ANSWER_BYTES:
            return text
        too_much = f"takes more than {MAX_ANSWER_BYTES >> 20} MB to list what it holds; nothing of it was run"
    except AnchoriteError as error:
        return json.dumps({"refused": type(error).__name__, "message": str(error)})
    except MemoryError:
        too_much = f"takes more than {MEMORY_LIMIT_BYTES >> 20} MB of memory to read; nothing of it was run"
    except RecursionError:
        too_much = "is nested too deeply to read; nothing of it was run"
    return json.dumps({"refused": UnsafeFileError.__name__, "message": too_much})


def _limit_itself() -> None:
    try:
        import resource
    except ImportError:  # Windows, where the limits on steps and sizes must do
        return
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_LIMIT_BYTES),
        (resource.RLIMIT_CPU, SECONDS_LIMIT),
        (resource.RLIMIT_FSIZE, 0),  # no file of any length can be written
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (allowed, allowed))
        except (ValueError, OSError):  # a system that does not know this limit
            continue
