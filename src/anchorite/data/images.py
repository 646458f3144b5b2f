"""Pixels of images: the one decoder, the same for training, validation, prediction and inspection, and letterboxing.

Decoding is OpenCV's; sizes, orientation and completeness are checked here first, because OpenCV reports some damage not
at all and other damage only on stderr. Letterboxing scales an image to fit a given size, its aspect kept, and centres
it on grey. Coordinates are continuous: pixel i covers i..i+1. Frames: `source`, pixels of the image as displayed;
`network`, pixels of the letterboxed image.

Legend: H, W height and width of an image in pixels.
"""

from __future__ import annotations

import io
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anchorite.data.dataset import Record
from anchorite.data.headers import MAX_PIXELS, open_image, parse_header
from anchorite.errors import InputError, StorageError
from anchorite.files import StrPath

FILL = 114  # grey level around a letterboxed image
_GREY_STEP = 8
Boxes = TypeVar("Boxes", NDArray[np.float64], NDArray[np.float32], Tensor)
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ENTROPY_LOOKAHEAD = bytes(8)  # libjpeg fills a 64-bit register before it decodes the last block


def decode_image(source: StrPath | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The image as displayed: (H, W, 3) uint8 RGB, contiguous.

    source: a path, or the bytes of an image file (`name` then stands for it in messages). Exif orientation is applied.
    Grey, palette and CMYK images become RGB; 16 bits a channel become 8 (the high byte); alpha is dropped, the colours
    under it kept (TIFF alone: composited on black, as libtiff does). Of several pictures in a file: the first.

    Raises InputError naming the file when it is missing, empty, no image, truncated, damaged or larger than
    `max_pixels` (checked before decoding); StorageError when it cannot be read. A progressive JPEG cut inside its last
    refinement scan and closed with an end marker is the one truncation that passes: it lost only detail.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    try:
        if isinstance(source, bytes):
            data = source
        else:
            with open_image(Path(source)) as file:
                data = file.read()
        header = parse_header(io.BytesIO(data), max_pixels)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{name}: there is no such image file. Check the path") from error
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{name}: cannot be read: {reason}. Check the permissions and the disk") from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    image = _decode_jpeg(data) if data.startswith(b"\xff\xd8") else _decode(data)
    if image is None:
        raise InputError(f"{name}: the image is truncated or damaged. Copy or export it again, or remove it")
    if not data.startswith((b"II", b"MM")):  # libtiff has already turned a TIFF, whatever the flags say
        if header.is_turned:  # 5 is the transpose; 6, 7 and 8 are flips of it, as 2, 3 and 4 are flips of 1
            image = np.ascontiguousarray(cv2.transpose(image), np.uint8)
        flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(header.orientation)
        image = image if flip is None else np.asarray(cv2.flip(image, flip), np.uint8)
    if image.shape[:2] != (header.height, header.width):
        raise InputError(
            f"{name}: its header says {header.width}x{header.height} pixels, its data {image.shape[1]}x"
            f"{image.shape[0]}: the file is damaged. Export it again or remove it"
        )
    return image


def is_grey(image: NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, 3) shows no colour at any of an even choice of its pixels."""
    some = image[::_GREY_STEP, ::_GREY_STEP]
    return bool((some == some[..., :1]).all())


def value_range(path: Path) -> tuple[int, int] | None:
    """The least and the greatest value of an image as stored, with up to 16 bits; None where it is damaged."""
    try:
        with open_image(path) as file:
            data = np.frombuffer(file.read(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, InputError, cv2.error):
        return None
    return None if image is None else (int(image.min()), int(image.max()))


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    if _is_cut(data):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if image is None else np.ascontiguousarray(image, np.uint8)


def _is_cut(data: bytes) -> bool:
    """Whether a PNG lacks its end chunk or a WebP part of its stated length (OpenCV itself checks the other kinds)."""
    if data.startswith(b"\x89PNG"):
        position = 8
        while position + 12 <= len(data):
            length, chunk = struct.unpack_from(">I4s", data, position)
            if chunk == b"IEND":
                return False
            position += 12 + length
        return True
    return data.startswith(b"RIFF") and int(struct.unpack_from("<I", data, 4)[0]) + 8 > len(data)


def _decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG, or None unless every one of them comes from its data.

    When entropy-coded data end early at a marker, libjpeg fills the rest with grey and only warns on stderr; when they
    end at the end of the buffer, it stops and says so. So the end marker is removed, which turns a file that was
    cut and closed with a marker into one that fails. Several scans (progressive files) and arithmetic coding need the
    marker; for them the list of scans must be complete, as it must be for all.
    """
    position, num_scans, is_progressive, is_arithmetic = 2, 0, False, False
    finished: dict[int, set[int]] = {}  # coefficients, by component
    while found := _JPEG_MARKER.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        if marker == 0xD9:
            num_wanted = 64 if is_progressive else 1
            if not finished or any(len(done) != num_wanted for done in finished.values()):
                return None
            if is_progressive or is_arithmetic or num_scans > 1:
                return _decode(data)
            return _decode(data[: found.start()].rstrip(b"\xff") + _ENTROPY_LOOKAHEAD)
        if marker == 0x01 or position + 2 > len(data):
            continue
        segment = data[position + 2 : position + struct.unpack_from(">H", data, position)[0]]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            is_progressive, is_arithmetic = marker in (0xC2, 0xC6, 0xCA, 0xCE), marker > 0xC8
            finished = {component: set() for component in segment[6 : 6 + 3 * segment[5] : 3]} if segment[5:] else {}
        elif marker == 0xDA and len(segment) >= 6:
            num_scans += 1
            start, stop, approximation = segment[-3:]
            if not is_progressive or approximation & 15 == 0:  # low bit reached
                for component in finished.keys() & set(segment[1:-3:2]):
                    finished[component].update(range(start, stop + 1) if is_progressive else (0,))
        position += len(segment) + 2  # past an Exif segment, in which a thumbnail has an end marker of its own
    return None


class ChangedImageError(InputError):
    """An image is not of the size that it had when the dataset was read."""


def decode_resized(record: Record, size_hw: tuple[int, int], data: bytes | None = None) -> NDArray[np.uint8]:
    """The image of a record at a (height, width); data: its file's bytes, read from the file where None.

    Raises what `decode_image` raises, and ChangedImageError when the image has another size than its record.
    """
    image = decode_image(record.path if data is None else data, name=str(record.path))
    if image.shape[:2] != (record.height, record.width):
        raise ChangedImageError(
            f"{record.path}: is {image.shape[1]}x{image.shape[0]} pixels but was {record.width}x{record.height} "
            "when the dataset was read. Start again, so that the labels are read again"
        )
    return resized(image, size_hw)


@dataclass(frozen=True, slots=True)
class LetterboxTransform:
    """Where the pixels of an image went: scaled from `source_size_hw` to `resized_size_hw`, centred in `size_hw`.

    All sizes are (height, width) in whole pixels. The two scales differ from each other by the rounding of the resized
    size alone; boxes use exactly the scales that the pixels had.
    """

    source_size_hw: tuple[int, int]
    resized_size_hw: tuple[int, int]
    size_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Network pixels a source pixel, along x and y."""
        return self.resized_size_hw[1] / self.source_size_hw[1], self.resized_size_hw[0] / self.source_size_hw[0]

    @property
    def pad_left_top(self) -> tuple[int, int]:
        """Whole pixels of padding before the image; what cannot be halved goes behind it."""
        return (self.size_hw[1] - self.resized_size_hw[1]) // 2, (self.size_hw[0] - self.resized_size_hw[0]) // 2

    def to_network(self, boxes_xyxy: Boxes) -> Boxes:
        """Boxes (..., 4) in source pixels as boxes in network pixels."""
        (scale_x, scale_y), (left, top) = self.scale_xy, self.pad_left_top
        moved = boxes_xyxy * 1.0  # a new array or tensor, floating
        moved[..., 0::2] = moved[..., 0::2] * scale_x + left
        moved[..., 1::2] = moved[..., 1::2] * scale_y + top
        return moved

    def to_source(self, boxes_xyxy: Boxes) -> Boxes:
        """Boxes (..., 4) in network pixels as boxes in source pixels, not clipped: undoes `to_network`."""
        (scale_x, scale_y), (left, top) = self.scale_xy, self.pad_left_top
        moved = boxes_xyxy * 1.0
        moved[..., 0::2] = (moved[..., 0::2] - left) / scale_x
        moved[..., 1::2] = (moved[..., 1::2] - top) / scale_y
        return moved


def letterbox_transform(source_size_hw: tuple[int, int], size_hw: tuple[int, int]) -> LetterboxTransform:
    """The transform that fits an image of one (height, width) into another, growing or shrinking it."""
    (source_height, source_width), (height, width) = source_size_hw, size_hw
    ratio = min(height / source_height, width / source_width)
    resized = (min(height, max(1, round(source_height * ratio))), min(width, max(1, round(source_width * ratio))))
    return LetterboxTransform(source_size_hw, resized, size_hw)


def letterbox(
    image: NDArray[np.uint8], size_hw: tuple[int, int], fill: int = FILL
) -> tuple[NDArray[np.uint8], LetterboxTransform]:
    """An image (H, W, 3) scaled into `size_hw`, centred on `fill`, and the transform of its boxes."""
    transform = letterbox_transform(image.shape[:2], size_hw)
    canvas = np.empty((*size_hw, 3), np.uint8)
    draw_letterboxed(image, transform, canvas, fill)
    return canvas, transform


def draw_letterboxed(
    image: NDArray[np.uint8], transform: LetterboxTransform, canvas: NDArray[np.uint8], fill: int = FILL
) -> None:
    """Write an image over all of `canvas` (of the transform's `size_hw`); it may come at any resolution, as stored."""
    height, width = transform.resized_size_hw
    left, top = transform.pad_left_top
    canvas[:top], canvas[top + height :] = fill, fill
    canvas[top : top + height, :left], canvas[top : top + height, left + width :] = fill, fill
    canvas[top : top + height, left : left + width] = resized(image, transform.resized_size_hw)


def resized(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """An image (H, W, 3) at another (height, width): areas averaged when it shrinks, linear when it grows."""
    height, width = image.shape[:2]
    if (height, width) == size_hw:
        return image
    is_smaller = size_hw[0] * size_hw[1] < height * width
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=method), np.uint8)


def rectangular_size(source_size_hw: tuple[int, int], long_side: int, stride: int) -> tuple[int, int]:
    """The smallest (height, width), multiples of `stride`, that hold an image scaled to a long side of `long_side`."""
    # Of the sides as they are, not as they are rounded: into one rounded down to a multiple of the stride the image
    # would only fit at a smaller scale.
    longest = max(source_size_hw)
    height, width = (-(-side * long_side // (longest * stride)) * stride for side in source_size_hw)
    return height, width


def fitted_size(source_size_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(height, width) of an image scaled, its aspect kept, so that the longer side is `long_side`."""
    return letterbox_transform(source_size_hw, (long_side, long_side)).resized_size_hw
