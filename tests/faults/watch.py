"""What a command must not do: change the user's files, read others, start programs, unpickle."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchorite.cli import run

_SPAWNING = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
)
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "http.client.connect")


def fingerprint(folder: Path) -> dict[str, str]:
    """Every name below a folder with what it is: a hash of the content, where a link points, or the kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[str(path)] = f"-> {path.readlink()}"
        elif stat.S_ISREG(mode):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = f"{stat.S_IFMT(mode):o}"
    return found


def shared_memory() -> set[str]:
    """The names of all shared memory, but not folders there, nor a browser's: other tests run at the same time."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.is_file() and "chromium" not in path.name.lower()}


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Holds the block to leave every name and content below a folder as it was."""
    before = fingerprint(folder)
    yield
    assert fingerprint(folder) == before


@dataclass
class Deeds:
    """What happened in a `watched` block. opened: files opened, links resolved; spawned, network: events."""

    opened: set[str] = field(default_factory=set)
    spawned: list[str] = field(default_factory=list)
    network: list[str] = field(default_factory=list)
    unpickled: set[str] = field(default_factory=set)

    def below(self, folder: Path) -> set[str]:
        """The files that were opened below a folder."""
        home = os.path.realpath(folder)
        return {path for path in self.opened if path == home or path.startswith(home + os.sep)}


_watching: list[Deeds] = []
_installed: list[bool] = []


@contextmanager
def watched() -> Iterator[Deeds]:
    """Notes what the block does, in all threads of this process."""
    if not _installed:
        sys.addaudithook(_note)
        _installed.append(True)
    deeds = Deeds()
    _watching.append(deeds)
    try:
        yield deeds
    finally:
        _watching.clear()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    deeds = _watching[0]
    if event == "open" and isinstance(arguments[0], str | bytes):
        deeds.opened.add(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in _SPAWNING:
        deeds.spawned.append(f"{event} {arguments}")
    elif event in _NETWORK:
        deeds.network.append(f"{event} {arguments}")
    elif event == "pickle.find_class":
        deeds.unpickled.add(".".join(arguments))


def measure(commands: list[list[str]]) -> None:
    """Run commands and print for each its exit code, seconds of the processor and the megabytes that it added."""

    def peak_mb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    measured = []
    for words in commands:
        before, begun = peak_mb(), time.process_time()
        code = run(words)
        measured.append([code, time.process_time() - begun, peak_mb() - before])
    print(json.dumps(measured))
