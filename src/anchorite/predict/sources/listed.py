"""Paths that another program prints: taken from stdin as they come."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Any

from anchorite.errors import AnchoriteError, InputError
from anchorite.predict.sources.paths import expand_sources, is_video_name
from anchorite.predict.sources.videos import read_video

_LONGEST_PATH = 65_536


def listed_items(
    descriptor: int, null_separated: bool, recursive: bool, every: int, stop: threading.Event
) -> Generator[Any, None, None]:
    """Images (paths), frames of videos, and an error for each path that stands for nothing, until the list ends.

    A path is meant as on the command line: a file, a folder or a pattern.
    """
    for name in _names(descriptor, b"\0" if null_separated else b"\n", stop):
        try:
            for path in expand_sources([name], recursive):
                if is_video_name(path):
                    yield from read_video(path, every, stop)
                else:
                    yield path
        except AnchoriteError as error:
            yield error


def stdin_descriptor() -> int:
    """InputError where there is no stdin."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError) as error:
        raise InputError("-: a list of paths is wanted on stdin, and there is none") from error


def _names(descriptor: int, separator: bytes, stop: threading.Event) -> Iterator[str]:
    rest = b""
    while not stop.is_set():
        if not _has_come(descriptor):
            continue
        part = os.read(descriptor, 65_536)
        *whole, rest = (rest + part).split(separator)
        if not part:
            whole = [rest]
        if len(rest) > _LONGEST_PATH:
            raise InputError("-: no path is as long as this line on stdin; print one a line, or use --null")
        for name in whole:
            name = name if separator == b"\0" else name.removesuffix(b"\r")
            if name:
                yield os.fsdecode(name)
        if not part:
            return


def _has_come(descriptor: int) -> bool:
    """Whether reading would not wait; asked for a moment, so that the list can be left at any time."""
    if sys.platform == "win32":  # where only sockets can be asked
        return True
    return bool(select.select([descriptor], [], [], 0.1)[0])
