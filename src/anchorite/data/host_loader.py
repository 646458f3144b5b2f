"""The `Loader` that draws batches on the host: in a thread of this process or in worker processes, with equal bits.

Workers draw into memory they share with this process. Each has a pipe for orders and replies and a few slots of shared
memory for the pixels, so no file descriptors travel and nothing large is copied into a pipe. Orders go round in turn
and are answered in turn: the batches come in the order asked for, whichever worker is faster. A dead worker is noticed
at once, a hung one after `worker_timeout_s`.

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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.boxes import Targets
from anchorite.data.batches import Batch, BatchSizes, EpochBatches, LoaderConfig, empty_batch
from anchorite.data.dataset import LeftOut
from anchorite.data.prefetch import prefetch
from anchorite.data.samples import Samples, TrainSamples
from anchorite.data.store import SharedBytes
from anchorite.errors import InputError, WorkerError
from anchorite.interrupts import HeldInterrupts

POLL_S = 0.5  # how soon a waiting thread notices `stop`
PARENT_POLL_S = 5.0  # how soon an idle worker notices that its parent has ended
CLOSE_S = 2.0  # how long a worker gets to leave by itself
FIRST_PATIENCE_S = 2.0  # how long a forked worker gets to be ready; each that takes its place gets twice as long
_PR_SET_PDEATHSIG = 1

Rows = NDArray[np.float32]  # (T, 6), the targets of a batch
Keys = Sequence[Any]  # of the samples of a batch


class Batches(Protocol):
    """Which samples make which batch of an epoch, as `EpochBatches` has it."""

    sizes: BatchSizes

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Sequence[Any]]:
        """The keys of this rank's part of each batch, from one batch of the epoch on."""
        ...


def make_loader(
    samples: TrainSamples,
    config: LoaderConfig,
    capacity: int | None = None,
    left_out: Sequence[LeftOut] = (),
    decisions: Sequence[str] = (),
) -> HostLoader:
    """The batches of `samples`, shuffled by (samples.seed, epoch); see `HostLoader`.

    Raises InputError when there would be no batch at all.
    """
    batches = EpochBatches(len(samples), samples.image_size, samples.seed, config)
    return HostLoader(samples, batches, config, capacity, left_out, decisions)


class HostLoader:
    """See `Loader`. capacity: rows to pad the targets of each batch to (see Targets); None leaves them compact.

    One pass at a time: a new one ends the one before it, which raises InputError when it is asked for more. While
    iterating, raises WorkerError when a sample cannot be made or a worker dies or hangs, naming the sample, and
    InputError when a batch has more targets than the capacity.
    """

    def __init__(
        self,
        samples: Samples,
        batches: Batches,
        config: LoaderConfig,
        capacity: int | None = None,
        left_out: Sequence[LeftOut] = (),
        decisions: Sequence[str] = (),
    ) -> None:
        self.samples, self.batches, self.config, self.capacity = samples, batches, config, capacity
        self.left_out, self.decisions = left_out, decisions
        self._epoch = self._start_batch = 0
        self._under_way: Generator[Batch, None, None] | None = None
        self._pool: WorkerPool | None = None
        assert config.workers is not None, "open_loader chooses the number of workers"
        if config.workers:
            self._pool = WorkerPool(samples, config, batches.sizes.largest_part)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self._epoch, self._start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches.sizes.num_batches

    def num_in(self, batch: int) -> int:
        return self.batches.sizes.num_in(batch)

    def __iter__(self) -> Generator[Batch, None, None]:
        if self._pool is not None:
            with HeldInterrupts():  # a pool is whole or not there
                self._pool.start()  # from this thread: forking is safest where the fewest threads run
        return self._one_pass(self._epoch, self._start_batch)  # bound now: a later set_epoch leaves this pass alone

    def _one_pass(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        """A pass that has the workers, whose slots hold the batches of one alone, to itself."""
        keys = filter(None, self.batches.of_epoch(epoch, start_batch))
        before, mine = self._under_way, prefetch(lambda stop: self._drawn(keys, stop), self.config.prefetch)
        if before is not None:
            try:
                before.close()
            except ValueError as error:  # it is being asked for a batch right now
                raise InputError("another thread is in a pass over this loader; give each thread its own") from error
        self._under_way = mine
        try:
            yield from mine
            if self._under_way is not mine:
                raise InputError("this pass ended when another over the same loader began; give each its own loader")
            if self.batches.sizes.ends_empty and start_batch < len(self):
                yield empty_batch(self.samples.image_size, self.capacity)
        finally:
            mine.close()
            if self._under_way is mine:
                self._under_way = None

    def _drawn(self, batches: Iterator[Keys], stop: threading.Event) -> Generator[Batch, None, None]:
        if self._pool is None:
            for keys in batches:
                images = self._blank(len(keys), self.samples.side(keys[0]))
                yield self._batch(images, _checked(draw_batch(self.samples, keys, images.numpy())), keys)
            return
        for pixels, rows, keys in self._pool.run(batches, stop):
            images = self._blank(len(keys), pixels.shape[1])
            images.numpy()[:] = pixels  # out of the slot, which the worker will use again
            yield self._batch(images, rows, keys)

    def _blank(self, num_images: int, side: int) -> torch.Tensor:
        return torch.empty((num_images, side, side, 3), dtype=torch.uint8, pin_memory=self.config.pin_memory)

    def _batch(self, images: torch.Tensor, rows: Rows, keys: Keys) -> Batch:
        """The batch, its images (B, 3, S, S) a view with channels last in memory, as convolutions want them."""
        targets = Targets.from_rows(torch.from_numpy(rows), self.capacity)
        indices = torch.tensor([key.record_index for key in keys])
        return Batch(images.permute(0, 3, 1, 2), targets.pin_memory() if self.config.pin_memory else targets, indices)

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            with HeldInterrupts():
                self._pool.close()

    def __enter__(self) -> HostLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def draw_batch(
    samples: Samples, keys: Keys, pixels: NDArray[np.uint8], current: NDArray[np.int64] | None = None
) -> Rows | WorkerError:
    """`Samples.draw_batch`, or what went wrong, its traceback in the notes.

    current: (1,), where the index of the record being drawn is written.
    """
    current = np.empty(1, np.int64) if current is None else current
    current[0] = keys[0].record_index
    try:
        return samples.draw_batch(keys, pixels, lambda index: current.fill(index))
    except Exception as error:
        path = samples.image_path(int(current[0]))
        failure = WorkerError(f"{path}: no training sample can be made of it: {type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())
        return failure


def _checked(rows: Rows | WorkerError) -> Rows:
    if isinstance(rows, WorkerError):
        raise rows
    return rows


def _work(
    orders: Any, samples: Samples, memory: SharedBytes, slot_bytes: int, current: SharedBytes, is_bound: bool
) -> None:
    """The life of a worker: draw what is ordered into the slot that is named, until the parent closes the pipe or ends.

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
    """Let reading a reply that has begun fail with BlockingIOError after some seconds of silence."""
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
    pipe: Any  # multiprocessing's Connection, which differs between systems
    memory: SharedBytes
    current: SharedBytes  # the index of the record being drawn; -1 before the first
    num_waiting: int = 0  # orders without a reply yet


class WorkerPool:
    """Workers that draw batches of up to `max_batch` images; made when first used, they stay until `close`.

    Each has `prefetch` orders at a time.
    """

    def __init__(self, samples: Samples, config: LoaderConfig, max_batch: int) -> None:
        assert config.workers
        self.samples, self.depth, self.timeout_s = samples, config.prefetch, config.worker_timeout_s
        self._slot_bytes = max_batch * config.largest_side(samples.image_size) ** 2 * 3
        self._start_method = config.start_method or ("fork" if sys.platform.startswith("linux") else "spawn")
        self._num_workers = config.workers
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
        """Wait until a worker is ready; replace it while it is not."""
        deadline = time.monotonic() + self.timeout_s
        patience_s = FIRST_PATIENCE_S if self._start_method == "fork" else self.timeout_s
        while not connection.wait([self._workers[number].pipe], min(patience_s, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise self._silence(self._workers[number])
            _end(self._workers[number], 0.0)
            self._workers[number] = self._begun(number)
            patience_s *= 2
        try:
            self._workers[number].pipe.recv()
        except (EOFError, OSError) as error:
            raise self._death(self._workers[number]) from error

    def run(self, batches: Iterator[Keys], stop: threading.Event) -> Iterator[tuple[NDArray[np.uint8], Rows, Keys]]:
        """Pixels (B, S, S, 3), target rows (T, 6) and keys of each batch, in order. Ends early when `stop` is set.

        The pixels are valid until the next batch is asked for. Raises WorkerError, and ends all workers, when one
        raises, dies or hangs.
        """
        self.start()
        ordered: deque[tuple[_Worker, int, Keys]] = deque()
        coming = enumerate(batches)
        try:
            for worker in self._workers:  # replies that an abandoned run left: now all slots are free
                while worker.num_waiting and not stop.is_set():
                    self._reply(worker, stop)
            while not stop.is_set():
                while len(ordered) < len(self._workers) * self.depth:
                    number, keys = next(coming, (0, None))
                    if keys is None:
                        break
                    worker = self._workers[number % len(self._workers)]
                    slot = number // len(self._workers) % self.depth
                    try:
                        worker.pipe.send((slot, keys))
                    except OSError as error:
                        raise self._death(worker) from error
                    worker.num_waiting += 1
                    ordered.append((worker, slot, keys))
                if not ordered:
                    return
                worker, slot, keys = ordered.popleft()
                rows = self._reply(worker, stop)
                if rows is not None:
                    pixels = _slot(worker.memory, slot, self._slot_bytes, len(keys), self.samples.side(keys[0]))
                    yield pixels, _checked(rows), keys
        except WorkerError:
            self.close(patience_s=0.0)
            raise

    def _reply(self, worker: _Worker, stop: threading.Event) -> Rows | WorkerError | None:
        """A worker's next reply; None when `stop` is set first."""
        deadline = time.monotonic() + self.timeout_s
        while not stop.is_set():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._silence(worker)
            ready = connection.wait([worker.pipe, worker.process.sentinel], min(POLL_S, remaining))
            if worker.pipe in ready:
                try:
                    reply: Rows | WorkerError = worker.pipe.recv()
                except BlockingIOError as error:  # it stopped in the middle of its reply
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
            with suppress(OSError):  # it may have ended already
                worker.pipe.send(None)
        deadline = time.monotonic() + patience_s
        for worker in workers:
            _end(worker, max(0.0, deadline - time.monotonic()))


def _end(worker: _Worker, patience_s: float) -> None:
    """Kill the worker unless it leaves by itself within some seconds: a stopped one would not heed a gentler signal."""
    worker.pipe.close()
    worker.process.join(patience_s)
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.process.close()
