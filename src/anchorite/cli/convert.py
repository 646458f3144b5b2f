"""`anchorite convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import AT_LEAST_ONE, WHOLE, ReadingOptions


def convert(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    out: Annotated[Path, Parameter(help="New folder for the copy, outside DATA.")],
    *,
    to: Annotated[Literal["yolo", "coco", "voc", "shards"], Parameter(help="Format of the copy.")],
    shard_mb: Annotated[
        int | None, WHOLE, Parameter(validator=AT_LEAST_ONE, help="Most megabytes of a shard; default: 128.")
    ] = None,
    reading: Annotated[ReadingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Copy a dataset into another label format; images byte for byte, read back and compared before it appears.

    What the format cannot hold, and what reading left out, is listed and written to changes.txt in the copy. Shards are
    tar files for training on more images than memory or a disk holds.
    """
    from anchorite.cli.copying import read_for_copy, write_copy
    from anchorite.errors import InputError

    if shard_mb is not None and to != "shards":
        raise InputError(f"--shard-mb {shard_mb}: a copy as {to} has no shards; leave it out, or write --to shards")
    dataset = read_for_copy(data, out, reading or ReadingOptions())
    write_copy(dataset, out, to, "Made by `anchorite convert`.", shard_mb)
