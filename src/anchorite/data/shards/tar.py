"""Samples in a tar file: where each one lies, and its bytes, from files that strangers may have written.

A shard is an uncompressed ustar archive (POSIX.1-1988) of pairs, KEY.json and KEY.SUFFIX, in WebDataset's naming. The
key is the shard's own name and the sample's position, so that each member says where it belongs. Links, folders,
extended headers and every other order are refused. The CRC-32 of each member stands in its header as the owner's name,
which the header's checksum covers: not a bit of a sample can flip unseen.

Legend: N samples of a shard.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.errors import InputError, StorageError
from anchorite.reading import shorten

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "png", "bmp", "webp", "tif")
MAX_SAMPLES = 1_000_000  # of a shard
MAX_LABEL_BYTES = 16_000_000
MAX_IMAGE_BYTES = 2_000_000_000
_NUM_KEPT = 8  # tables of shards that are read at random
_OCTAL = re.compile(rb"[0-7]+[ \0]*")
_POSITION = re.compile("[0-9]{6,7}")
_CHECK = re.compile(rb"crc32-([0-9a-f]{8})")
REMEDY = "copy it again, or write the shards anew with anchorite convert"


class Member(NamedTuple):
    """One file within a shard: where its bytes begin, how many they are, and their CRC-32."""

    start: int
    num_bytes: int
    crc: int


class Sample(NamedTuple):
    """Where a sample's label and image lie; suffix: number of the image's kind in `IMAGE_SUFFIXES`."""

    label: Member
    image: Member
    suffix: int


class ShardTable(NamedTuple):
    """rows: (N, 7) int64, the numbers of each whole `Sample`; damage: what ended the reading too early, or nothing."""

    rows: NDArray[np.int64]
    damage: str

    def sample(self, position: int) -> Sample:
        """The sample at a position, from 0."""
        return as_sample(self.rows[position].tolist())


def as_sample(row: list[int]) -> Sample:
    """A row of a table by its names."""
    return Sample(Member(*row[0:3]), Member(*row[3:6]), row[6])


def sample_key(shard: Path, position: int) -> str:
    """What the members of a sample are called, without suffix: "train-000003-000017"."""
    return f"{shard.stem}-{position:06d}"


def sample_path(shard: Path, position: int, suffix: int) -> Path:
    """The path of an image in a shard, as if the tar file were a folder; `open_sample_image` reads it."""
    return shard / f"{sample_key(shard, position)}.{IMAGE_SUFFIXES[suffix]}"


def position_of(path: Path) -> int:
    """The position of the sample that a `sample_path` names; -1 where it can be none."""
    number = path.stem.rpartition("-")[2]
    return int(number) if _POSITION.fullmatch(number) else -1


def member_header(name: str, content: bytes) -> bytes:
    """The header of one file, the same for the same content whoever writes it and when."""
    info = tarfile.TarInfo(name)
    info.size, info.uname = len(content), f"crc32-{zlib.crc32(content):08x}"
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def padding(num_bytes: int) -> bytes:
    """What fills the last block of a file."""
    return bytes(-num_bytes % BLOCK)


def open_shard(path: Path) -> BinaryIO:
    """A shard opened for reading, unbuffered; InputError where it is missing or no regular file, else StorageError."""
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    except FileNotFoundError as error:
        raise InputError(f"{path}: the shard is missing; {REMEDY}") from error
    except OSError as error:
        raise StorageError(f"{path}: the shard cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{path}: the shard is not a regular file; {REMEDY}")
    return file


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe waits for its other end


def read_table(path: Path, num_samples: int | None = None) -> ShardTable:
    """Where each sample of a shard lies, from its headers alone.

    num_samples: how many there must be. Damage does not raise: the samples before it are whole. Raises what
    `open_shard` raises, and StorageError when the disk fails.
    """
    rows: list[tuple[int, ...]] = []
    most = MAX_SAMPLES if num_samples is None else num_samples
    with open_shard(path) as file:
        num_bytes, offset, damage = os.fstat(file.fileno()).st_size, 0, ""
        try:
            while (found := _read_pair(file, path, offset, num_bytes, len(rows))) is not None:
                if len(rows) == most:
                    damage = f"byte {offset}: there are more than the {most} samples that it should hold"
                    break
                (sample, offset) = found
                rows.append((*sample.label, *sample.image, sample.suffix))
        except InputError as error:
            damage = str(error)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not damage and num_samples is not None and len(rows) < num_samples:
        damage = f"byte {offset}: the shard ends after {len(rows)} of {num_samples} samples"
    return ShardTable(np.array(rows, np.int64).reshape(-1, 7), damage)


def _read_pair(file: BinaryIO, path: Path, offset: int, end: int, position: int) -> tuple[Sample, int] | None:
    """The sample whose first header is at `offset`, and where the next one's is; None at the end of the archive.

    Raises InputError, which names the byte and not the file.
    """
    key = sample_key(path, position)
    label = _read_header(file, offset, end, MAX_LABEL_BYTES)
    if label is None:
        return None
    if label[0] != f"{key}.json":
        raise InputError(f"byte {offset}: {key}.json is wanted here, not {shorten(label[0])}")
    offset = _next_header(label[1])
    image = _read_header(file, offset, end, MAX_IMAGE_BYTES)
    name, _, suffix = ("", "", "") if image is None else image[0].partition(".")
    if image is None or name != key or suffix not in IMAGE_SUFFIXES:
        found = "the end" if image is None else shorten(image[0])
        raise InputError(f"byte {offset}: the image of {key} is wanted here, not {found}")
    return Sample(label[1], image[1], IMAGE_SUFFIXES.index(suffix)), _next_header(image[1])


def _next_header(member: Member) -> int:
    return member.start + -(-member.num_bytes // BLOCK) * BLOCK


def _read_header(file: BinaryIO, offset: int, end: int, most: int) -> tuple[str, Member] | None:
    """Name and place of the member whose header is at `offset`; None for the block of zeros that ends an archive."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise InputError(f"byte {offset}: the shard is cut short")
    if block == bytes(BLOCK):
        return None
    stated = _octal(block[148:156])
    if block[257:265] != b"ustar\x0000" or stated != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise InputError(f"byte {offset}: not the header of a file, or a damaged one")
    if block[156:157] != b"0" or block[345] != 0:
        raise InputError(f"byte {offset}: a member of a kind that no shard has (type {block[156:157]!r})")
    check, num_bytes = _CHECK.fullmatch(block[265:297].rstrip(b"\0")), _octal(block[124:136])
    if check is None or num_bytes is None:
        raise InputError(f"byte {offset}: a header without size or CRC-32")
    if num_bytes > most:
        raise InputError(f"byte {offset}: claims {num_bytes} bytes, more than the {most} that are read")
    if offset + BLOCK + num_bytes > end:
        raise InputError(f"byte {offset}: claims {num_bytes} bytes, but the shard is cut short before")
    name = block[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
    return name, Member(offset + BLOCK, num_bytes, int(check[1], 16))


def _octal(field: bytes) -> int | None:
    return int(field.rstrip(b" \0"), 8) if _OCTAL.fullmatch(field) else None


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The bytes of a member; InputError, which names the byte and not the file, where they are not what was written.

    OSError as reading does.
    """
    file.seek(member.start)
    content = file.read(member.num_bytes)
    while len(content) < member.num_bytes and (more := file.read(member.num_bytes - len(content))):
        content += more  # a single read stops at 2 GB, or at a signal
    if zlib.crc32(content) != member.crc or len(content) < member.num_bytes:
        raise InputError(f"damaged: byte {member.start} of the shard and those behind it are not as written; {REMEDY}")
    return content


def leads_into_shard(path: Path) -> bool:
    """Whether a path goes on below a tar file."""
    return path.parent.suffix == ".tar" and path.parent.is_file()


def locate_image(path: Path) -> Member:
    """Where in its shard the image lies that a `sample_path` names.

    InputError, which does not name the path, where there is none; OSError as reading does.
    """
    status = path.parent.stat()
    table = kept_table(path.parent, status.st_size, status.st_mtime_ns)
    position = position_of(path)
    sample = table.sample(position) if 0 <= position < len(table.rows) else None
    if sample is None or path != sample_path(path.parent, position, sample.suffix):
        raise InputError(f"the shard holds no such image{table.damage and f' ({table.damage})'}; {REMEDY}")
    return sample.image


def open_sample_image(path: Path) -> BinaryIO:
    """The image that a `sample_path` names, as an open file; raises what `locate_image` and `read_member` raise."""
    member = locate_image(path)
    with open_shard(path.parent) as file:
        return io.BytesIO(read_member(file, member))


@lru_cache(_NUM_KEPT)
def kept_table(shard: Path, num_bytes: int, modified_ns: int) -> ShardTable:
    """`read_table`, kept for the next who asks while the file is the same."""
    return read_table(shard)
