"""Size and orientation of an image, read from its header without decoding a pixel.

JPEG, PNG, BMP, WebP and TIFF are told apart by content, never by suffix. Sources: ITU T.81 annex B (JPEG markers),
the PNG specification (IHDR, eXIf), RFC 9649 (WebP), TIFF 6.0 section 2, Exif 2.32 section 4.6.4 (orientation, tag 274).
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anchorite.data.shards.format import leads_into_shard, locate_image, open_sample_image
from anchorite.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

MAX_PIXELS = 200_000_000
MAX_FILE_BYTES = 2_000_000_000  # no image of so many pixels is larger, but a file of holes may be

_TAG_WIDTH, _TAG_HEIGHT, _TAG_ORIENTATION = 256, 257, 274
_MAX_CHUNKS = 4096
_NO_SIZE = "a TIFF without width or height, or with two of them; replace the file"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file's header says: stored size in pixels and EXIF orientation (1..8, 1 = upright)."""

    stored_width: int
    stored_height: int
    orientation: int = 1

    @property
    def is_turned(self) -> bool:
        """Whether showing the image upright swaps width and height."""
        return self.orientation >= 5

    @property
    def width(self) -> int:
        """Width in pixels as displayed."""
        return self.stored_height if self.is_turned else self.stored_width

    @property
    def height(self) -> int:
        """Height in pixels as displayed."""
        return self.stored_width if self.is_turned else self.stored_height


def open_regular(path: Path) -> BinaryIO:
    """An image file, or an image in a shard (see `anchorite.data.shards`), opened for reading bytes.

    Raises InputError, which names no file, for a pipe or device, which would block or never end, and for a file of
    more than `MAX_FILE_BYTES`; OSError as `open` does.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    except (NotADirectoryError, FileNotFoundError):
        if not leads_into_shard(path):
            raise
        return open_sample_image(path)
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise InputError("not a regular file; remove it")
    if status.st_size > MAX_FILE_BYTES:
        file.close()
        raise InputError(f"{status.st_size / 1e6:.0f} MB, more than the {MAX_FILE_BYTES // 1_000_000} MB of any image")
    return file


def image_bytes(path: Path) -> int:
    """The length of an image's file, or of an image in a shard; raises what `open_regular` raises."""
    try:
        return path.stat().st_size
    except (NotADirectoryError, FileNotFoundError):
        if not leads_into_shard(path):
            raise
        return locate_image(path)[1]


def copy_image(path: Path, target: Path) -> None:
    """Copy an image's file byte for byte, out of a shard, too; raises what `open_regular` raises."""
    if leads_into_shard(path):
        with open_regular(path) as file:
            target.write_bytes(file.read())
    else:
        shutil.copyfile(path, target)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe waits for its other end


def read_header(path: Path) -> ImageHeader:
    """The header of an image file.

    Raises InputError, whose message names the path, when the file cannot be read, is of another kind, is cut short
    within the header or claims more than `MAX_PIXELS`. Damage behind the header is the decoder's to find.
    """
    try:
        with open_regular(path) as file:
            header = parse_header(file)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the image does not exist") from error
    except OSError as error:
        raise InputError(f"{path}: the image cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if header.stored_width < 1 or header.stored_height < 1:
        raise InputError(f"{path}: the header claims {header.stored_width}x{header.stored_height} pixels")
    if header.stored_width * header.stored_height > MAX_PIXELS:
        raise InputError(
            f"{path}: {header.stored_width}x{header.stored_height} pixels are more than the limit of "
            f"{MAX_PIXELS // 1_000_000} million; shrink the image or remove it"
        )
    return header


def parse_header(file: BinaryIO) -> ImageHeader:
    """The header of an open image file, from its beginning; a size of nought is passed on.

    Raises InputError, which names no file, when it is of another kind or is cut short within the header.
    """
    try:
        return _parse(file)
    except (struct.error, IndexError) as error:
        raise InputError("the image is cut short within its header; copy it again or remove it") from error


def _parse(file: BinaryIO) -> ImageHeader:
    start = file.read(32)
    if start.startswith(b"\xff\xd8\xff"):
        return _parse_jpeg(file)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _parse_png(file)
    if start.startswith(b"BM"):
        return _parse_bmp(start)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _parse_webp(file)
    if start.startswith((b"II*\0", b"MM\0*")):
        return _parse_tiff(file)
    if not start:
        raise InputError("the file is empty; replace or remove it")
    raise InputError(f"not a JPEG, PNG, BMP, WebP or TIFF image (it begins with {start[:8]!r}); convert or remove it")


def _parse_jpeg(file: BinaryIO) -> ImageHeader:
    orientation = 1
    file.seek(2)
    for _ in range(_MAX_CHUNKS):
        marker = _next_jpeg_marker(file)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these stand alone, without a length
            continue
        if marker in (0xD9, 0xDA):
            raise InputError("a JPEG without a frame header; replace the file")
        (length,) = struct.unpack(">H", file.read(2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width = struct.unpack(">BHH", file.read(5))
            return ImageHeader(width, height, orientation)
        if marker == 0xE1 and orientation == 1:
            orientation = _exif_orientation(file.read(length - 2)) if length > 2 else 1
        else:
            file.seek(max(length - 2, 0), 1)
    raise InputError("a JPEG without a frame header; replace the file")


def _next_jpeg_marker(file: BinaryIO) -> int:
    if file.read(1)[0] != 0xFF:
        raise InputError("a damaged JPEG header; replace the file")
    for _ in range(_MAX_CHUNKS):  # any number of fill bytes may precede a marker, but nobody writes so many
        marker = file.read(1)[0]
        if marker != 0xFF:
            return marker
    raise InputError("a damaged JPEG header; replace the file")


def _parse_png(file: BinaryIO) -> ImageHeader:
    file.seek(8)
    length, kind, width, height = struct.unpack(">I4sII", file.read(16))
    if kind != b"IHDR" or length != 13:
        raise InputError("a PNG that does not begin with IHDR; replace the file")
    file.seek(8 + 12 + length)
    for _ in range(_MAX_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        length, kind = struct.unpack(">I4s", chunk)
        if kind == b"eXIf":
            return ImageHeader(width, height, _tiff_orientation(file.read(min(length, 1 << 16))))
        if kind in (b"IDAT", b"IEND"):
            break
        file.seek(length + 4, 1)
    return ImageHeader(width, height)


def _parse_bmp(start: bytes) -> ImageHeader:
    (header_size,) = struct.unpack_from("<I", start, 14)
    if header_size == 12:
        width, height = struct.unpack_from("<HH", start, 18)
    else:
        width, height = struct.unpack_from("<ii", start, 18)
    return ImageHeader(width, abs(height))  # a negative height only says that rows run from top to bottom


def _parse_webp(file: BinaryIO) -> ImageHeader:
    file.seek(4)
    (riff_length,) = struct.unpack("<I", file.read(4))
    file.seek(12)
    size: tuple[int, int] | None = None
    orientation = 1
    for _ in range(_MAX_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            if file.seek(0, 2) < riff_length + 8:  # the EXIF chunk may be in the part that is missing
                raise InputError("a WebP that is cut short; replace the file")
            break
        kind, length = struct.unpack("<4sI", chunk)
        end = file.tell() + length + length % 2
        if size is None:
            body = file.read(10)
            size = _webp_size(kind, body)
            if kind != b"VP8X" or not body[0] & 0x08:  # the flag of the extended layout for an EXIF chunk to come
                break
        elif kind == b"EXIF":
            payload = file.read(min(length, 1 << 16))
            orientation = _exif_orientation(payload) if payload.startswith(b"Exif\0\0") else _tiff_orientation(payload)
            break
        file.seek(end)
    if size is None:
        raise InputError("a WebP without an image chunk; replace the file")
    return ImageHeader(*size, orientation)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    raise InputError(f"a WebP that begins with the chunk {kind!r}; replace the file")


def _parse_tiff(file: BinaryIO) -> ImageHeader:
    def read_at(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    tags, repeated = _first_directory(read_at)
    # Of two widths the decoder might take the one that this program has not looked at.
    if not {_TAG_WIDTH, _TAG_HEIGHT} <= tags.keys() - repeated:
        raise InputError(_NO_SIZE)
    orientation = tags.get(_TAG_ORIENTATION, 1)
    return ImageHeader(tags[_TAG_WIDTH], tags[_TAG_HEIGHT], orientation if 1 <= orientation <= 8 else 1)


def _exif_orientation(payload: bytes) -> int:
    """Orientation in the body of a JPEG APP1 segment; 1 when it is no Exif segment."""
    return _tiff_orientation(payload[6:]) if payload.startswith(b"Exif\0\0") else 1


def _tiff_orientation(data: bytes) -> int:
    """Orientation in a TIFF structure held in memory; 1 when absent or damaged, as viewers do."""
    if not data.startswith((b"II*\0", b"MM\0*")):
        return 1
    try:
        tags, _ = _first_directory(lambda offset, length: data[offset : offset + length])
    except struct.error:
        return 1
    orientation = tags.get(_TAG_ORIENTATION, 1)
    return orientation if 1 <= orientation <= 8 else 1


def _first_directory(read_at: Callable[[int, int], bytes]) -> tuple[dict[int, int], set[int]]:
    """The whole-number tags of a TIFF's first directory that hold a single value, and which tags stand there twice."""
    order = "<" if read_at(0, 2) == b"II" else ">"
    (offset,) = struct.unpack(order + "I", read_at(4, 4))
    (num_entries,) = struct.unpack(order + "H", read_at(offset, 2))
    tags: dict[int, int] = {}
    seen: set[int] = set()
    repeated: set[int] = set()
    for index in range(min(num_entries, _MAX_CHUNKS)):
        entry = read_at(offset + 2 + 12 * index, 12)
        tag, kind, count = struct.unpack_from(order + "HHI", entry)
        (repeated if tag in seen else seen).add(tag)
        if count == 1 and kind in (3, 4):
            (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), entry, 8)
    return tags, repeated
