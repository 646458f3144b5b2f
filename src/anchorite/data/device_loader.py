"""Batches for training made on the accelerator: planned by a thread of this process, painted where the network runs.

Only a plan travels, some kilobytes a batch. Targets come from the same plans as those of the loader on the processor,
by the same function, so they are equal; they are padded, so that no shape depends on how many objects a batch shows.

Legend: B images, T targets of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from anchorite.boxes import Targets
from anchorite.data.batches import Batch, EpochBatches, LoaderConfig, SampleKey, empty_batch
from anchorite.data.dataset import LeftOut
from anchorite.data.device_plan import BatchPlan, plan_batch
from anchorite.data.device_render import render
from anchorite.data.device_store import DeviceStore
from anchorite.data.prefetch import prefetch
from anchorite.data.samples import TrainSamples

CAPACITY_STEP = 64
_CAPACITY_MARGIN = 1.25
_PROBED_BATCHES = 32
_MAX_COMPILED_TAPS = 4  # beyond, the unrolled sum takes longer to compile than to run
# Pixels painted by one call of the operators: bounds the memory of their intermediate results, a few dozen numbers a
# pixel, and on a processor keeps them in its cache.
_PIXELS_AT_ONCE = {"cuda": 1 << 22, "cpu": 1 << 17}

Renderer = Callable[..., Tensor]


class Capacity(NamedTuple):
    """Rows that targets are padded to, and why, in words."""

    num_rows: int
    reason: str

    def rows_for(self, num_targets: int) -> int:
        """The capacity, or for a batch that has more, the next step that holds them all: none is ever lost."""
        return max(self.num_rows, _whole_steps(num_targets))


def choose_capacity(samples: TrainSamples, batches: EpochBatches) -> Capacity:
    """A capacity with a margin over the fullest of some batches of the first epoch, planned for the purpose."""
    fullest = num_probed = 0
    coming = batches.of_epoch(0)
    for _, keys in zip(range(_PROBED_BATCHES), coming, strict=False):
        fullest = max(fullest, len(samples.rows([samples.plan(key) for key in keys])))
        num_probed += 1
    rows = _whole_steps(int(fullest * _CAPACITY_MARGIN))
    return Capacity(
        rows,
        f"targets padded to {rows} rows (at most {fullest} in {num_probed} batches tried; a batch with more gets more, "
        f"in steps of {CAPACITY_STEP})",
    )


def _whole_steps(num_rows: int) -> int:
    return max(1, -(-num_rows // CAPACITY_STEP)) * CAPACITY_STEP


class PlannedBatch(NamedTuple):
    """What the thread hands over: the plan, targets and the records' indices, in pinned memory for a CUDA device."""

    plan: BatchPlan
    targets: Targets
    indices: Tensor


class DeviceLoader:
    """See `Loader`; images and targets lie on the store's device.

    samples: of the same records at the same size. capacity: of the targets; None chooses one. compiled: paint by one
    compiled kernel in place of an operator at a time; where the compiler fails, `painting` says so and operators do the
    work. reason: why the images lie where they do. Of the config, what concerns worker processes has no meaning here.
    """

    def __init__(
        self,
        samples: TrainSamples,
        store: DeviceStore,
        config: LoaderConfig,
        capacity: Capacity | None = None,
        compiled: bool = False,
        reason: str = "",
    ) -> None:
        self.samples, self.store, self.config = samples, store, config
        self.batches = EpochBatches(len(samples), samples.image_size, samples.seed, config)
        self._epoch = self._start_batch = 0
        self._reason = reason
        self.capacity = capacity or choose_capacity(samples, self.batches)
        self._compiled: Renderer | None = torch.compile(render) if compiled else None
        self.painting = "operator by operator"
        if compiled:
            self._try_compiled()

    def _try_compiled(self) -> None:
        """Compile now, on the first batch, so that a compiler that is missing or fails is known before training."""
        try:
            self._finished(self.planned(next(self.batches.of_epoch(0))))
            self.painting = "by a compiled kernel"
        except Exception as error:  # compilers fail in many ways, and none of them must keep a run from starting
            self._compiled = None
            first_line = str(error).strip().partition("\n")[0]
            self.painting = f"operator by operator, as compiling failed: {type(error).__name__}: {first_line}"

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        self._epoch, self._start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches.sizes.num_batches

    def num_in(self, batch: int) -> int:
        return self.batches.sizes.num_in(batch)

    @property
    def left_out(self) -> Sequence[LeftOut]:
        return self.store.images.left_out

    @property
    def decisions(self) -> Sequence[str]:
        unused = f"; workers {self.config.workers} not needed" if self.config.workers else ""
        painted = f"images in store: device; {self._reason}; batches painted there, {self.painting}{unused}"
        return painted, self.capacity.reason

    def __iter__(self) -> Generator[Batch, None, None]:
        return self._made(self._epoch, self._start_batch)  # bound now: a later set_epoch leaves this pass alone

    def _made(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        def plan(_stop: object) -> Generator[PlannedBatch, None, None]:
            for keys in filter(None, self.batches.of_epoch(epoch, start_batch)):
                yield self.planned(keys)

        with closing(prefetch(plan, self.config.prefetch)) as planned_batches:  # type: ignore[type-var]
            for planned in planned_batches:
                yield self._finished(planned)
        if self.batches.sizes.ends_empty and start_batch < len(self):
            yield empty_batch(self.samples.image_size, self.capacity.rows_for(0)).to(self.store.device)

    def planned(self, keys: Sequence[SampleKey]) -> PlannedBatch:
        """A batch as the thread hands it over, before any pixel is touched."""
        plans = [self.samples.plan(key) for key in keys]
        # A compiled kernel is made for one B: the last, smaller batch is filled up, and cut off again.
        num_images = self.batches.sizes.largest_part if self._compiled is not None else None
        plan = plan_batch(plans, self.store.images.sizes_hw, num_images)
        rows = torch.from_numpy(self.samples.rows(plans))
        targets = Targets.from_rows(rows, self.capacity.rows_for(len(rows)))
        if self.store.device.type == "cuda":
            tensors = {name: getattr(plan, name).pin_memory() for name in ("tiles", "widths", "colours")}
            plan, targets = plan._replace(**tensors), targets.pin_memory()
        return PlannedBatch(plan, targets, torch.tensor([key.record_index for key in keys]))

    def _finished(self, planned: PlannedBatch) -> Batch:
        images = self._painted(planned.plan)[: len(planned.indices)]
        return Batch(images, planned.targets.to(self.store.device, non_blocking=True), planned.indices)

    def _painted(self, plan: BatchPlan) -> Tensor:
        """The images (B, 3, S, S); all work is queued on the current stream."""
        device = self.store.device
        pixels, places = self.store.stage(plan.sources)
        starts = torch.from_numpy(places).view(plan.widths.shape)
        if device.type == "cuda":
            starts = starts.pin_memory()
        tables = [table.to(device, non_blocking=True) for table in (starts, plan.tiles, plan.widths, plan.colours)]
        if self._compiled is not None and plan.taps <= _MAX_COMPILED_TAPS:
            return self._compiled(pixels, *tables, plan.size, plan.taps, plan.jitters)
        return in_parts(pixels, tables, plan)

    def close(self) -> None:
        """Nothing to end: the planning thread ends with its iterator."""

    def __enter__(self) -> DeviceLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_parts(pixels: Tensor, tables: list[Tensor], plan: BatchPlan) -> Tensor:
    """The images (B, 3, S, S) by operators, a few images at a time; tables: starts, tiles, widths, colours."""
    size = plan.size
    num_images = max(1, _PIXELS_AT_ONCE.get(pixels.device.type, 1 << 22) // size**2)
    parts = zip(*(table.split(num_images) for table in tables), strict=True)
    images = [
        render(pixels, starts, tiles, widths, colours, size, plan.taps, plan.jitters)
        for starts, tiles, widths, colours in parts
    ]
    if len(images) == 1:
        return images[0]
    return torch.cat([image.permute(0, 2, 3, 1) for image in images]).permute(0, 3, 1, 2)
