"""The files of a dataset in shards: tar files of samples, which strangers may have written, and shards.json.

A shard is an uncompressed ustar archive (POSIX.1-1988) of pairs, KEY.json and KEY.SUFFIX, in WebDataset's naming. The
key is the shard's own name and the sample's position, so that each member says where it belongs. Links, folders,
extended headers and every other order are refused. The CRC-32 of each member stands in its header as the owner's name,
which the header's checksum covers: not a bit of a sample can flip unseen. Members are read at their offsets, found once
a shard from its headers; tarfile makes and parses each header.

shards.json is what is known without opening a shard. It grows with the number of shards, not of images: class names,
counts, a bounded sample of the boxes' sides, and name, length and SHA-256 of each shard.

Legend: N samples of a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from anchorite.errors import InputError, StorageError
from anchorite.reading import open_regular, read_json, shorten, validation_faults

MANIFEST = "shards.json"
VERSION = 2  # of the list; 1 where no label has weights, sources or ignored regions without a class
BLOCK = tarfile.BLOCKSIZE
SAMPLE_SUFFIXES = ("jpg", "png", "bmp", "webp", "tif")
_STARTS = (b"\xff\xd8", b"\x89PNG", b"BM", b"RIFF", b"")  # of the files that get these suffixes
MAX_SAMPLES = 1_000_000  # of a shard
MAX_SIDES = 20_000  # boxes of a split whose sides stand in shards.json
MAX_LABEL_BYTES = 16_000_000
MAX_IMAGE_BYTES = 2_000_000_000
_MAX_MANIFEST_BYTES = 256_000_000
_NUM_CACHED = 8  # tables of shards that are read at random
_CHECK = re.compile(r"crc32-([0-9a-f]{8})")
REMEDY = "copy it again, or write the shards again with anchorite convert"
LABEL, IMAGE, SUFFIX = slice(0, 3), slice(3, 6), 6  # of a row of a table


class ShardTable(NamedTuple):
    """Where the samples of a shard lie.

    rows: (N, 7) int64, of each whole sample where its label begins, how many bytes that has and their CRC-32 (`LABEL`),
    the same of its image (`IMAGE`), and the number of the image's kind in `SAMPLE_SUFFIXES` (`SUFFIX`). damage: what
    ended the reading early, or nothing.
    """

    rows: NDArray[np.int64]
    damage: str


def sample_path(shard: Path, position: int, suffix: int) -> Path:
    """The path of an image in a shard, as if the tar file were a folder; `open_image` reads it."""
    return shard / f"{shard.stem}-{position:06d}.{SAMPLE_SUFFIXES[suffix]}"


def position_of(path: Path) -> int:
    """The position of the sample that a `sample_path` names; -1 where it can be none."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def member_bytes(name: str, content: bytes) -> bytes:
    """A file as it stands in a shard: header, content and what fills the last block; the same for the same content."""
    info = tarfile.TarInfo(name)
    info.size, info.uname = len(content), f"crc32-{zlib.crc32(content):08x}"
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + content + bytes(-len(content) % BLOCK)


def open_shard(path: Path) -> BinaryIO:
    """A shard opened for reading, unbuffered; InputError where it is missing or no regular file, else StorageError."""
    try:
        return open_regular(path, buffering=0)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the shard is missing; {REMEDY}") from error
    except InputError as error:
        raise InputError(f"{path}: the shard is not a regular file; {REMEDY}") from error
    except OSError as error:
        raise StorageError(f"{path}: the shard cannot be read: {error.strerror or error}") from error


def read_table(path: Path, num_samples: int | None = None) -> ShardTable:
    """Where each sample of a shard lies, from its headers alone.

    num_samples: how many there must be. Damage does not raise: the samples before it are whole. Raises what
    `open_shard` raises, and StorageError when the disk fails.
    """
    rows: list[tuple[int, ...]] = []
    most = MAX_SAMPLES if num_samples is None else num_samples
    with open_shard(path) as file:
        end, offset, damage = os.fstat(file.fileno()).st_size, 0, ""
        try:
            while (label := _read_header(file, offset, end, MAX_LABEL_BYTES)) is not None:
                key, (name, label_span, behind) = f"{path.stem}-{len(rows):06d}", label
                if len(rows) == most:
                    raise InputError(f"byte {offset}: there are more than the {most} samples that it should hold")
                if name != f"{key}.json":
                    raise InputError(f"byte {offset}: expected {key}.json here, not {shorten(name)}")
                image = _read_header(file, behind, end, MAX_IMAGE_BYTES)
                name, image_span, offset = image or ("", (0, 0, 0), behind)
                stem, _, suffix = name.partition(".")
                if stem != key or suffix not in SAMPLE_SUFFIXES:
                    found = "the end" if image is None else shorten(name)
                    raise InputError(f"byte {behind}: expected the image of {key} here, not {found}")
                rows.append((*label_span, *image_span, SAMPLE_SUFFIXES.index(suffix)))
            if num_samples is not None and len(rows) < num_samples:
                damage = f"byte {offset}: the shard ends after {len(rows)} of {num_samples} samples"
        except InputError as error:
            damage = str(error)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    return ShardTable(np.array(rows, np.int64).reshape(-1, 7), damage)


def _read_header(file: BinaryIO, offset: int, end: int, most: int) -> tuple[str, tuple[int, int, int], int] | None:
    """Of the member whose header is at `offset` the name, the start, length and CRC-32, and where the next header is.

    None for the zeros that end an archive. Raises InputError, which names the byte and not the file.
    """
    file.seek(offset)
    try:
        header = tarfile.TarInfo.frombuf(file.read(BLOCK), "ascii", "strict")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
        return None
    except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
        raise InputError(f"byte {offset}: the shard is cut short") from error
    except (tarfile.HeaderError, ValueError) as error:
        raise InputError(f"byte {offset}: not the header of a file, or a damaged one") from error
    if header.type != tarfile.REGTYPE:
        raise InputError(f"byte {offset}: a member of a kind that no shard has (type {header.type!r})")
    check = _CHECK.fullmatch(header.uname)
    if check is None or header.size < 0:
        raise InputError(f"byte {offset}: a header without size or CRC-32")
    if header.size > most:
        raise InputError(f"byte {offset}: claims {header.size} bytes, more than the {most} that are read")
    if offset + BLOCK + header.size > end:
        raise InputError(f"byte {offset}: claims {header.size} bytes, but the shard is cut short before")
    behind = offset + BLOCK + -(-header.size // BLOCK) * BLOCK
    return header.name, (offset + BLOCK, header.size, int(check[1], 16)), behind


def read_member(file: BinaryIO, span: Sequence[int]) -> bytes:
    """The bytes of a member; InputError, which names the byte and not the file, where they are not what was written.

    span: where it begins, how many bytes it has and their CRC-32. OSError as reading does.
    """
    start, num_bytes, crc = span
    file.seek(start)
    content = file.read(num_bytes)
    while len(content) < num_bytes and (more := file.read(num_bytes - len(content))):
        content += more  # a single read stops at 2 GB, or at a signal
    if zlib.crc32(content) != crc or len(content) < num_bytes:
        raise InputError(f"damaged: byte {start} of the shard and those behind it are not as written; {REMEDY}")
    return content


def leads_into_shard(path: Path) -> bool:
    """Whether a path goes on below a tar file."""
    return path.parent.suffix == ".tar" and path.parent.is_file()


def locate_image(path: Path) -> list[int]:
    """Where in its shard the image lies that a `sample_path` names, as `read_member` takes it.

    InputError, which does not name the path, where there is none; OSError as reading does.
    """
    table, position = cached_table(path.parent), position_of(path)
    if 0 <= position < len(table.rows):
        row: list[int] = table.rows[position].tolist()
        if path == sample_path(path.parent, position, row[SUFFIX]):
            return row[IMAGE]
    raise InputError(f"the shard holds no such image{table.damage and f' ({table.damage})'}; {REMEDY}")


@lru_cache(_NUM_CACHED)
def _table_of(shard: Path, num_bytes: int, modified_ns: int) -> ShardTable:
    return read_table(shard)


def cached_table(shard: Path) -> ShardTable:
    """`read_table`, remembered while the file is the same; OSError where there is none."""
    status = shard.stat()
    return _table_of(shard, status.st_size, status.st_mtime_ns)


Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class ShardFacts(BaseModel, strict=True, frozen=True):
    """A shard: its file's name, how many samples and bytes it has, and its SHA-256."""

    name: Annotated[str, Field(pattern=r"^(train|val|test)-[0-9]{6}\.tar$")]
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    bytes: Annotated[int, Field(ge=BLOCK)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SourceFacts(BaseModel, strict=True, frozen=True):
    """A `LabelSource`, and how many images have their labels from it."""

    name: str
    covered: list[bool] | None
    background_weight: Share
    images: Count


class SplitFacts(BaseModel, strict=True, frozen=True):
    """A split. background: images without a box; class_counts: boxes of each class that are trained on, ignored_counts:
    crowds and difficult ones, ignored_without_class: ignored regions that may hold any class; weighted: boxes that are
    trained on and count less than 1, mean_weight: what these count; sources: of the labels, where they are not one that
    knows everything.

    sides: width and height of boxes that are trained on, as fractions of their image's longer side: of all, or of an
    even sample of `MAX_SIDES` of them.
    """

    background: Count
    class_counts: list[Count]
    ignored_counts: list[Count]
    sides: Annotated[list[Annotated[list[Fraction], Field(min_length=2, max_length=2)]], Field(max_length=MAX_SIDES)]
    shards: list[ShardFacts]
    ignored_without_class: Count = 0
    weighted: Count = 0
    mean_weight: Share = 1.0
    sources: list[SourceFacts] = []


class Manifest(BaseModel, strict=True, frozen=True):
    """The whole of shards.json."""

    format: Literal["anchorite-shards"] = "anchorite-shards"
    version: Literal[1, 2] = 1
    class_names: Annotated[list[str], Field(min_length=1)]
    splits: dict[Literal["train", "val", "test"], SplitFacts]


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; InputError naming the file and what does not fit."""
    content = read_json(path, _MAX_MANIFEST_BYTES)
    if content.get("format") != "anchorite-shards":
        raise InputError(f"{path}: not the list of a dataset in shards (format {shorten(content.get('format'))})")
    if content.get("version") not in range(1, VERSION + 1):
        raise InputError(
            f"{path}: version {shorten(content.get('version'))} of the format; this release reads up to {VERSION}. "
            "Update anchorite, or write the shards again with anchorite convert"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {validation_faults(error)}") from None
    num_classes = len(manifest.class_names)
    for split, facts in manifest.splits.items():
        lists: list[tuple[str, Sequence[int] | None]] = [
            ("class_counts", facts.class_counts),
            ("ignored_counts", facts.ignored_counts),
            *((f"sources.{number}.covered", one.covered) for number, one in enumerate(facts.sources)),
        ]
        for name, counts in lists:
            if counts is not None and len(counts) != num_classes:
                raise InputError(f"{path}: splits.{split}.{name}: {len(counts)} numbers for {num_classes} classes")
        for number, shard in enumerate(facts.shards):
            if shard.name != (wanted := f"{split}-{number:06d}.tar"):
                raise InputError(f"{path}: splits.{split}.shards.{number}: {shard.name} should be {wanted}")
    return manifest


def write_manifest(path: Path, content: dict[str, object]) -> None:
    """Write a manifest of class_names and splits: JSON, a line for each shard."""
    manifest, splits = Manifest.model_validate(content), []
    is_new = any(one.ignored_without_class or one.weighted or one.sources for one in manifest.splits.values())
    manifest = manifest.model_copy(update={"version": VERSION if is_new else 1})
    for split, facts in manifest.splits.items():
        head = json.dumps(facts.model_dump(exclude={"shards"}, exclude_defaults=True))
        shards = ",\n".join(json.dumps(shard.model_dump()) for shard in facts.shards)
        splits.append(f'"{split}": {head[:-1]}, "shards": [\n{shards}\n]}}')
    head = json.dumps(manifest.model_dump(exclude={"splits"}))
    text = f'{head[:-1]},\n"splits": {{\n' + ",\n".join(splits) + "\n}}\n"
    path.write_text(text, encoding="ascii")


def write_shard_files(
    split: str, samples: Iterator[tuple[bytes, bytes]], folder: Path, most_bytes: int
) -> list[ShardFacts]:
    """Write the shards of a split, of up to `most_bytes` but a sample at least; each is durable before the next begins.

    samples: of each the bytes of its label and of its image file.
    """
    shards: list[ShardFacts] = []
    sample = next(samples, None)
    while sample is not None:
        name, num_samples = f"{split}-{len(shards):06d}.tar", 0
        with (folder / name).open("x+b") as file:
            while sample is not None:
                label, image = sample
                key = f"{name.removesuffix('.tar')}-{num_samples:06d}"
                suffix = SAMPLE_SUFFIXES[[image.startswith(start) for start in _STARTS].index(True)]
                members = member_bytes(f"{key}.json", label) + member_bytes(f"{key}.{suffix}", image)
                is_full = file.tell() + len(members) + 2 * BLOCK > most_bytes or num_samples == MAX_SAMPLES
                if num_samples and is_full:
                    break
                file.write(members)
                num_samples, sample = num_samples + 1, next(samples, None)
            file.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            shards.append(ShardFacts(name=name, samples=num_samples, bytes=file.tell(), sha256=digest))
    return shards
