"""shards.json: what is known of a dataset in shards without opening one of them.

The file grows with the number of shards, not of images: class names, counts, a bounded sample of the boxes' sides, and
name, length and SHA-256 of each shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anchorite.data.shards.tar import BLOCK, MAX_SAMPLES
from anchorite.errors import InputError
from anchorite.reading import printable, read_json, shorten

MANIFEST = "shards.json"
VERSION = 1
MAX_SIDES = 20_000  # boxes of a split whose sides are kept
_MAX_BYTES = 256_000_000
_NUM_SHOWN = 5

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class ShardFacts(BaseModel):
    """A shard: its file's name, how many samples and bytes it has, and its SHA-256."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Annotated[str, Field(pattern=r"^(train|val|test)-[0-9]{6}\.tar$")]
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    bytes: Annotated[int, Field(ge=BLOCK)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SplitFacts(BaseModel):
    """A split. background: images without a box; class_counts: boxes of each class that are trained on, ignored_counts:
    crowds and difficult ones.

    sides: width and height of boxes that are trained on, as fractions of their image's longer side: of all, or of an
    even sample of `MAX_SIDES` of them.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    background: Count
    class_counts: list[Count]
    ignored_counts: list[Count]
    sides: Annotated[list[Annotated[list[Fraction], Field(min_length=2, max_length=2)]], Field(max_length=MAX_SIDES)]
    shards: list[ShardFacts]


class Manifest(BaseModel):
    """The whole of shards.json."""

    model_config = ConfigDict(strict=True, frozen=True)

    format: Literal["anchorite-shards"] = "anchorite-shards"
    version: Literal[1] = 1
    class_names: Annotated[list[str], Field(min_length=1)]
    splits: dict[Literal["train", "val", "test"], SplitFacts]


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; InputError naming the file and what does not fit."""
    content = read_json(path, _MAX_BYTES)
    if content.get("format") != "anchorite-shards":
        raise InputError(f"{path}: not the list of a dataset in shards (format {shorten(content.get('format'))})")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: version {shorten(content.get('version'))} of the format; this release reads version {VERSION}. "
            "Update anchorite, or write the shards anew with anchorite convert"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [
            f"{path}: {printable('.'.join(map(str, one['loc'])), 200)}: {one['msg']} (got {shorten(one['input'])})"
            for one in problems[:_NUM_SHOWN]
        ]
        raise InputError("\n".join(lines)) from None
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    num_classes = len(manifest.class_names)
    for split, facts in manifest.splits.items():
        for name, counts in (("class_counts", facts.class_counts), ("ignored_counts", facts.ignored_counts)):
            if len(counts) != num_classes:
                raise InputError(f"{path}: splits.{split}.{name}: {len(counts)} numbers for {num_classes} classes")
        for number, shard in enumerate(facts.shards):
            if shard.name != shard_name(split, number):
                raise InputError(
                    f"{path}: splits.{split}.shards.{number}: {shard.name} should be {shard_name(split, number)}"
                )


def shard_name(split: str, number: int) -> str:
    """The file of a split's shard, numbered from 0: "train-000003.tar"."""
    return f"{split}-{number:06d}.tar"
