"""Worker processes that draw batches into memory they share with this process.

Each worker has a pipe for orders and replies and a few slots of shared memory for the pixels, so no file descriptors
travel and nothing large is copied into a pipe. Orders go round in turn and are answered in turn: the batches come in
the order asked for, whichever worker is faster. A dead worker is noticed at once, a hung one after `timeout_s`.

Workers are forked where the system can fork: they start in milliseconds and need no guard in the user's script; what
they run after the fork is NumPy and single-threaded OpenCV, so neither the thread pools nor the CUDA context that a
fork cannot carry over are touched. A lock that another thread held at the fork is held for ever in the worker, though:
OpenCV takes one even in a thread that has ended but for its clean-up. Each worker tries out what it needs before it
says that it is ready, and one that stays silent is made anew.

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.drawing import Drawn, Failure, Key, Samples, draw_batch
from anchorite.data.memory import SharedBytes
from anchorite.errors import WorkerError

StartMethod = Literal["fork", "spawn"]
POLL_S = 0.5  # how soon a waiting thread sees that it shall stop
PARENT_POLL_S = 5.0  # how soon an idle worker sees that its parent is gone
_PR_SET_PDEATHSIG = 1
CLOSE_S = 2.0  # how long a worker gets to leave by itself
FIRST_PATIENCE_S = 2.0  # how long a forked worker gets to be ready; each that takes its place gets twice as long
_READY = "ready"


def _work(
    orders: Any, samples: Samples, memory: SharedBytes, slot_bytes: int, board: SharedBytes, is_bound: bool
) -> None:
    """The life of a worker: draw what is ordered into the slot that is named, until the parent closes or is gone.

    is_bound: whether the system may end it together with the thread that made it.
    """
    _become_quiet()
    if is_bound and (bind := _process_control()) is not None:
        bind(_PR_SET_PDEATHSIG, signal.SIGKILL)  # reaches even a stopped process, which cannot look for its parent
    _try_out()
    parent, in_hand = os.getppid(), board.array.view(np.int64)

    def note(index: int) -> None:
        in_hand[0] = index

    with suppress(BrokenPipeError):
        orders.send(_READY)
    while True:
        while not orders.poll(PARENT_POLL_S):
            if os.getppid() != parent:
                return
        try:
            order = orders.recv()
            if order is None:
                return
            slot, keys = order
            shape = (len(keys), samples.side(keys[0]), samples.side(keys[0]), 3)
            pixels = memory.array[slot * slot_bytes :][: math.prod(shape)].reshape(shape)
            orders.send(draw_batch(samples, keys, pixels, note))
        except (EOFError, BrokenPipeError):
            return


def _become_quiet() -> None:
    """One thread, and signals left to the parent, whose handlers a fork would inherit."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    board: SharedBytes
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
        start_method: StartMethod | None = None,
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
        memory, board = SharedBytes(self.depth * self._slot_bytes), SharedBytes(8)
        board.array.view(np.int64)[0] = -1
        arguments = (theirs, self.samples, memory, self._slot_bytes, board, is_bound)
        process = context.Process(target=_work, args=arguments, name=f"anchorite-data-{number}", daemon=True)
        process.start()
        theirs.close()
        _limit_waiting(ours, self.timeout_s)
        return _Worker(process, ours, memory, board)

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
                    shape = (len(keys), self.samples.side(keys[0]), self.samples.side(keys[0]), 3)
                    pixels = worker.memory.array[slot * self._slot_bytes :][: math.prod(shape)].reshape(shape)
                    yield Drawn(pixels, rows, keys)
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
            f"{self._in_hand(worker)}. Look at that file and at the storage, or raise worker_timeout_s"
        )

    def _death(self, worker: _Worker) -> WorkerError:
        worker.process.join(CLOSE_S)
        code = worker.process.exitcode
        cause = f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by signal {-code}"
        return WorkerError(
            f"a data worker (process {worker.process.pid}) {cause}{self._in_hand(worker)}. If memory ran out, "
            "use fewer workers or a smaller batch"
        )

    def _in_hand(self, worker: _Worker) -> str:
        index = int(worker.board.array.view(np.int64)[0])
        return f" while working on {self.samples.place(index)}" if index >= 0 else " before its first sample"

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
