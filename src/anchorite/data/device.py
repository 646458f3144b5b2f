"""Training on images that lie where the accelerator reads them: their store, the painting of augmented images by tensor
operations, and the batches that a thread plans and the device paints.

All images lie one behind the other in one flat tensor, an int32 a pixel (red, green and blue from the lowest byte up),
with the offset at which each begins. Against padding all to one square, that takes no memory for what is not there (a
quarter of the square at 640 x 480), and an image of any size is found by the same arithmetic. Against three bytes a
pixel it takes a third more, but one read of four aligned bytes fetches all three channels, where three reads were
needed, and reads are what the time of augmentation goes into.

Only a plan travels, some kilobytes a batch. Targets come from the same plans as those of the loader on the host, by the
same function, so they are equal; they are padded, so that no shape depends on how many objects a batch shows.

Every canvas pixel finds the last tile that covers it and its position there, and reads the source pixels around it:
nothing is painted twice, and nothing depends on the data but the numbers themselves, so that nothing waits for the host
and `torch.compile` makes one kernel of it. Numbers are float32; against OpenCV, which counts in 32nds of a pixel where
images are turned and in 2048ths of a weight elsewhere, results differ by rounding. Coordinates count pixel centres:
canvas pixel X reads source pixel x of it, so that 0 is the middle of the first.

Legend: B images, T targets of a batch, L layers of an image (two with mixup), Q tiles of a layer, S side of the canvas
in pixels, M pixels of all images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, chain, groupby, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data.augment import NO_JITTER, SamplePlans, hue_steps
from anchorite.data.batches import Batch, Capacities, EpochBatches, empty_batch, label_tensors
from anchorite.data.dataset import Record
from anchorite.data.images import FILL
from anchorite.data.prefetch import prefetch
from anchorite.data.samples import SampleKey
from anchorite.data.store import ImageStore, Progress, spendable_memory

Storage = Literal["device", "host"]
DEVICE_SHARE = 0.5  # of the device's free memory; the rest is for the network's activations
_FILL_PIXEL = FILL | FILL << 8 | FILL << 16
_BYTES_A_PIXEL = 4
CAPACITY_STEP = 64
_CAPACITY_MARGIN = 1.25
_PROBED_BATCHES = 32
_PLANNED_AT_ONCE = 64  # samples, from which on NumPy's calls cost less than what they work out
_MAX_KINDS = 8  # kernels compiled: torch refuses more of one function
_MAX_COMPILED_TAPS = 4  # beyond, the unrolled sum takes longer to compile than to run
# Pixels painted by one call of the operators: bounds the memory of their intermediate results, a few dozen numbers a
# pixel, and on a processor keeps them in its cache.
_PIXELS_AT_ONCE = {"cuda": 1 << 22, "cpu": 1 << 17}
# Columns of a tile's numbers.
MAP = slice(0, 6)  # x of X, of Y and of 1; then y of X, Y, 1
SEEN = slice(6, 10)  # left, top, right, bottom: canvas pixels that the tile may cover
DRAWN = slice(10, 14)  # lowest x and y, and the bounds of x and y, that are drawn; of turned tiles
HELD = slice(14, 18)  # lowest x and y, highest x and y: coordinates are held in this range
REACH = slice(18, 20)  # half the width and height, in source pixels, of the area averaged; 0 to interpolate instead
NUM_COLUMNS = 20
MOSAIC_TILES = 4
_EVERYWHERE = np.array([-math.inf, -math.inf, math.inf, math.inf])
_INWARDS = np.array([1, 1, -1, -1])
# OpenCV counts in 32nds of a pixel: nearest to 0 lies what is less than a 64th away.
_EDGE = 1 / 64


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

    def build(self, progress: Progress | None = None) -> None:
        """Decode everything now, on all cores, as `ImageStore.build` does; raises what that raises."""
        where = self.device if self.storage == "device" else "cpu"
        pinned = self.storage == "host" and self.device.type == "cuda"
        pixels = torch.empty(self.num_bytes // _BYTES_A_PIXEL, dtype=torch.int32, device=where, pin_memory=pinned)
        pixels[0] = _FILL_PIXEL

        def save(index: int, image: NDArray[np.uint8]) -> None:
            pixels[self._starts[index] :][: self._areas[index]].copy_(packed(image))

        kept = self.images.decode_all(save, progress)
        self._starts, self._areas = self._starts[kept], self._areas[kept]
        self._pixels = pixels

    def stage(self, indices: Sequence[int]) -> tuple[Tensor, NDArray[np.int64]]:
        """Pixels (M,) int32 on the device, and where each image of `indices` begins there.

        They are the whole store, or copies of these images, one behind the other. -1 stands for no image, and begins at
        the first pixel. The tensor of copies has room for the largest image in each slot, so that its size depends on
        their number alone. The copies are queued on the current stream; nothing waits for them here.
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


class BatchPlan(NamedTuple):
    """What is painted for a batch.

    sources: (B * L * Q) indices of records, in the order of `tiles`; -1 where there is no tile. tiles: (B, L, Q, 20)
    float32, see above. widths: (B, L, Q) int64, row lengths of the sources. colours: (B, 4) float32: share of the
    first layer, hue shift in half degrees, factors of saturation and value. size: S. taps: source pixels read along
    each axis for a canvas pixel, 2 unless areas are averaged. jitters: whether any colour changes.
    """

    sources: tuple[int, ...]
    tiles: Tensor
    widths: Tensor
    colours: Tensor
    size: int
    taps: int
    jitters: bool


def plan_batch(plans: SamplePlans, num_images: int | None = None) -> BatchPlan:
    """The arrays of plans.

    num_images: B, to have more than there are plans: nothing is painted onto the others.
    """
    num_images, num_layers = num_images or len(plans), int(plans.num_layers.max())
    canvases = plans.samples * num_layers + plans.layers
    places = np.arange(len(canvases)) - np.searchsorted(canvases, canvases)  # of each tile among those of its canvas
    # One or a mosaic's four, nothing between, so that few shapes occur and few kernels are compiled.
    shape = (num_images, num_layers, MOSAIC_TILES if places.any() else 1)
    where = canvases * shape[2] + places
    sources, widths = np.full(math.prod(shape), -1), np.zeros(math.prod(shape), np.int64)
    numbers, colours = np.zeros((math.prod(shape), NUM_COLUMNS)), np.ones((num_images, 4))
    sources[where], widths[where], numbers[where] = plans.sources, plans.sizes_wh[:, 0], _tile_numbers(plans)
    colours[:, 1] = 0.0
    colours[: len(plans), 0], colours[: len(plans), 1:] = plans.shares, plans.jitters
    colours[:, 1] = hue_steps(colours[:, 1])
    # In even numbers, so that few different ones occur.
    reach = numbers[:, REACH].max()
    taps = 2 * math.ceil((math.ceil(2 * reach) + 1) / 2) if reach else 2
    jitters = bool((plans.jitters != NO_JITTER).any())
    tables = numbers.astype(np.float32).reshape(*shape, -1), widths.reshape(shape), colours.astype(np.float32)
    tiles, rows, changes = map(torch.from_numpy, tables)
    return BatchPlan(tuple(sources.tolist()), tiles, rows, changes, plans.size, taps, jitters)


def _tile_numbers(plans: SamplePlans) -> NDArray[np.float64]:
    """The columns of tiles, (M, 20)."""
    numbers, (maps, seen, crop, averages) = np.zeros((len(plans.sources), NUM_COLUMNS)), plans.warp
    is_straight, averages = plans.warp.is_straight[:, None], averages[:, None]
    # From maps of the source onto the canvas to those that find a canvas pixel's source.
    # The same of straight maps, signs of zeros included, in a tenth of the time.
    linear = np.eye(2) / maps[:, (0, 1), (0, 1), None] if is_straight.all() else np.linalg.inv(maps[:, :2, :2])
    shifts = np.matmul(linear, (0.5 - maps[:, :2, 2])[..., None]) - 0.5
    numbers[:, MAP] = np.concatenate([linear, shifts], axis=2).reshape(-1, 6)
    numbers[:, SEEN] = seen
    whole = np.concatenate([np.zeros_like(plans.sizes_wh), plans.sizes_wh], axis=1)
    numbers[:, DRAWN] = np.where(is_straight, _EVERYWHERE, whole - _EDGE)
    # An average may take in what lies within the crop, an interpolation what lies between its pixels' centres.
    reach = np.where(averages, np.abs(linear[:, (0, 1, 0, 1), (0, 1, 0, 1)]) / 2, 0.5)
    numbers[:, HELD] = np.where(is_straight, crop - 0.5 + reach * _INWARDS, np.maximum(whole - 1, 0))
    numbers[:, REACH] = np.where(averages, reach[:, :2], 0.0)
    return numbers


Channels = tuple[Tensor, ...]  # red, green, blue: (B, S, S) float32, whole numbers in 0..255
# Where each canvas pixel is read: coordinates x, y, half sides of the area averaged along x and y, start and row length
# of the image; each (B, S, S).
Source = tuple[Tensor, ...]


def render(
    pixels: Tensor, starts: Tensor, tiles: Tensor, widths: Tensor, colours: Tensor, size: int, taps: int, jitters: bool
) -> Tensor:
    """The images (B, 3, S, S) uint8, channels last in memory, of a `BatchPlan`.

    pixels: (M,) int32, see `DeviceStore`; starts: (B, L, Q) int64, where each tile's image begins there.
    """
    canvases = []
    for layer in range(tiles.shape[1]):
        source = find_sources(starts[:, layer], tiles[:, layer], widths[:, layer], size)
        sums = _interpolated(pixels, source) if taps == 2 else _weighted(pixels, source, taps)
        canvases.append(tuple((channel + 0.5).floor() for channel in sums))
    channels = canvases[0]
    for others in canvases[1:]:
        channels = blended(channels, others, colours[:, 0, None, None])
    if jitters:
        hue, saturation, value = (colours[:, column, None, None] for column in (1, 2, 3))
        channels = jittered(channels, hue, saturation, value)
    return torch.stack([channel.to(torch.uint8) for channel in channels], dim=-1).permute(0, 3, 1, 2)


def find_sources(starts: Tensor, tiles: Tensor, widths: Tensor, size: int) -> Source:
    """What each canvas pixel shows: of the last tile that covers it, else the first of all, the canvas's colour."""
    num_images, num_tiles = starts.shape
    across = torch.arange(size, device=tiles.device, dtype=torch.float32)[None, None, :]
    down = torch.arange(size, device=tiles.device, dtype=torch.float32)[None, :, None]
    nothing = tiles.new_zeros((num_images, size, size))
    nowhere = starts.new_zeros((num_images, size, size))
    source: Source = (nothing, nothing, nothing, nothing, nowhere, nowhere)
    for tile in range(num_tiles):
        numbers = tiles[:, tile, :, None, None]
        x_of_x, x_of_y, shift_x, y_of_x, y_of_y, shift_y = numbers[:, MAP].unbind(1)
        x = across * x_of_x + (down * x_of_y + shift_x)
        y = across * y_of_x + (down * y_of_y + shift_y)
        left, top, right, bottom = numbers[:, SEEN].unbind(1)
        lowest_x, lowest_y, bound_x, bound_y = numbers[:, DRAWN].unbind(1)
        covers = ((across >= left) & (across < right)) & ((down >= top) & (down < bottom))
        covers = covers & (x >= lowest_x) & (x < bound_x) & (y >= lowest_y) & (y < bound_y)
        least_x, least_y, most_x, most_y = numbers[:, HELD].unbind(1)
        held = x.clamp(least_x, most_x), y.clamp(least_y, most_y)
        found = (*held, *numbers[:, REACH].unbind(1), starts[:, tile, None, None], widths[:, tile, None, None])
        source = tuple(torch.where(covers, new, old) for new, old in zip(found, source, strict=True))
    return source


def _interpolated(pixels: Tensor, source: Source) -> Channels:
    """Each canvas pixel between the four source pixels around it."""
    x, y, _, _, start, width = source
    column, row = x.floor(), y.floor()
    right, lower = x - column, y - row
    first = start + row.long() * width + column.long()
    upper_pair = _between(_read(pixels, first), _read(pixels, first + 1), right)
    below = first + width
    lower_pair = _between(_read(pixels, below), _read(pixels, below + 1), right)
    return _between(upper_pair, lower_pair, lower)


def _between(first: Channels, second: Channels, share: Tensor) -> Channels:
    return tuple(one + (other - one) * share for one, other in zip(first, second, strict=True))


def _weighted(pixels: Tensor, source: Source, taps: int) -> Channels:
    """Each canvas pixel as a weighted sum of `taps` x `taps` source pixels: averages of areas, or interpolation."""
    x, y, reach_x, reach_y, start, width = source
    columns = _taps(x, reach_x, taps)
    sums: Channels = (torch.zeros_like(x),) * 3
    for row, weight_y in _taps(y, reach_y, taps):
        first = start + row.long() * width
        for column, weight_x in columns:
            weight, values = weight_x * weight_y, _read(pixels, first + column.long())
            sums = tuple(total + value * weight for total, value in zip(sums, values, strict=True))
    return sums


def _taps(centre: Tensor, reach: Tensor, taps: int) -> list[tuple[Tensor, Tensor]]:
    """The pixels to read along one axis and their weights: the overlap with the area averaged, or 1 - distance."""
    averages = reach > 0
    first = torch.where(averages, (centre - reach + 0.5).floor(), centre.floor())
    length = torch.where(averages, 2 * reach, torch.ones_like(reach))
    weighted = []
    for tap in range(taps):
        number = first + tap
        overlap = torch.minimum(centre + reach, number + 0.5) - torch.maximum(centre - reach, number - 0.5)
        nearness = 1 - (centre - number).abs()
        weighted.append((number, torch.where(averages, overlap, nearness).clamp_min(0) / length))
    return weighted


def _read(pixels: Tensor, index: Tensor) -> Channels:
    """The channels of pixels of the flat store; indices beyond its ends have weight 0 and are read at its ends."""
    packed = pixels[index.clamp(0, pixels.shape[0] - 1)]
    return (packed & 255).float(), (packed >> 8 & 255).float(), (packed >> 16 & 255).float()


def blended(first: Channels, second: Channels, share: Tensor) -> Channels:
    """Two canvases blended, `share` of the first (mixup)."""
    return tuple((one * share + other * (1 - share)).round() for one, other in zip(first, second, strict=True))


def jittered(channels: Channels, hue: Tensor, saturation: Tensor, value: Tensor) -> Channels:
    """Colours with the hue (in half degrees) shifted, saturation and value scaled, saturating.

    hue, saturation, value: (B, 1, 1) of each image. Rounded at each step as OpenCV rounds uint8 images, whose quotients
    are tables of 4096ths, and which drops the fraction on the way back.
    """
    red, green, blue = channels
    brightest = torch.maximum(torch.maximum(red, green), blue)
    spread = brightest - torch.minimum(torch.minimum(red, green), blue)
    chroma = _by_4096ths(spread, 255, brightest)
    sixths = torch.where(
        brightest == red,
        green - blue,
        torch.where(brightest == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    angle = (_by_4096ths(sixths, 30, spread) + hue) * (1 / 30)  # in sixths of the circle
    chroma = (chroma * saturation).round().clamp_max(255) * (1 / 255)
    brightest = (brightest * value).round().clamp_max(255) * (1 / 255)
    changed = []
    for turn in (5, 3, 1):  # each channel is a trapezium of the angle
        along = angle + turn
        along = along - 6 * (along / 6).floor()
        lack = torch.minimum(along, 4 - along).clamp(0, 1)
        changed.append((brightest * (1 - chroma * lack) * 255).floor())
    return tuple(changed)


def _by_4096ths(number: Tensor, factor: int, divisor: Tensor) -> Tensor:
    """number * factor / divisor (0 divides as 1) to the nearest whole number, the quotient first to 4096ths."""
    quotient = (factor * 4096 / divisor.clamp_min(1)).round()
    return ((number * quotient + 2048) / 4096).floor()


def in_parts(pixels: Tensor, tables: list[Tensor], plan: BatchPlan) -> Tensor:
    """The images (B, 3, S, S) by operators, a few images at a time; tables: starts, tiles, widths, colours."""
    num_images = max(1, _PIXELS_AT_ONCE.get(pixels.device.type, 1 << 22) // plan.size**2)
    parts = zip(*(table.split(num_images) for table in tables), strict=True)
    numbers = plan.size, plan.taps, plan.jitters
    images = [render(pixels, starts, tiles, widths, colours, *numbers) for starts, tiles, widths, colours in parts]
    return images[0] if len(images) == 1 else torch.cat(images)


def _kind_of(plan: BatchPlan) -> tuple[object, ...]:
    """What the kernel that paints a plan is compiled for, apart from the side of the canvas."""
    return plan.tiles.shape, plan.taps, plan.jitters


def choose_capacities(batches: EpochBatches) -> tuple[Capacities, str]:
    """Rows to pad to, with a margin over the fullest of some batches of the first epoch, and why, in words."""
    samples, probed = batches.samples, islice(filter(None, batches.of_epoch(0)), _PROBED_BATCHES)
    tried = [samples.labels(samples.plan(keys)) for keys in probed]
    of_regions = [one.ignore_regions for one in tried if one.ignore_regions is not None]
    fullest = [max(map(len, rows), default=0) for rows in ([one.rows for one in tried], of_regions)]
    chosen = Capacities(*(_whole_steps(int(count * _CAPACITY_MARGIN)) for count in fullest))
    padded, most = f"targets padded to {chosen.targets} rows", str(fullest[0])
    if samples.parts.regions:
        padded, most = f"{padded}, ignore regions to {chosen.regions}", f"{most} and {fullest[1]}"
    return chosen, (
        f"{padded} (at most {most} in {len(tried)} batches tried; a batch with more gets more, in steps of "
        f"{CAPACITY_STEP})"
    )


def _whole_steps(num_rows: int) -> int:
    return max(1, -(-num_rows // CAPACITY_STEP)) * CAPACITY_STEP


Planned = tuple[BatchPlan, Targets, LabelCoverage | None, Tensor]


class DevicePainter:
    """Paints batches on the device of a store, where images and targets then lie; a thread plans them.

    The batches' samples are of the same records at the same size. compiled: paint by one compiled kernel in place of an
    operator at a time; there is one for each kind of batch that the first and the last epoch show, and operators paint
    what is of another kind. Where the compiler fails, now or later, `painting` says so and operators do all the work.
    empty: a batch of no image. Of the batches' config, what concerns worker processes has no meaning here.
    """

    def __init__(self, batches: EpochBatches, store: DeviceStore, compiled: bool = False) -> None:
        self.batches, self.store = batches, store
        self._capacities, self.capacity_reason = choose_capacities(batches)
        samples = batches.samples
        self.empty = empty_batch(samples.config.image_size, samples.parts, self._capacities).to(store.device)
        self._compiled: Callable[..., Tensor] | None = None
        self.painting = "operator by operator"
        self._kinds: set[tuple[object, ...]] = set()
        if compiled:  # now, so that a compiler that is missing or fails is known, and no epoch waits for it
            try:  # canvases of several sides are one kind, whose kernel is for any side
                self._compiled = torch.compile(render, dynamic=batches.config.multi_scale > 0)
                self.painting = "by a compiled kernel"
            except Exception as error:
                self._give_up_compiling(error)
            for planned in self._one_of_each_kind() if self._compiled else ():
                self._kinds.add(_kind_of(planned[0]))
                self._painted(*planned)

    def _one_of_each_kind(self) -> Iterator[Any]:
        """A planned batch of each kind that some batches of the first and of the last epoch show."""
        num_epochs, seen = self.batches.samples.config.num_epochs or 1, set[tuple[object, ...]]()
        for epoch in sorted({0, num_epochs - 1}):
            for keys in islice(filter(None, self.batches.of_epoch(epoch)), _PROBED_BATCHES):
                planned = self.planned(keys)
                kind = _kind_of(planned[0])
                if kind not in seen and planned[0].taps <= _MAX_COMPILED_TAPS and len(seen) < _MAX_KINDS:
                    seen.add(kind)
                    yield planned

    def _give_up_compiling(self, error: Exception) -> None:
        """Compilers fail in many ways, and none of them may stop a run."""
        self._compiled = None
        first_line = str(error).strip().partition("\n")[0]
        self.painting = f"operator by operator, as compiling failed: {type(error).__name__}: {first_line}"

    def paint(self, batches: Iterator[Any]) -> Generator[Batch, None, None]:
        """The batches of these keys, in order."""
        plans = prefetch(lambda _: self.plan(batches), self.batches.config.prefetch)
        with closing(plans):
            for planned in plans:
                painting, batch = self.painting, self._painted(*planned)
                if self.painting != painting:
                    warnings.warn(f"batches are painted {self.painting}", stacklevel=1)
                yield batch

    def close(self) -> None:
        """Nothing to end: the planning thread ends with its iterator."""

    def plan(self, batches: Iterator[Sequence[SampleKey]]) -> Generator[Planned, None, None]:
        """The batches of these keys as `planned`, in order; small ones some at a time, which costs less."""
        at_once = max(1, _PLANNED_AT_ONCE // self.batches.sizes.largest_part)
        while chunk := list(islice(batches, at_once)):
            for _, alike in groupby(chunk, lambda keys: keys[0].size):
                parts = list(alike)
                plans, ends = self.batches.samples.plan(list(chain(*parts))), accumulate(map(len, parts))
                for keys, end in zip(parts, ends, strict=True):
                    yield self.planned(keys, plans.part(end - len(keys), end))

    def planned(self, keys: Sequence[SampleKey], plans: SamplePlans | None = None) -> Planned:
        """A batch as the thread hands it over, before any pixel is touched: its plan, labels and records' indices.

        In pinned memory for a CUDA device. plans: of its samples, where they have been made.
        """
        samples = self.batches.samples
        plans = samples.plan(keys) if plans is None else plans
        # A compiled kernel is made for one B: the last, smaller batch is filled up, and cut off again.
        num_images = self.batches.sizes.largest_part if self._compiled is not None else None
        plan = plan_batch(plans, num_images)
        labels = samples.labels(plans)
        counts = len(labels.rows), 0 if labels.ignore_regions is None else len(labels.ignore_regions)
        rooms = (max(rows, _whole_steps(count)) for rows, count in zip(self._capacities, counts, strict=True))
        targets, coverage = label_tensors(labels, Capacities(*rooms))
        if self.store.device.type == "cuda":
            tensors = {name: getattr(plan, name).pin_memory() for name in ("tiles", "widths", "colours")}
            plan, targets = plan._replace(**tensors), targets.pin_memory()
            coverage = coverage and coverage.pin_memory()
        return plan, targets, coverage, torch.tensor([key.record_index for key in keys])

    def _painted(self, plan: BatchPlan, targets: Targets, coverage: LabelCoverage | None, indices: Tensor) -> Batch:
        """The batch on the device; all work is queued on the current stream."""
        device = self.store.device
        pixels, offsets = self.store.stage(plan.sources)
        starts = torch.from_numpy(offsets).view(plan.widths.shape)
        if device.type == "cuda":
            starts = starts.pin_memory()
        tables = [table.to(device, non_blocking=True) for table in (starts, plan.tiles, plan.widths, plan.colours)]
        images = None
        if self._compiled is not None and _kind_of(plan) in self._kinds:
            try:
                images = self._compiled(pixels, *tables, plan.size, plan.taps, plan.jitters)
            except Exception as error:
                self._give_up_compiling(error)
        if images is None:
            images = in_parts(pixels, tables, plan)
        return Batch(images[: len(indices)], targets, indices, coverage).to(device, non_blocking=True)
