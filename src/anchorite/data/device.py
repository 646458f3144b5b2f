"""Training on images that lie where the accelerator reads them: the store of such images, and the `Loader` of batches
that a thread plans and the device paints.

All images lie one behind the other in one flat tensor, an int32 a pixel (red, green and blue from the lowest byte up),
with the offset at which each begins. Against padding all to one square, that takes no memory for what is not there (a
quarter of the square at 640 x 480), and an image of any size is found by the same arithmetic. Against three bytes a
pixel it takes a third more, but one read of four aligned bytes fetches all three channels, where three reads were
needed, and reads are what the time of augmentation goes into.

Only a plan travels, some kilobytes a batch. Targets come from the same plans as those of the loader on the host, by the
same function, so they are equal; they are padded, so that no shape depends on how many objects a batch shows.

Legend: B images, T targets of a batch, M pixels of all images.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.boxes import Targets
from anchorite.data.batches import Batch, EpochBatches, LoaderConfig, SampleKey, empty_batch
from anchorite.data.dataset import LeftOut
from anchorite.data.device_render import BatchPlan, in_parts, plan_batch, render
from anchorite.data.images import FILL
from anchorite.data.prefetch import prefetch
from anchorite.data.records import Record
from anchorite.data.samples import TrainSamples
from anchorite.data.store import ImageStore, Progress, spendable_memory

Storage = Literal["device", "host"]
DEVICE_SHARE = 0.5  # of the device's free memory; the rest is for the network's activations
_FILL_PIXEL = FILL | FILL << 8 | FILL << 16
_BYTES_A_PIXEL = 4
CAPACITY_STEP = 64
_CAPACITY_MARGIN = 1.25
_PROBED_BATCHES = 32
_MAX_COMPILED_TAPS = 4  # beyond, the unrolled sum takes longer to compile than to run

Renderer = Callable[..., Tensor]
PlannedBatch = tuple[BatchPlan, Targets, Tensor]


def choose_storage(num_bytes: int, device: torch.device) -> tuple[Storage | None, str]:
    """Where images go by what is free now, and why, in words.

    On the device when they take at most `DEVICE_SHARE` of its free bytes, else in RAM when they fit there, else nowhere
    (None). A free memory that is not known counts as enough. Pinned memory is taken in powers of two.
    """
    free_ram = spendable_memory()
    free_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_ram
    size = f"{num_bytes / 1e9:.2f} GB of images"
    if free_device is None:
        return "device", f"{size} on {device}"
    on_device = f"{DEVICE_SHARE:.0%} of the {free_device / 1e9:.2f} GB free on {device}"
    if num_bytes <= DEVICE_SHARE * free_device:
        return "device", f"{size} on {device}, within {on_device}"
    if free_ram is None or 1 << max(0, num_bytes - 1).bit_length() <= free_ram:
        return "host", f"{size} in pinned memory, copied batch by batch: more than {on_device}"
    return None, f"{size} are more than {on_device} and than the {free_ram / 1e9:.2f} GB of memory to spare"


class DeviceStore:
    """The images of `records`, resized so that the longer side is `long_side` pixels, for augmentation on `device`.

    storage: "device" keeps them there; "host" in this machine's memory (pinned for a CUDA device), from where each
    batch copies those it shows; it may be set until `build` is called, once, before use. The first pixel is not an
    image's: it has the canvas's colour. skip_bad: as of an ImageStore, which `images` is. num_bytes: what all images
    take together.
    """

    def __init__(
        self,
        records: Sequence[Record],
        long_side: int,
        device: torch.device | str,
        storage: Storage = "device",
        skip_bad: bool = False,
    ) -> None:
        self.images = ImageStore(records, long_side, "none", skip_bad=skip_bad)
        self.device, self.storage = torch.device(device), storage
        self._areas = np.array([height * width for height, width in self.images.sizes_hw], np.int64)
        ends = 1 + np.cumsum([0, *self._areas], dtype=np.int64)
        self._starts, self.num_bytes = ends[:-1], int(ends[-1]) * _BYTES_A_PIXEL
        self._largest = int(self._areas.max(initial=0))
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def build(self, progress: Progress | None = None) -> None:
        """Decode everything now, on all cores, as `ImageStore.build` does; raises what that raises."""
        on_device, is_cuda = self.storage == "device", self.device.type == "cuda"
        where = self.device if on_device else torch.device("cpu")
        num_pixels, pinned = self.num_bytes // _BYTES_A_PIXEL, is_cuda and not on_device
        pixels = torch.empty(num_pixels, dtype=torch.int32, device=where, pin_memory=pinned)
        pixels[0] = _FILL_PIXEL

        def save(index: int, image: NDArray[np.uint8]) -> None:
            pixels[self._starts[index] :][: self._areas[index]].copy_(packed(image))

        kept = self.images.decode_all(save, progress)
        self._starts, self._areas = self._starts[kept], self._areas[kept]
        self._pixels = pixels

    def stage(self, indices: Sequence[int]) -> tuple[Tensor, NDArray[np.int64]]:
        """Pixels (M,) int32 on the device, and where each image of `indices` begins there.

        They are the whole store, or copies of these images, one behind the other.

        -1 stands for no image, and begins at the first pixel. The tensor of copies has room for the largest image in
        each slot, so that its size depends on their number alone. The copies are queued on the current stream;
        nothing waits for them here.
        """
        assert self._pixels is not None, "build() the store before asking for images"
        chosen = np.asarray(indices, np.int64)
        if self.storage == "device":
            return self._pixels, np.where(chosen < 0, 0, self._starts[chosen])
        buffer = torch.empty(1 + len(indices) * self._largest, dtype=torch.int32, device=self.device)
        buffer[:1].copy_(self._pixels[:1], non_blocking=True)
        starts = np.where(chosen < 0, 0, 1 + np.arange(len(indices), dtype=np.int64) * self._largest)
        for start, index in zip(starts.tolist(), indices, strict=True):
            if index >= 0:
                image = self._pixels[self._starts[index] :][: self._areas[index]]
                buffer[start : start + len(image)].copy_(image, non_blocking=True)
        return buffer, starts


def packed(image: NDArray[np.uint8]) -> Tensor:
    """An image (H, W, 3) uint8 as (H * W,) int32, its channels from the lowest byte up."""
    red, green, blue = (torch.from_numpy(image[..., channel].astype(np.int32)).flatten() for channel in range(3))
    return red | green << 8 | blue << 16


def choose_capacity(samples: TrainSamples, batches: EpochBatches) -> tuple[int, str]:
    """Rows to pad targets to, with a margin over the fullest of some batches of the first epoch, and why, in words."""
    probed = islice(batches.of_epoch(0), _PROBED_BATCHES)
    counts = [len(samples.rows([samples.plan(key) for key in keys])) for keys in probed]
    fullest = max(counts, default=0)
    rows = _whole_steps(int(fullest * _CAPACITY_MARGIN))
    return rows, (
        f"targets padded to {rows} rows (at most {fullest} in {len(counts)} batches tried; a batch with more gets "
        f"more, in steps of {CAPACITY_STEP})"
    )


def _whole_steps(num_rows: int) -> int:
    return max(1, -(-num_rows // CAPACITY_STEP)) * CAPACITY_STEP


class DeviceLoader:
    """See `Loader`; images and targets lie on the store's device.

    samples: of the same records at the same size. capacity: rows to pad targets to, more where a batch has more; None
    chooses it. compiled: paint by one compiled kernel in place of an operator at a time; where the compiler fails,
    `painting` says so and operators do the work. reason: why the images lie where they do. Of the config, what concerns
    worker processes has no meaning here.
    """

    def __init__(
        self,
        samples: TrainSamples,
        store: DeviceStore,
        config: LoaderConfig,
        capacity: int | None = None,
        compiled: bool = False,
        reason: str = "",
    ) -> None:
        self.samples, self.store, self.config = samples, store, config
        self.batches = EpochBatches(len(samples), samples.image_size, samples.seed, config)
        self._epoch = self._start_batch = 0
        self._reason = reason
        chosen = choose_capacity(samples, self.batches) if capacity is None else (capacity, "targets padded as given")
        self._capacity, self._capacity_reason = chosen
        self._compiled: Renderer | None = None
        self.painting = "operator by operator"
        if compiled:
            self._try_compiled()

    def _try_compiled(self) -> None:
        """Compile now, on the first batch, so that a compiler that is missing or fails is known before training."""
        try:
            self._compiled = torch.compile(render)
            self._painted(*self.planned(next(self.batches.of_epoch(0))))
            self.painting = "by a compiled kernel"
        except Exception as error:  # compilers fail in many ways, and none of them may stop a run
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
        return painted, self._capacity_reason

    def __iter__(self) -> Generator[Batch, None, None]:
        return self._one_pass(self._epoch, self._start_batch)  # bound now: a later set_epoch leaves this pass alone

    def _one_pass(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        def plan(_stop: object) -> Generator[PlannedBatch, None, None]:
            yield from map(self.planned, filter(None, self.batches.of_epoch(epoch, start_batch)))

        with closing(prefetch(plan, self.config.prefetch)) as planned_batches:
            for planned in planned_batches:
                yield self._painted(*planned)
        if self.batches.sizes.ends_empty and start_batch < len(self):
            yield empty_batch(self.samples.image_size, self._capacity).to(self.store.device)

    def planned(self, keys: Sequence[SampleKey]) -> PlannedBatch:
        """A batch as the thread hands it over, before any pixel is touched: its plan, targets and records' indices.

        In pinned memory for a CUDA device.
        """
        plans = [self.samples.plan(key) for key in keys]
        # A compiled kernel is made for one B: the last, smaller batch is filled up, and cut off again.
        num_images = self.batches.sizes.largest_part if self._compiled is not None else None
        plan = plan_batch(plans, self.store.images.sizes_hw, num_images)
        rows = torch.from_numpy(self.samples.rows(plans))
        targets = Targets.from_rows(rows, max(self._capacity, _whole_steps(len(rows))))
        if self.store.device.type == "cuda":
            tensors = {name: getattr(plan, name).pin_memory() for name in ("tiles", "widths", "colours")}
            plan, targets = plan._replace(**tensors), targets.pin_memory()
        return plan, targets, torch.tensor([key.record_index for key in keys])

    def _painted(self, plan: BatchPlan, targets: Targets, indices: Tensor) -> Batch:
        """The batch on the device; all work is queued on the current stream."""
        device = self.store.device
        pixels, offsets = self.store.stage(plan.sources)
        starts = torch.from_numpy(offsets).view(plan.widths.shape)
        if device.type == "cuda":
            starts = starts.pin_memory()
        tables = [table.to(device, non_blocking=True) for table in (starts, plan.tiles, plan.widths, plan.colours)]
        if self._compiled is not None and plan.taps <= _MAX_COMPILED_TAPS:
            images = self._compiled(pixels, *tables, plan.size, plan.taps, plan.jitters)
        else:
            images = in_parts(pixels, tables, plan)
        return Batch(images[: len(indices)], targets.to(device, non_blocking=True), indices)

    def close(self) -> None:
        """Nothing to end: the planning thread ends with its iterator."""

    def __enter__(self) -> DeviceLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
