"""`init_process_group`: joining the processes that torchrun started, and one message when one of them fails."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

from anchorite.distributed.world import SINGLE_PROCESS, World
from anchorite.errors import AnchoriteError, InputError, ReportedByPeer, WorkerError
from anchorite.interrupts import HeldInterrupts
from anchorite.launch import FROM_RANK

_START_S = 600.0  # how long after each other processes may start
_NETWORK_ERROR = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|broken pipe", re.IGNORECASE)
_FIRST_FAULT = "first-fault"


@contextmanager
def init_process_group(timeout_s: float, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """The process group of this process, connected for the length of the block; SINGLE_PROCESS without torchrun.

    timeout_s: how long a rank may keep the others waiting. When one rank fails inside the block, all end. Its own error
    passes on, with a note of its rank; a rank that only loses its connection to the others raises WorkerError (exit
    code 6). An error that another rank has reported already, the same one or the cause of this one, is raised as
    ReportedByPeer. Unexpected exceptions go to torchrun's error file, by which it names the rank that failed first.
    """
    world = _read_world(environment)
    if not world.is_distributed:
        yield world
        return
    store = _connect(world, timeout_s)
    try:
        yield world
        _wait_for_all(store, world, timeout_s)
    except BaseException as error:
        with HeldInterrupts():  # torchrun ends all processes when one has failed; the reason is reported first
            replacement = _replacement(error, store, world.rank, timeout_s)
        notes = (*getattr(error, "__notes__", ()), f"{FROM_RANK}{world.rank}")
        if replacement is None:
            error.add_note(notes[-1])
            raise
        for note in notes:
            replacement.add_note(note)
        raise replacement from error
    finally:
        with suppress(Exception):  # the process is about to end anyway
            dist.destroy_process_group()


def _read_world(environment: Mapping[str, str]) -> World:
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
        # Connecting is limited to timeout_s like every operation after it; starting is not, so wait for all first.
        store.set(f"ready/{world.rank}", "")
        store.wait([f"ready/{rank}" for rank in range(world.world_size)], timedelta(seconds=_START_S))
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.world_size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"rank {world.rank} of {world.world_size} could not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {_first_line(error)}"
        ) from error
    return store


def _wait_for_all(store: Any, world: World, timeout_s: float) -> None:
    """Wait until every rank is done: closing a connection early would discard data that the other has yet to read."""
    with suppress(RuntimeError):  # the store or a rank is gone, which torchrun reports
        store.set(f"done/{world.rank}", "")
        store.wait([f"done/{rank}" for rank in range(world.world_size)], timedelta(seconds=timeout_s))


def _replacement(error: BaseException, store: Any, rank: int, timeout_s: float) -> AnchoriteError | None:
    """The error to raise in place of `error`, None for itself; the first fault of all ranks is left in the store."""
    lost = _is_network_error(error)
    if lost:
        what = f"did not answer for {timeout_s:g} s (rank_timeout_s)" if "timed out" in str(error).lower() else "ended"
        own: BaseException = WorkerError(
            f"another process of the run {what}: it was killed, ran out of memory, crashed or hangs, or its machine "
            f"cannot be reached. torchrun's report names the processes that ended. ({_first_line(error)})"
        )
    else:
        own = error
        if not isinstance(error, AnchoriteError | KeyboardInterrupt):
            ErrorHandler().record_exception(error)
    code: int = 130 if isinstance(own, KeyboardInterrupt) else getattr(own, "exit_code", 1)
    fault = [str(own) or type(own).__name__, code]
    try:
        first_rank, *first = json.loads(store.compare_set(_FIRST_FAULT, "", json.dumps([rank, *fault])))
    except RuntimeError:  # the store is gone as well
        first_rank, first = rank, fault
    if first_rank != rank and not isinstance(error, KeyboardInterrupt) and (lost or first == fault):
        return ReportedByPeer(WorkerError.exit_code if lost else code)
    return own if lost and isinstance(own, WorkerError) else None


def _is_network_error(error: BaseException) -> bool:
    if isinstance(error, AnchoriteError):
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _NETWORK_ERROR.search(str(error)) is not None
    )


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
