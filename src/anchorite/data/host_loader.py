"""Batches drawn on the host: in a thread of this process or in worker processes, with equal bits.

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

Legend: B images, S side of the canvas in pixels.
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
from dataclasses import replace
from functools import cache
from multiprocessing import connection
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.data.batches import Batch, EpochBatches, empty_batch, label_tensors
from anchorite.data.prefetch import prefetch
from anchorite.data.samples import SampleKey, SampleLabels, TrainSamples
from anchorite.data.shards.stream import StreamBatches, StreamSamples
from anchorite.data.store import SharedBytes
from anchorite.errors import WorkerError

POLL_S = 0.5  # how soon a waiting thread notices `stop`
NO_GUARD_CODE = 78  # with which a spawned worker ends that was made to import a script without a main guard
PARENT_POLL_S = 5.0  # how soon an idle worker notices that its parent has ended
CLOSE_S = 2.0  # how long a worker gets to leave by itself
FIRST_PATIENCE_S = 2.0  # how long forked workers get to be ready; those that take their places get twice as long
_PR_SET_PDEATHSIG = 1
_LINE = 64  # bytes of a cache line, at whose beginning the slots lie

Pixels = NDArray[np.uint8]  # (B, S, S, 3)
Keys = Sequence[SampleKey]  # of the samples of a batch
Batches = EpochBatches | StreamBatches
Samples = TrainSamples | StreamSamples


class HostPainter:
    """Draws batches on the host, with compact targets, or padded ones in pinned memory.

    Its workers, started when first needed, stay until `close`; each has `prefetch` batches to draw at a time. empty: a
    batch of no image.
    """

    def __init__(self, batches: Batches) -> None:
        assert batches.config.workers is not None, "open_loader chooses the number of workers"
        self.batches, self.config = batches, batches.config
        self._samples: Samples = batches.samples
        self._start_method = self.config.start_method or ("fork" if sys.platform.startswith("linux") else "spawn")
        self.empty = empty_batch(self._samples.config.image_size, self._samples.parts)
        side = self.config.possible_sides(self._samples.config.image_size)[-1]
        self._slots_shape = (self.config.prefetch, batches.sizes.largest_part, side, side, 3)
        self._workers: list[_Worker] = []
        self._ordered: deque[tuple[_Worker, int, Keys]] = deque()  # batches without a reply yet, and their slots

    def paint(self, batches: Iterator[Keys]) -> Generator[Batch, None, None]:
        """The batches of these keys, in order, made by a thread or the workers before they are needed.

        Raises WorkerError when a sample cannot be made or a worker dies or hangs, naming the sample.
        """
        self._start()  # from this thread: forking is safest where the fewest threads run
        return prefetch(lambda stop: self._drawn(batches, stop), self.config.prefetch)

    def _drawn(self, batches: Iterator[Keys], stop: threading.Event) -> Generator[Batch, None, None]:
        """Ends early when `stop` is set; ends all workers when one raises, dies or hangs."""
        if not self.config.workers:
            yield from map(self._batch, batches)
            return
        self._start()
        depth, num_workers = self.config.prefetch, len(self._workers)
        coming = enumerate(batches)
        try:
            while self._ordered and self._ordered[0][0].reply(stop) is not None:
                self._ordered.popleft()  # an abandoned pass left it: without any, all slots are free
            while not stop.is_set():
                for number, keys in itertools.islice(coming, num_workers * depth - len(self._ordered)):
                    worker, slot = self._workers[number % num_workers], number // num_workers % depth
                    worker.order(slot, keys)
                    self._ordered.append((worker, slot, keys))
                if not self._ordered:
                    return
                worker, slot, keys = self._ordered[0]
                labels = worker.reply(stop)
                if labels is not None:
                    self._ordered.popleft()
                    yield self._batch(keys, labels, worker.slots[slot])
        except WorkerError:
            self.close(patience_s=0.0)
            raise

    def _batch(self, keys: Keys, labels: SampleLabels | None = None, slot: NDArray[np.uint8] | None = None) -> Batch:
        """The batch that a worker drew into its slot, or one drawn now; images (B, 3, S, S) with channels last."""
        side, pin = keys[0].size, self.config.pin_memory
        images = torch.empty((len(keys), side, side, 3), dtype=torch.uint8, pin_memory=pin)
        if labels is None or slot is None:
            labels = draw_batch(self._samples, keys, images.numpy(), np.empty(1, np.int64))
        else:
            images.numpy()[:] = _canvases(slot, keys)  # a copy: the worker will use the slot again
        targets, coverage = label_tensors(labels)
        indices = torch.tensor([key.record_index for key in keys])
        batch = Batch(images.permute(0, 3, 1, 2), targets, indices, coverage)
        if not pin:
            return batch
        # Padded before they are pinned: what is padded later lies in memory that is copied while the host waits.
        batch = batch.with_fixed_capacity()
        coverage = batch.coverage and batch.coverage.pin_memory()
        return replace(batch, targets=batch.targets.pin_memory(), coverage=coverage)

    def _start(self) -> None:
        """Start the workers unless they run already; all anew while one of them does not get ready."""
        end_unguarded_worker()
        timeout_s = self.config.worker_timeout_s
        deadline = time.monotonic() + timeout_s
        patience_s = FIRST_PATIENCE_S if self._start_method == "fork" else timeout_s
        while self.config.workers and not self._workers:
            try:
                for _ in range(self.config.workers):
                    self._workers.append(_Worker(self._samples, timeout_s, self._slots_shape, self._start_method))
                ready_by = min(deadline, time.monotonic() + patience_s)
                for worker in self._workers:
                    worker.receive(ready_by)
            except BaseException as error:  # an interrupt, too: workers half begun would be taken for ready ones
                self.close(patience_s=0.0)
                if not isinstance(error, _Silence) or time.monotonic() >= deadline:
                    raise
            patience_s *= 2

    def close(self, patience_s: float = CLOSE_S) -> None:
        """End all workers: asked to leave first, killed when they have not left within `patience_s`."""
        workers, self._workers = self._workers, []
        self._ordered.clear()
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


def draw_batch(samples: Samples, keys: Keys, pixels: Pixels, current: NDArray[np.int64]) -> SampleLabels:
    """`draw_batch` of the samples; a failure becomes a WorkerError that names the image, the traceback in its notes.

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


def end_unguarded_worker() -> None:
    """End this process if it is a worker that has just been spawned and imports the user's script, which, having no
    main guard, starts training anew. The process that spawned it tells so.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds it out
        raise SystemExit(NO_GUARD_CODE)


class _Silence(WorkerError):
    """A worker hangs."""


class _Worker:
    """A process that draws samples into `slots` of a memory that it shares with this one."""

    def __init__(self, samples: Samples, timeout_s: float, shape: tuple[int, ...], start_method: str) -> None:
        self._samples, self._timeout_s = samples, timeout_s
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
            raise self._failure(is_silent=False) from error

    def reply(self, stop: threading.Event) -> SampleLabels | None:
        """The labels of the next batch that was ordered; None when `stop` is set first."""
        labels: SampleLabels | WorkerError | None = self.receive(time.monotonic() + self._timeout_s, stop)
        if isinstance(labels, WorkerError):
            raise labels
        return labels

    def receive(self, deadline: float, stop: threading.Event | None = None) -> Any:
        """What the worker sends next; None when `stop` is set first. Raises WorkerError when it is silent or dead."""
        while stop is None or not stop.is_set():
            seconds = max(0.0, deadline - time.monotonic())
            ready = connection.wait([self.pipe, self.process.sentinel], min(POLL_S, seconds))
            if self.pipe in ready:
                try:
                    return self.pipe.recv()
                except (EOFError, OSError) as error:  # BlockingIOError: it stopped in the middle of its reply
                    cause = None if isinstance(error, EOFError) else error
                    raise self._failure(is_silent=isinstance(error, BlockingIOError)) from cause
            if ready or not seconds:
                raise self._failure(is_silent=not ready)
        return None

    def _failure(self, is_silent: bool) -> WorkerError:
        """What to raise when the worker hangs, or else has died."""
        if is_silent:
            what = f"gave no batch for {self._timeout_s:g} s"
            remedy = "Look at that file and at the storage, or raise worker_timeout_s"
        else:
            self.process.join(CLOSE_S)
            code = self.process.exitcode
            what = f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by signal {-code}"
            remedy = "If memory ran out, use fewer workers or a smaller batch"
            if code == NO_GUARD_CODE:
                what = "imported the script that trains, as spawned processes do, and the script began to train again"
                remedy = 'Put what the script does under `if __name__ == "__main__":`, or use workers 0'
        index = int(self._current[0])
        when = f"while working on {self._samples.image_path(index)}" if index >= 0 else "before its first sample"
        kind = _Silence if is_silent else WorkerError
        return kind(f"a data worker (process {self.process.pid}) {what} {when}. {remedy}")


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
                reply: SampleLabels | WorkerError = draw_batch(samples, keys, _canvases(slots[slot], keys), current)
            except WorkerError as error:
                reply = error
            orders.send(reply)


def _parts(memory: SharedBytes, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The slots in a worker's memory, and (1,) the index of the record being drawn, -1 before the first."""
    return memory.array[_LINE:].reshape(shape), memory.array[:8].view(np.int64)


def _canvases(slot: NDArray[np.uint8], keys: Keys) -> Pixels:
    """The pixels (B, S, S, 3) of a batch at the beginning of a slot, one behind the other."""
    shape = (len(keys), keys[0].size, keys[0].size, 3)
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
