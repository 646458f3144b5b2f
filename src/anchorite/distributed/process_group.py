"""Joining the processes that torchrun started, and saying who failed first when one of them does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from anchorite.distributed.world import SINGLE_PROCESS, World
from anchorite.errors import AnchoriteError, InputError, ReportedByPeer, WorkerError
from anchorite.interrupts import HeldInterrupts
from anchorite.launch import FROM_RANK

_LAST_WORDS_S = 3.0  # how long a rank may take to say that it still answers, or what happened to it
_POLL_S = 0.05
_START_S = 600.0  # how long ranks may start after each other
_OF_THE_NETWORK = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe", re.IGNORECASE)
_FIRST_FAULT = "first-fault"


@contextmanager
def init_process_group(timeout_s: float, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """The ranks that this process belongs to, connected for the length of the block; SINGLE_PROCESS where there is one.

    timeout_s: how long any rank may keep the others waiting. When one fails inside the block, the others end with
    WorkerError (exit code 6) that names it and its reason. What another rank has told, because it fails on all alike or
    is the cause of this one's end, raises ReportedByPeer.
    """
    world = _launched(environment)
    if not world.is_distributed:
        yield world
        return
    told = _connect(world, timeout_s)
    try:
        yield world
        _part(told, timeout_s)
    except BaseException as error:
        with HeldInterrupts():  # torchrun ends all when it sees one fail; the reason comes first
            end = _end_of(error, told, timeout_s)
        if end is None:
            error.add_note(FROM_RANK + str(world.rank))
            raise
        for note in (*getattr(error, "__notes__", ()), FROM_RANK + str(world.rank)):
            end.add_note(note)
        raise end from error
    finally:
        with suppress(Exception):  # it is gone with the process at the latest
            dist.destroy_process_group()


def _launched(environment: Mapping[str, str]) -> World:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "by torchrun: torchrun --nproc-per-node 2 -m anchorite train DATA"
        )
    return World(*(int(environment[name]) for name in names))


@dataclass(frozen=True)
class _Board:
    """What ranks leave for each other in the store of the rendezvous, which outlives them."""

    world: World
    store: Any

    def note(self, what: str, value: Any = None) -> None:
        """Leave something under this rank's number."""
        self.store.set(f"{what}/{self.world.rank}", json.dumps(value))

    def has(self, number: int, what: str) -> bool:
        """Whether a rank left something there."""
        return bool(self.store.check([f"{what}/{number}"]))

    def read(self, what: str, number: int) -> Any:
        """What a rank left there, None where it did not."""
        return json.loads(self.store.get(f"{what}/{number}")) if self.has(number, what) else None

    def note_fault(self, message: str, exit_code: int) -> dict[str, Any]:
        """The fault that was noted first, which is this one where there was none."""
        mine = json.dumps({"rank": self.world.rank, "message": message, "exit_code": exit_code})
        found: dict[str, Any] = json.loads(self.store.compare_set(_FIRST_FAULT, "", mine))
        return found

    def first_fault(self) -> dict[str, Any] | None:
        """The fault that was noted first, if any was."""
        return json.loads(self.store.get(_FIRST_FAULT)) if self.store.check([_FIRST_FAULT]) else None


def _connect(world: World, timeout_s: float) -> _Board:
    timeout = timedelta(seconds=timeout_s)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        # One store may serve all restarts, and must not tell of the ranks before.
        store = dist.PrefixStore(f"anchorite/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        # Connecting is bounded by the same time as everything after it, and starting is not: wait for all first.
        store.set(f"ready/{world.rank}", "")
        store.wait([f"ready/{number}" for number in range(world.world_size)], timedelta(seconds=_START_S))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.world_size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"rank {world.rank} of {world.world_size} could not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {_first_line(error)}"
        ) from error
    board = _Board(world, store)
    board.note("process", {"host": socket.gethostname(), "pid": os.getpid(), "parent": os.getppid()})
    return board


def _part(board: _Board, timeout_s: float) -> None:
    """Wait until all are done: a connection that is closed too early takes along what the other has not read yet."""
    with suppress(RuntimeError):  # the store is gone, or another rank, which is for the launcher to tell
        board.note("done")
        names = [f"done/{number}" for number in range(board.world.world_size)]
        board.store.wait(names, timedelta(seconds=timeout_s))


def _end_of(error: BaseException, board: _Board, timeout_s: float) -> AnchoriteError | None:
    """What to end with in place of an error; None for itself."""
    with suppress(RuntimeError):  # the store is gone: nothing can be learned or told
        if isinstance(error, Exception) and _is_of_the_network(error):
            return _fault_of_another(board, timeout_s)
        message, code = str(error) or type(error).__name__, getattr(error, "exit_code", 1)
        if isinstance(error, KeyboardInterrupt):
            message, code = "interrupted", 130
        first = board.note_fault(message, code)
        told_by_another = first["rank"] != board.world.rank and (first["message"], first["exit_code"]) == (
            message,
            code,
        )
        if told_by_another and not isinstance(error, KeyboardInterrupt):
            return ReportedByPeer(code)
    return None


def _is_of_the_network(error: Exception) -> bool:
    if isinstance(error, AnchoriteError):
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _OF_THE_NETWORK.search(str(error)) is not None
    )


def _fault_of_another(board: _Board, timeout_s: float) -> AnchoriteError:
    """Why the others cannot be reached: what one of them noted, else which of them does not answer any more."""
    board.note("answers")
    others = [number for number in range(board.world.world_size) if number != board.world.rank]
    _wait(lambda: bool(board.first_fault()) or all(_has_ended_or_answers(board, number) for number in others))
    first = board.first_fault()
    if first is None:
        silent = [number for number in others if not board.has(number, "answers")]
        told = "; ".join(_fate_of(number, board.read("process", number), timeout_s) for number in silent)
        mine = told or f"the ranks lost each other for {timeout_s:g} s, though all of them answer: see to the network"
        first = board.note_fault(mine, WorkerError.exit_code)
        if first["rank"] == board.world.rank:
            return WorkerError(mine)
    process = board.read("process", first["rank"]) or {}
    if process.get("host") == socket.gethostname() or board.world.local_rank > 0:
        return ReportedByPeer(WorkerError.exit_code)
    where = f"rank {first['rank']} on {process.get('host', 'another machine')}"
    return WorkerError(f"{where} failed first: {_first_line(first['message'])}")


def _has_ended_or_answers(board: _Board, number: int) -> bool:
    process = board.read("process", number)
    is_here = process is not None and process["host"] == socket.gethostname()
    return board.has(number, "answers") or (is_here and _state_of(process) in (None, "Z"))


def _fate_of(number: int, process: dict[str, Any] | None, timeout_s: float) -> str:
    """What became of a rank that does not answer; on this machine it is ended, so that nothing waits for it."""
    if process is None:
        return f"rank {number} never joined"
    where = f"rank {number} (process {process['pid']} on {process['host']})"
    if process["host"] != socket.gethostname():
        return f"{where} does not answer: it or its machine is gone, or has kept the others waiting {timeout_s:g} s"
    state = _state_of(process)
    if state in (None, "Z"):
        return f"{where} is gone: it was killed, by the system where memory ran out, or crashed"
    with suppress(OSError):
        os.kill(process["pid"], signal.SIGKILL)
    how = "stopped" if state in ("T", "t") else "not answering"
    return f"{where} was {how} for {timeout_s:g} s, and was ended"


def _state_of(process: Mapping[str, Any]) -> str | None:
    """The state of a process of this machine, as /proc has it; None where it is no more, or its number another's."""
    try:
        state, parent = Path(f"/proc/{process['pid']}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return state if int(parent) == process["parent"] else None


def _wait(until: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _LAST_WORDS_S
    while not until() and time.monotonic() < give_up:
        time.sleep(_POLL_S)


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
