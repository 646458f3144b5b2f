"""`anchorite convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from anchorite.cli.options import ReadingOptions


def convert(
    data: Annotated[Path, Parameter(help="Folder of labelled images, data.yaml or COCO json.")],
    out: Annotated[Path, Parameter(help="New folder for the copy, outside DATA.")],
    *,
    to: Annotated[Literal["yolo", "coco", "voc"], Parameter(help="Format of the copy.")],
    reading: Annotated[ReadingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Copy a dataset into another label format; images byte for byte, read back and compared before it appears.

    What the format cannot hold, and what reading left out, is listed and written to changes.txt in the copy.
    """
    from anchorite.cli.copying import read_for_copy, write_copy

    dataset = read_for_copy(data, out, reading or ReadingOptions())
    write_copy(dataset, out, to, "Made by `anchorite convert`.")
