"""The one image decoder: training, validation, prediction and inspection all see the same pixels.

Decoding is OpenCV's; sizes, orientation and completeness are checked here first, because OpenCV reports some damage not
at all and other damage only on stderr.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anchorite.data.headers import MAX_PIXELS, ImageHeader, open_regular, parse_header
from anchorite.errors import InputError, StorageError

DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ENTROPY_LOOKAHEAD = bytes(8)  # libjpeg fills a 64-bit register before it decodes the last block
_END_OF_IMAGE = b"\xff\xd9"
_NOISE = bytes(range(1, 255)) * 8
_ENTROPY_NOISE = _NOISE + b"".join(bytes([0xFF, restart]) + _NOISE for restart in range(0xD0, 0xD8))


def decode_image(source: Path | str | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The image as displayed: (H, W, 3) uint8 RGB, contiguous.

    source: a path, or the bytes of an image file (`name` then stands for it in messages). Exif orientation is applied.
    Grey, palette and CMYK images become RGB; 16 bits a channel become 8 (the high byte); alpha is dropped, the colours
    under it kept (TIFF alone: composited on black, as libtiff does). Of several pictures in a file: the first.

    Raises InputError naming the file when it is missing, empty, no image, truncated, damaged or larger than
    `max_pixels` (checked before decoding); StorageError when it cannot be read. A progressive JPEG cut inside its last
    refinement scan and closed with an end marker is the one truncation that passes: it lost only detail.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _read_file(Path(source), name)
    header = _checked_header(data, name, max_pixels)
    image = _decode_complete(data, name)
    if not data.startswith((b"II", b"MM")):  # libtiff has already turned a TIFF, whatever the flags say
        image = apply_orientation(image, header.orientation)
    if image.shape[:2] != (header.height, header.width):
        raise InputError(
            f"{name}: its header says {header.width}x{header.height} pixels, its data {image.shape[1]}x"
            f"{image.shape[0]}: the file is damaged. Export it again or remove it"
        )
    return image


def apply_orientation(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A stored image (H, W, 3) as Exif orientation 1..8 wants it displayed, contiguous."""
    if orientation >= 5:  # 5 is the transpose; 6, 7 and 8 are flips of it, as 2, 3 and 4 are flips of 1
        image = np.ascontiguousarray(cv2.transpose(image))
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else np.asarray(cv2.flip(image, flip), np.uint8)


def _read_file(path: Path, name: str) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise _unreadable(error, name) from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _unreadable(error: OSError, name: str) -> InputError | StorageError:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return InputError(f"{name}: there is no such image file. Check the path")
    return StorageError(f"{name}: cannot be read: {error.strerror or error}. Check the permissions and the disk")


def _checked_header(data: bytes, name: str, max_pixels: int) -> ImageHeader:
    """The header of an image file, or InputError when there is none or decoding would take too much memory."""
    try:
        header = parse_header(io.BytesIO(data))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    width, height = header.stored_width, header.stored_height
    if width < 1 or height < 1:
        raise InputError(f"{name}: the header claims {width}x{height} pixels. Export the image again or remove it")
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height} pixels are more than the limit of {max_pixels / 1e6:g} million; nothing was "
            "decoded. Shrink the image or remove it"
        )
    return header


def _decode_complete(data: bytes, name: str) -> NDArray[np.uint8]:
    """The stored image, or InputError when the file holds less than all of it."""
    decode = _decode_jpeg if data.startswith(b"\xff\xd8") else _decode
    image = None if _is_cut(data) else decode(data)
    if image is None:
        raise InputError(f"{name}: the image is truncated or damaged. Copy or export it again, or remove it")
    return image


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), DECODE_FLAGS)
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
    end at the end of the buffer, it stops and says so. So the end marker is kept from it, which turns a file that was
    cut and closed with a marker into one that fails. Several scans (progressive files) need the marker; for them
    the list of scans must be complete.
    """
    scans = _jpeg_scans(data)
    if scans is None:
        return None
    end, is_progressive, has_all_scans = scans
    if not has_all_scans:
        return None
    if is_progressive:
        return _decode(data)
    scan = data[:end].rstrip(b"\xff")  # fill bytes, or half of what followed
    image = _decode(scan + _ENTROPY_LOOKAHEAD)
    return _decode_against_noise(scan) if image is None else image


def _decode_against_noise(scan: bytes) -> NDArray[np.uint8] | None:
    """The pixels if more entropy-coded data before the end marker would not change them, so that none was missing.

    The slow way, for decoders that cannot stop in mid-file (arithmetic coding) and for files that seem cut.
    """
    image, noised = _decode(scan + _END_OF_IMAGE), _decode(scan + _ENTROPY_NOISE + _END_OF_IMAGE)
    return image if image is not None and noised is not None and np.array_equal(image, noised) else None


def _jpeg_scans(data: bytes) -> tuple[int, bool, bool] | None:
    """Where a JPEG's end marker stands, whether it has several scans, and whether they refine every coefficient.

    None when there is no end marker: a thumbnail's, within an Exif segment, does not count.
    """
    position, num_scans, is_progressive = 2, 0, False
    components: set[int] = set()
    finished: dict[int, set[int]] = {}
    while found := _JPEG_MARKER.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        if marker == 0xD9:
            num_wanted = 64 if is_progressive else 1
            is_complete = all(len(finished.get(component, ())) == num_wanted for component in components)
            return found.start(), is_progressive or num_scans > 1, bool(components) and is_complete
        if marker == 0x01 or position + 2 > len(data):
            continue
        segment = data[position + 2 : position + struct.unpack_from(">H", data, position)[0]]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            is_progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            components = set(segment[6 : 6 + 3 * segment[5] : 3]) if len(segment) > 5 else set()
        elif marker == 0xDA and len(segment) >= 6:
            num_scans += 1
            start, stop, approximation = segment[-3:]
            coefficients = range(start, stop + 1) if is_progressive else range(1)
            if not is_progressive or approximation & 15 == 0:  # low bit reached
                for component in segment[1:-3:2]:
                    finished.setdefault(component, set()).update(coefficients)
        position += len(segment) + 2
    return None
