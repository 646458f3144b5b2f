"""Decoded images where the accelerator can read them: in its own memory, or in pinned memory beside it.

All images lie one behind the other in one flat tensor, an int32 a pixel (red, green and blue from the lowest byte up),
with the place where each begins. Against padding all to one square, that takes no memory for what is not there (a
quarter of the square at 640 x 480), and an image of any size is found by the same arithmetic. Against three bytes a
pixel it takes a third more, but one read of four aligned bytes fetches all three channels, where three reads were
needed, and reads are what the time of augmentation goes into.

Legend: M pixels of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.data.images import FILL
from anchorite.data.records import Record
from anchorite.data.store import ImageStore, Progress, spendable_memory

Storage = Literal["device", "host"]
DEVICE_SHARE = 0.5  # of the device's free memory; the rest is for the network's activations
_FILL_PIXEL = FILL | FILL << 8 | FILL << 16
_BYTES_A_PIXEL = 4


class PlaceChoice(NamedTuple):
    """Where images are kept ("device" or "host"; None: they fit nowhere), and why, in words."""

    place: Storage | None
    reason: str


def choose_storage(num_bytes: int, device: torch.device, share: float = DEVICE_SHARE) -> PlaceChoice:
    """Where `num_bytes` of images go, by what is free now: see `place_for`."""
    ram = spendable_memory()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else ram
    return place_for(num_bytes, str(device), free, ram, share)


def place_for(
    num_bytes: int, device_name: str, free_device: int | None, free_ram: int | None, share: float
) -> PlaceChoice:
    """On the device when they take at most `share` of its free bytes, else in RAM when they fit there.

    None for a number of free bytes that is not known, which counts as enough. Pinned memory is taken in powers of two.
    """
    pinned_bytes = 1 << max(0, num_bytes - 1).bit_length()
    size = f"{num_bytes / 1e9:.2f} GB of images"
    on_device = "" if free_device is None else f"{share:.0%} of the {free_device / 1e9:.2f} GB free on {device_name}"
    if free_device is None or num_bytes <= share * free_device:
        return PlaceChoice("device", f"{size} on {device_name}" + (f", within {on_device}" if on_device else ""))
    if free_ram is None or pinned_bytes <= free_ram:
        return PlaceChoice("host", f"{size} in pinned memory, copied batch by batch: more than {on_device}")
    return PlaceChoice(
        None, f"{size} are more than {on_device} and than the {free_ram / 1e9:.2f} GB of memory to spare"
    )


class Staged(NamedTuple):
    """Images that a batch may read: pixels (M,) int32 on the device, and starts, where each one asked for begins."""

    pixels: Tensor
    starts: NDArray[np.int64]


class DeviceStore:
    """The images of `records`, resized so that the longer side is `long_side` pixels, for painting on `device`.

    place: "device" keeps them there; "host" in this machine's memory (pinned for a CUDA device), from where each batch
    copies those it shows; it may be set until `build` is called, once, before use. The first pixel is not an image's:
    it has the canvas's colour. skip_bad: as of an ImageStore, which `images` is.
    """

    def __init__(
        self,
        records: Sequence[Record],
        long_side: int,
        device: torch.device | str,
        place: Storage = "device",
        skip_bad: bool = False,
    ) -> None:
        self.images = ImageStore(records, long_side, "none", skip_bad=skip_bad)
        self.device, self.place = torch.device(device), place
        self._areas = np.array([height * width for height, width in self.images.sizes_hw], np.int64)
        ends = 1 + np.cumsum([0, *self._areas], dtype=np.int64)
        self._starts, self._num_pixels = ends[:-1], int(ends[-1])
        self._largest = int(self._areas.max(initial=0))
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_bytes(self) -> int:
        """Bytes that all images take together."""
        return self._num_pixels * _BYTES_A_PIXEL

    def build(self, progress: Progress | None = None) -> None:
        """Decode everything now, on all cores, as `ImageStore.build` does; raises what that raises."""
        num_pixels, is_cuda = self._num_pixels, self.device.type == "cuda"
        if self.place == "device":
            pixels = torch.empty(num_pixels, dtype=torch.int32, device=self.device)
        else:
            pixels = torch.empty(num_pixels, dtype=torch.int32, pin_memory=is_cuda)
        pixels[0] = _FILL_PIXEL

        def keep(index: int, image: NDArray[np.uint8]) -> None:
            pixels[self._starts[index] :][: self._areas[index]].copy_(packed(image))

        kept = self.images.decode_all(keep, progress)
        self._starts, self._areas = self._starts[kept], self._areas[kept]
        self._pixels = pixels

    def stage(self, indices: Sequence[int]) -> Staged:
        """The images of `indices` on the device: all that are kept there, or copies of these, behind one another.

        -1 stands for no image, and begins at the first pixel. The tensor of copies has room for the largest image in
        each place, so that its size depends on their number alone. The copies are queued on the current stream;
        nothing waits for them here.
        """
        assert self._pixels is not None, "build() the store before asking for images"
        chosen = np.asarray(indices, np.int64)
        if self.place == "device":
            return Staged(self._pixels, np.where(chosen < 0, 0, self._starts[chosen]))
        buffer = torch.empty(1 + len(indices) * self._largest, dtype=torch.int32, device=self.device)
        buffer[:1].copy_(self._pixels[:1], non_blocking=True)
        starts = np.where(chosen < 0, 0, 1 + np.arange(len(indices), dtype=np.int64) * self._largest)
        for start, index in zip(starts.tolist(), indices, strict=True):
            if index >= 0:
                image = self._pixels[self._starts[index] :][: self._areas[index]]
                buffer[start : start + len(image)].copy_(image, non_blocking=True)
        return Staged(buffer, starts)


def packed(image: NDArray[np.uint8]) -> Tensor:
    """An image (H, W, 3) uint8 as (H * W,) int32, its channels from the lowest byte up."""
    red, green, blue = (torch.from_numpy(image[..., channel].astype(np.int32)).flatten() for channel in range(3))
    return red | green << 8 | blue << 16
