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
says that it is ready, and while one of them stays silent, all are ended and started again.

Legend: B images, S side of the canvas in pixels, T targets of a batch.
"""

from __future__ import annotations

import ctypes
import itertools
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
from functools import cache
from multiprocessing import connection
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
FIRST_PATIENCE_S = 2.0  # how long forked workers get to be ready; those that take their places get twice as long
_PR_SET_PDEATHSIG = 1
_LINE = 64  # bytes of a cache line, at whose beginning the slots lie

Pixels = NDArray[np.uint8]  # (B, S, S, 3)
Rows = NDArray[np.float32]  # (T, 6), the targets of a batch
Keys = Sequence[Any]  # of the samples of a batch


class Batches(Protocol):
    """Which samples make which batch of an epoch, as `EpochBatches` has it."""

    sizes: BatchSizes

    def of_epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Keys]:
        """The keys of this rank's part of each batch, from one batch of the epoch on."""
        ...


def make_loader(
    samples: TrainSamples, config: LoaderConfig, left_out: Sequence[LeftOut] = (), decisions: Sequence[str] = ()
) -> HostLoader:
    """The batches of `samples`, shuffled by (samples.seed, epoch); see `HostLoader`.

    Raises InputError when there would be no batch at all.
    """
    batches = EpochBatches(len(samples), samples.image_size, samples.seed, config)
    return HostLoader(samples, batches, config, left_out, decisions)


class HostLoader:
    """See `Loader`; the targets are compact.

    One pass at a time: a new one ends the one before it, which raises InputError when it is asked for more. While
    iterating, raises WorkerError when a sample cannot be made or a worker dies or hangs, naming the sample.
    """

    def __init__(
        self,
        samples: Samples,
        batches: Batches,
        config: LoaderConfig,
        left_out: Sequence[LeftOut] = (),
        decisions: Sequence[str] = (),
    ) -> None:
        assert config.workers is not None, "open_loader chooses the number of workers"
        self.samples, self.batches, self.config = samples, batches, config
        self.left_out, self.decisions = left_out, decisions
        self._epoch = self._start_batch = 0
        self._under_way: Generator[Batch, None, None] | None = None
        self._pool = WorkerPool(samples, config, batches.sizes.largest_part) if config.workers else None

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
                yield empty_batch(self.samples.image_size)
        finally:
            mine.close()
            if self._under_way is mine:
                self._under_way = None

    def _drawn(self, batches: Iterator[Keys], stop: threading.Event) -> Generator[Batch, None, None]:
        if self._pool is None:
            for keys in batches:
                images = self._blank(keys)
                yield self._batch(images, draw_batch(self.samples, keys, images.numpy(), np.empty(1, np.int64)), keys)
        else:
            for pixels, rows, keys in self._pool.run(batches, stop):
                images = self._blank(keys)
                images.numpy()[:] = pixels  # out of the slot, which the worker will use again
                yield self._batch(images, rows, keys)

    def _blank(self, keys: Keys) -> torch.Tensor:
        side = self.samples.side(keys[0])
        return torch.empty((len(keys), side, side, 3), dtype=torch.uint8, pin_memory=self.config.pin_memory)

    def _batch(self, images: torch.Tensor, rows: Rows, keys: Keys) -> Batch:
        """The batch, its images (B, 3, S, S) a view with channels last in memory, as convolutions want them."""
        targets = Targets.from_rows(torch.from_numpy(rows))
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


def draw_batch(samples: Samples, keys: Keys, pixels: Pixels, current: NDArray[np.int64]) -> Rows:
    """`Samples.draw_batch`; a failure becomes a WorkerError that names the image, the traceback in its notes.

    current: (1,), where the index of the record being drawn is written.
    """
    current[0] = keys[0].record_index
    try:
        return samples.draw_batch(keys, pixels, lambda index: current.fill(index))
    except Exception as error:
        path = samples.image_path(int(current[0]))
        failure = WorkerError(f"{path}: no training sample can be made of it: {type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())
        raise failure from None


class WorkerPool:
    """Workers that draw batches of up to `max_batch` images; made when first used, they stay until `close`.

    Each has `prefetch` orders at a time.
    """

    def __init__(self, samples: Samples, config: LoaderConfig, max_batch: int) -> None:
        self.samples, self.config = samples, config
        side = config.possible_sides(samples.image_size)[-1]
        self._slots_shape = (config.prefetch, max_batch, side, side, 3)
        self._start_method = config.start_method or ("fork" if sys.platform.startswith("linux") else "spawn")
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start the workers unless they run already; all anew while one of them does not get ready."""
        timeout_s = self.config.worker_timeout_s
        deadline = time.monotonic() + timeout_s
        patience_s = FIRST_PATIENCE_S if self._start_method == "fork" else timeout_s
        while not self._workers:
            try:
                for _ in range(self.config.workers or 0):
                    self._workers.append(_Worker(self.samples, self.config, self._slots_shape, self._start_method))
                ready_by = min(deadline, time.monotonic() + patience_s)
                for worker in self._workers:
                    worker.receive(ready_by)
            except BaseException as error:  # an interrupt, too: workers half begun would be taken for ready ones
                self.close(patience_s=0.0)
                if not isinstance(error, _Silence) or time.monotonic() >= deadline:
                    raise
            patience_s *= 2

    def run(self, batches: Iterator[Keys], stop: threading.Event) -> Iterator[tuple[Pixels, Rows, Keys]]:
        """Pixels (B, S, S, 3), target rows (T, 6) and keys of each batch, in order. Ends early when `stop` is set.

        The pixels are valid until the next batch is asked for. Raises WorkerError, and ends all workers, when one
        raises, dies or hangs.
        """
        self.start()
        depth, num_workers = self.config.prefetch, len(self._workers)
        ordered: deque[tuple[_Worker, int, Keys]] = deque()
        coming = enumerate(batches)
        try:
            for worker in self._workers:  # replies that an abandoned run left: now all slots are free
                while worker.num_waiting and not stop.is_set():
                    worker.reply(stop)
            while not stop.is_set():
                for number, keys in itertools.islice(coming, num_workers * depth - len(ordered)):
                    worker, slot = self._workers[number % num_workers], number // num_workers % depth
                    worker.order(slot, keys)
                    ordered.append((worker, slot, keys))
                if not ordered:
                    return
                worker, slot, keys = ordered.popleft()
                rows = worker.reply(stop)
                if rows is not None:
                    yield _canvases(worker.slots[slot], self.samples, keys), rows, keys
        except WorkerError:
            self.close(patience_s=0.0)
            raise

    def close(self, patience_s: float = CLOSE_S) -> None:
        """End all workers: asked to leave first, killed when they have not left within `patience_s`."""
        workers, self._workers = self._workers, []
        for worker in workers:
            with suppress(OSError):  # it may have ended already
                worker.pipe.send(None)
        deadline = time.monotonic() + patience_s
        for worker in workers:
            worker.pipe.close()
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()  # a stopped one would not heed a gentler signal
            worker.process.join()
            worker.process.close()


class _Silence(WorkerError):
    """A worker hangs."""


class _Worker:
    """A process that draws samples into `slots` of a memory that it shares with this one."""

    def __init__(self, samples: Samples, config: LoaderConfig, shape: tuple[int, ...], start_method: str) -> None:
        self._samples, self._timeout_s = samples, config.worker_timeout_s
        self.num_waiting = 0  # orders without a reply yet
        memory = SharedBytes(_LINE + math.prod(shape))
        self.slots, self._current = _parts(memory, shape)
        self._current[0] = -1
        _process_control()
        context: Any = multiprocessing.get_context(start_method)
        self.pipe, theirs = context.Pipe()
        # Bound to a thread that ends before the process, it would end too early.
        is_bound = threading.current_thread() is threading.main_thread()
        arguments = (theirs, samples, memory, shape, is_bound)
        self.process = context.Process(target=_work, args=arguments, name="anchorite-data", daemon=True)
        self.process.start()
        theirs.close()
        if sys.platform != "win32":  # whose pipes are no sockets
            # Reading a reply that has begun fails with BlockingIOError after some seconds of silence.
            limit = struct.pack("ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6) + 1)
            with socket.socket(fileno=os.dup(self.pipe.fileno())) as pipe:
                pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def order(self, slot: int, keys: Keys) -> None:
        """Ask for a batch."""
        try:
            self.pipe.send((slot, keys))
        except OSError as error:
            raise self._death() from error
        self.num_waiting += 1

    def reply(self, stop: threading.Event) -> Rows | None:
        """The rows (T, 6) of the next batch that was ordered; None when `stop` is set first."""
        rows: Rows | WorkerError | None = self.receive(time.monotonic() + self._timeout_s, stop)
        self.num_waiting -= rows is not None
        if isinstance(rows, WorkerError):
            raise rows
        return rows

    def receive(self, deadline: float, stop: threading.Event | None = None) -> Any:
        """What the worker sends next; None when `stop` is set first. Raises WorkerError when it is silent or dead."""
        while stop is None or not stop.is_set():
            seconds = max(0.0, deadline - time.monotonic())
            ready = connection.wait([self.pipe, self.process.sentinel], min(POLL_S, seconds))
            if self.pipe in ready:
                try:
                    return self.pipe.recv()
                except BlockingIOError as error:  # it stopped in the middle of its reply
                    raise self._silence() from error
                except (EOFError, OSError) as error:
                    raise self._death() from error
            if ready:
                raise self._death()
            if not seconds:
                raise self._silence()
        return None

    def _silence(self) -> WorkerError:
        remedy = "Look at that file and at the storage, or raise worker_timeout_s"
        return _Silence(f"{self._place(f'gave no batch for {self._timeout_s:g} s')}. {remedy}")

    def _death(self) -> WorkerError:
        self.process.join(CLOSE_S)
        code = self.process.exitcode
        cause = f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by signal {-code}"
        return WorkerError(f"{self._place(cause)}. If memory ran out, use fewer workers or a smaller batch")

    def _place(self, what: str) -> str:
        index = int(self._current[0])
        when = f"while working on {self._samples.image_path(index)}" if index >= 0 else "before its first sample"
        return f"a data worker (process {self.process.pid}) {what} {when}"


def _work(orders: Any, samples: Samples, memory: SharedBytes, shape: tuple[int, ...], is_bound: bool) -> None:
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
    slots, current = _parts(memory, shape)
    with suppress(EOFError, BrokenPipeError):
        orders.send("ready")
        while True:
            while not orders.poll(PARENT_POLL_S):
                if os.getppid() != parent:
                    return
            if (order := orders.recv()) is None:
                return
            slot, keys = order
            try:
                reply: Rows | WorkerError = draw_batch(samples, keys, _canvases(slots[slot], samples, keys), current)
            except WorkerError as error:
                reply = error
            orders.send(reply)


def _parts(memory: SharedBytes, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The slots in a worker's memory, and (1,) the index of the record being drawn, -1 before the first."""
    return memory.array[_LINE:].reshape(shape), memory.array[:8].view(np.int64)


def _canvases(slot: NDArray[np.uint8], samples: Samples, keys: Keys) -> Pixels:
    """The pixels (B, S, S, 3) of a batch at the beginning of a slot, one behind the other."""
    shape = (len(keys), samples.side(keys[0]), samples.side(keys[0]), 3)
    return slot.reshape(-1)[: math.prod(shape)].reshape(shape)


def _try_out() -> None:
    """Take the locks of what draws samples, so that one which nobody will release is met now."""
    canvas = np.zeros((8, 8, 3), np.uint8)
    cv2.warpAffine(cv2.resize(canvas, (16, 16)), np.eye(2, 3), (8, 8), dst=canvas)
    cv2.LUT(cv2.cvtColor(canvas, cv2.COLOR_RGB2HSV), np.arange(256, dtype=np.uint8))
    cv2.imdecode(cv2.imencode(".jpg", canvas)[1], cv2.IMREAD_COLOR)


@cache
def _process_control() -> Callable[[int, int], int] | None:
    """Linux's prctl; looked up before a fork, after which no library may be opened."""
    return ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None
