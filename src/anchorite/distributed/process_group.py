"""`init_process_group`: joining the processes that torchrun started, and one message when one of them fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

from anchorite.distributed.world import SINGLE_PROCESS, World
from anchorite.errors import FROM_RANK, AnchoriteError, InputError, ReportedByPeer, WorkerError
from anchorite.interrupts import HeldInterrupts

_START_S = 600.0  # how long after each other processes may start
_ANSWER_S = 3.0  # how long a rank may take to say that it lost its connections, too
_NETWORK_ERROR = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe", re.IGNORECASE)
_FIRST_FAULT = "first-fault"
_ENDED = (None, "Z")  # states of a process that runs no more


@contextmanager
def init_process_group(timeout_s: float) -> Iterator[World]:
    """The process group of this process, connected for the length of the block; SINGLE_PROCESS without torchrun.

    timeout_s: how long a rank may keep the others waiting. When one rank fails inside the block, all end. Its own error
    passes on, with a note of its rank; a rank that only loses its connection to the others raises WorkerError (exit
    code 6) naming those that do not answer. An error that another rank has reported already, the same one or the cause
    of this one, is raised as ReportedByPeer. Unexpected exceptions go to torchrun's error file as well.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "by torchrun: torchrun --nproc-per-node 2 -m anchorite train DATA"
        )
    world = World(*(int(os.environ[name]) for name in names))
    store = _connect(world, timeout_s)
    try:
        yield world
        # Closing a connection early would discard data that another rank has yet to read.
        with suppress(RuntimeError):  # the store or a rank is gone, which torchrun reports
            store.set(f"done/{world.rank}", "")
            store.wait([f"done/{rank}" for rank in range(world.world_size)], timedelta(seconds=timeout_s))
    except BaseException as error:
        error.add_note(f"{FROM_RANK}{world.rank}")
        with HeldInterrupts():  # torchrun ends all processes when one has failed; the reason is reported instead
            replacement = _replacement(error, store, world, timeout_s)
            if replacement is None:
                raise
            for note in error.__notes__:
                replacement.add_note(note)
            raise replacement from error
    finally:
        with suppress(Exception):  # the process is about to end anyway
            dist.destroy_process_group()


def _connect(world: World, timeout_s: float) -> Any:
    """Connect all processes; the key-value store of the rendezvous, which torchrun keeps when a process ends."""
    timeout = timedelta(seconds=timeout_s)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun may serve all restarts from one store; entries of earlier attempts must not be read.
        store = dist.PrefixStore(f"anchorite/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        store.set(f"process/{world.rank}", json.dumps([socket.gethostname(), os.getpid()]))
        # Connecting is limited to timeout_s like every operation after it; starting is not, so wait for all first.
        store.set(f"ready/{world.rank}", "")
        store.wait([f"ready/{rank}" for rank in range(world.world_size)], timedelta(seconds=_START_S))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.world_size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        place, first_line = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", str(error).partition("\n")[0]
        raise WorkerError(
            f"rank {world.rank} of {world.world_size} could not reach the others at {place}: {first_line}"
        ) from error
    return store


def _replacement(error: BaseException, store: Any, world: World, timeout_s: float) -> AnchoriteError | None:
    """The error to raise in place of `error`, None for itself; the first fault of all ranks is left in the store."""
    lost = None
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _NETWORK_ERROR.search(str(error))):
        silent = ""
        with suppress(RuntimeError):  # the store is gone as well
            silent = _silent_ranks(store, world, timeout_s)
        silent = silent or "another process of the run ended, or its machine cannot be reached"
        first_line = str(error).partition("\n")[0] or type(error).__name__
        lost = WorkerError(f"{silent} ({first_line})")
    elif not isinstance(error, AnchoriteError | KeyboardInterrupt):
        ErrorHandler().record_exception(error)
    own = lost or error
    code: int = 130 if isinstance(own, KeyboardInterrupt) else getattr(own, "exit_code", 1)
    first = fault = [world.rank, str(own) or type(own).__name__, code]
    with suppress(RuntimeError):  # the store is gone as well
        first = json.loads(store.compare_set(_FIRST_FAULT, "", json.dumps(fault)))
    is_told = first[0] != world.rank and (lost is not None or first[1:] == fault[1:])
    if is_told and not isinstance(error, KeyboardInterrupt):
        return ReportedByPeer(code)
    return lost


def _silent_ranks(store: Any, world: World, timeout_s: float) -> str:
    """The ranks that report neither a fault nor a lost connection, and what became of them; empty where there is none.

    Those of this machine are killed: torchrun would wait 30 s for a process that is stopped or hangs.
    """
    store.set(f"lost/{world.rank}", "")
    host = socket.gethostname()
    silent = {rank: json.loads(store.get(f"process/{rank}")) for rank in range(world.world_size) if rank != world.rank}
    give_up = time.monotonic() + _ANSWER_S
    # Without delay where it can be known: once a process has ended, torchrun is about to end this one as well.
    while time.monotonic() < give_up and not store.check([_FIRST_FAULT]):
        silent = {rank: process for rank, process in silent.items() if not store.check([f"lost/{rank}"])}
        if all(its_host == host and _state_of_sibling(pid) in _ENDED for its_host, pid in silent.values()):
            break
        time.sleep(0.05)
    fates = []
    for rank, (its_host, pid) in silent.items() if not store.check([_FIRST_FAULT]) else ():
        state = _state_of_sibling(pid) if its_host == host else None
        if its_host != host:
            fate = f"did not answer for {timeout_s:g} s (rank_timeout_s): it hangs, or its machine cannot be reached"
        elif state in _ENDED:
            fate = "is gone: it was killed, by the system where memory ran out, or crashed"
        else:
            fate = f"was {'stopped' if state in ('T', 't') else 'not answering'} for {timeout_s:g} s, and was ended"
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        fates.append(f"rank {rank} (process {pid} on {its_host}) {fate}")
    return "; ".join(fates)


def _state_of_sibling(process: int) -> str | None:
    """The state letter in /proc of a process that the same torchrun started; None where there is no such process."""
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return state if int(parent) == os.getppid() else None
