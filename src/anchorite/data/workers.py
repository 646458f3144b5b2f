"""Worker processes that draw batches into memory they share with this process.

Each worker has a pipe for orders and replies and a few slots of shared memory for the pixels, so no file descriptors
travel and nothing large is copied into a pipe. Orders go round in turn and are answered in turn: the batches come in
the order asked for, whichever worker is faster. A dead worker is noticed at once, a hung one after `timeout_s`.

Not a torch DataLoader: with two workers at 320 px this pool delivers 1.44 times as many images a second (docs/LOG.md,
2026-11-28), names the sample that a killed or hung worker was drawing, and ends a stopped worker, which a DataLoader
leaves alive so that the interpreter never exits. It does not need /dev/shm, 64 MB in many containers, either.

Workers are forked where the system can fork: they start in milliseconds and need no guard in the user's script; what
they run after the fork is NumPy and single-threaded OpenCV, so neither the thread pools nor the CUDA context that a
fork cannot carry over are touched. A lock that another thread held at the fork is held for ever in the worker, though:
OpenCV takes one even in a thread that has ended but for its clean-up. So each worker tries out what it needs before it
says that it is ready, and one that stays silent is replaced.

Legend: B images, S side of the canvas in pixels, T targets of a batch.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.samples import Samples
from anchorite.data.store import SharedBytes
from anchorite.errors import WorkerError

POLL_S = 0.5  # how soon a waiting thread sees that it shall stop
PARENT_POLL_S = 5.0  # how soon an idle worker sees that its parent is gone
_PR_SET_PDEATHSIG = 1
CLOSE_S = 2.0  # how long a worker gets to leave by itself
FIRST_PATIENCE_S = 2.0  # how long a forked worker gets to be ready; each that takes its place gets twice as long


class Key(Protocol):
    """What names a sample; it can be pickled."""

    @property
    def record_index(self) -> int: ...


class Drawn(NamedTuple):
    """A batch without its tensors: pixels (B, S, S, 3) uint8, rows (T, 6) float32, and the keys of its samples."""

    pixels: NDArray[np.uint8]
    rows: NDArray[np.float32]
    keys: Sequence[Key]


@dataclass(frozen=True)
class Failure:
    """What a worker sends in place of a batch: the error's message, its traceback and the sample's image."""

    message: str
    details: str
    path: Path

    def error(self) -> WorkerError:
        """The failure as an error for the user, the traceback in its notes."""
        error = WorkerError(f"{self.path}: no training sample can be made of it: {self.message}")
        error.add_note(self.details)
        return error


def draw_batch(
    samples: Samples, keys: Sequence[Key], pixels: NDArray[np.uint8], current: NDArray[np.int64] | None = None
) -> NDArray[np.float32] | Failure:
    """`Samples.draw_batch`, or what went wrong. current: (1,), where the index of the record being drawn is written."""
    current = np.empty(1, np.int64) if current is None else current
    current[0] = keys[0].record_index
    try:
        return samples.draw_batch(keys, pixels, lambda index: current.fill(index))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), samples.image_path(int(current[0])))


def _work(
    orders: Any, samples: Samples, memory: SharedBytes, slot_bytes: int, current: SharedBytes, is_bound: bool
) -> None:
    """The life of a worker: draw what is ordered into the slot that is named, until the parent closes or is gone.

    is_bound: whether the system may end it together with the thread that made it.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # signals are the parent's, whose handlers a fork would inherit
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if is_bound and (bind := _process_control()) is not None:
        bind(_PR_SET_PDEATHSIG, signal.SIGKILL)  # reaches even a stopped process, which cannot look for its parent
    _try_out()
    parent = os.getppid()
    with suppress(BrokenPipeError):
        orders.send(None)  # ready
    while True:
        while not orders.poll(PARENT_POLL_S):
            if os.getppid() != parent:
                return
        try:
            order = orders.recv()
            if order is None:
                return
            slot, keys = order
            pixels = _slot(memory, slot, slot_bytes, len(keys), samples.side(keys[0]))
            orders.send(draw_batch(samples, keys, pixels, current.array.view(np.int64)))
        except (EOFError, BrokenPipeError):
            return


def _slot(memory: SharedBytes, slot: int, slot_bytes: int, num_images: int, side: int) -> NDArray[np.uint8]:
    """The pixels (B, S, S, 3) of a batch in a slot."""
    shape = (num_images, side, side, 3)
    return memory.array[slot * slot_bytes :][: math.prod(shape)].reshape(shape)


def _try_out() -> None:
    """Take the locks of what draws samples, so that one which nobody will release is met now."""
    canvas = np.zeros((8, 8, 3), np.uint8)
    cv2.warpAffine(cv2.resize(canvas, (16, 16)), np.eye(2, 3), (8, 8), dst=canvas)
    cv2.LUT(cv2.cvtColor(canvas, cv2.COLOR_RGB2HSV), np.arange(256, dtype=np.uint8))
    cv2.imdecode(cv2.imencode(".jpg", canvas)[1], cv2.IMREAD_COLOR)


def _limit_waiting(orders: Any, seconds: float) -> None:
    """Let reading an answer that has begun fail with BlockingIOError after some seconds of silence."""
    if sys.platform != "win32":  # whose pipes are no sockets
        with socket.socket(fileno=os.dup(orders.fileno())) as pipe:
            limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) + 1)
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


@cache
def _process_control() -> Callable[[int, int], int] | None:
    """Linux's prctl; looked up before a fork, after which no library may be opened."""
    return ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None


@dataclass
class _Worker:
    process: BaseProcess
    orders: Any  # multiprocessing's Connection, which differs between systems
    memory: SharedBytes
    current: SharedBytes  # the index of the record being drawn; -1 before the first
    num_waiting: int = 0  # orders not answered yet


class WorkerPool:
    """Workers that draw batches; made when first used, kept until `close`.

    max_batch, max_side: the largest batch and canvas that will be ordered. depth: batches in hand a worker.
    """

    def __init__(
        self,
        samples: Samples,
        num_workers: int,
        max_batch: int,
        max_side: int,
        depth: int,
        timeout_s: float,
        start_method: str | None = None,
    ) -> None:
        self.samples, self.depth, self.timeout_s = samples, depth, timeout_s
        self._slot_bytes = max_batch * max_side * max_side * 3
        self._start_method = start_method or ("fork" if sys.platform.startswith("linux") else "spawn")
        self._num_workers = num_workers
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start the workers unless they run already."""
        if self._workers:
            return
        _process_control()
        try:
            for number in range(self._num_workers):
                self._workers.append(self._begun(number))
            for number in range(self._num_workers):
                self._make_ready(number)
        except BaseException:  # an interrupt, too: workers half begun would be taken for ready ones
            self.close(patience_s=0.0)
            raise

    def _begun(self, number: int) -> _Worker:
        """A worker that has just been started."""
        context: Any = multiprocessing.get_context(self._start_method)
        # Bound to a thread that ends before the process, they would end too early.
        is_bound = threading.current_thread() is threading.main_thread()
        ours, theirs = context.Pipe()
        memory, current = SharedBytes(self.depth * self._slot_bytes), SharedBytes(8)
        current.array.view(np.int64)[0] = -1
        arguments = (theirs, self.samples, memory, self._slot_bytes, current, is_bound)
        process = context.Process(target=_work, args=arguments, name=f"anchorite-data-{number}", daemon=True)
        process.start()
        theirs.close()
        _limit_waiting(ours, self.timeout_s)
        return _Worker(process, ours, memory, current)

    def _make_ready(self, number: int) -> None:
        """Wait until a worker is ready; start it anew while it is not, and waits for what its fork cut off."""
        deadline = time.monotonic() + self.timeout_s
        patience_s = FIRST_PATIENCE_S if self._start_method == "fork" else self.timeout_s
        while not connection.wait([self._workers[number].orders], min(patience_s, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise self._silence(self._workers[number])
            _end(self._workers[number], 0.0)
            self._workers[number] = self._begun(number)
            patience_s *= 2
        try:
            self._workers[number].orders.recv()
        except (EOFError, OSError) as error:
            raise self._death(self._workers[number]) from error

    def run(self, batches: Iterable[Sequence[Key]], stop: threading.Event) -> Iterator[Drawn]:
        """The batches, in order; their pixels are valid until the next one is asked for. Ends early when `stop` is set.

        Raises WorkerError, and ends all workers, when one raises, dies or hangs.
        """
        self.start()
        under_way: deque[tuple[_Worker, int, Sequence[Key]]] = deque()
        coming = enumerate(batches)
        try:
            self._settle(stop)
            while not stop.is_set():
                while len(under_way) < len(self._workers) * self.depth:
                    number, keys = next(coming, (0, None))
                    if keys is None:
                        break
                    worker = self._workers[number % len(self._workers)]
                    slot = number // len(self._workers) % self.depth
                    self._order(worker, (slot, keys))
                    under_way.append((worker, slot, keys))
                if not under_way:
                    return
                worker, slot, keys = under_way.popleft()
                rows = self._reply(worker, stop)
                if isinstance(rows, Failure):
                    raise rows.error()
                if rows is not None:
                    side = self.samples.side(keys[0])
                    yield Drawn(_slot(worker.memory, slot, self._slot_bytes, len(keys), side), rows, keys)
        except WorkerError:
            self.close(patience_s=0.0)
            raise

    def _settle(self, stop: threading.Event) -> None:
        """Take in the replies that an abandoned run left, so that all slots are free."""
        for worker in self._workers:
            while worker.num_waiting and not stop.is_set():
                self._reply(worker, stop)

    def _order(self, worker: _Worker, order: tuple[int, Sequence[Key]]) -> None:
        try:
            worker.orders.send(order)
            worker.num_waiting += 1
        except OSError as error:
            raise self._death(worker) from error

    def _reply(self, worker: _Worker, stop: threading.Event) -> NDArray[np.float32] | Failure | None:
        """A worker's next reply; None when told to stop first."""
        deadline = time.monotonic() + self.timeout_s
        while not stop.is_set():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._silence(worker)
            ready = connection.wait([worker.orders, worker.process.sentinel], min(POLL_S, remaining))
            if worker.orders in ready:
                try:
                    reply: NDArray[np.float32] | Failure = worker.orders.recv()
                except BlockingIOError as error:  # it stopped in the middle of its answer
                    raise self._silence(worker) from error
                except (EOFError, OSError) as error:
                    raise self._death(worker) from error
                worker.num_waiting -= 1
                return reply
            if ready:
                raise self._death(worker)
        return None

    def _silence(self, worker: _Worker) -> WorkerError:
        return WorkerError(
            f"a data worker (process {worker.process.pid}) gave no batch for {self.timeout_s:g} s"
            f"{self._while_drawing(worker)}. Look at that file and at the storage, or raise worker_timeout_s"
        )

    def _death(self, worker: _Worker) -> WorkerError:
        worker.process.join(CLOSE_S)
        code = worker.process.exitcode
        cause = f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by signal {-code}"
        return WorkerError(
            f"a data worker (process {worker.process.pid}) {cause}{self._while_drawing(worker)}. If memory ran out, "
            "use fewer workers or a smaller batch"
        )

    def _while_drawing(self, worker: _Worker) -> str:
        index = int(worker.current.array.view(np.int64)[0])
        return f" while working on {self.samples.image_path(index)}" if index >= 0 else " before its first sample"

    def close(self, patience_s: float = CLOSE_S) -> None:
        """End all workers: asked to leave first, killed when they have not left within `patience_s`."""
        workers, self._workers = self._workers, []
        for worker in workers:
            with suppress(OSError):  # it may be gone already
                worker.orders.send(None)
        deadline = time.monotonic() + patience_s
        for worker in workers:
            _end(worker, max(0.0, deadline - time.monotonic()))


def _end(worker: _Worker, patience_s: float) -> None:
    """Kill the worker unless it leaves by itself within some seconds: a stopped one would not heed a gentler signal."""
    worker.orders.close()
    worker.process.join(patience_s)
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.process.close()
