"""`anchorite import`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from anchorite.reading import one_line

if TYPE_CHECKING:
    from anchorite.model import ImportedCheckpoint

_NAMES_SHOWN = 5


def import_weights(
    source: Annotated[Path, Parameter(help="Checkpoint (.pt) of the original family, sizes n to x and n6 to x6.")],
    out: Annotated[Path, Parameter(help="New weight file, such as weights/start.safetensors.")],
) -> None:
    """Turn a checkpoint of the original family into weights, without running anything of it."""
    from anchorite.model import import_checkpoint, save_weights

    _refuse_unusable(out)
    imported = import_checkpoint(source)
    save_weights(out, imported.detector, imported.info)
    print("\n".join(_lines(source, imported)))
    print(f"written: {one_line(str(out))}")
    print(f"next:    anchorite validate {one_line(shlex.quote(str(out)))} DATA")


def _refuse_unusable(out: Path) -> None:
    """Raise before the work what would make its result useless: a taken place, or a name that nobody would load."""
    from anchorite.errors import InputError, StorageError

    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already, and nothing is ever overwritten; name a new file")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: weights are safetensors; name a file {out.with_suffix('.safetensors').name}")
    if not out.parent.is_dir():
        raise StorageError(f"{out}: cannot be made: there is no folder {out.parent}; make it or name another")


def _lines(source: Path, imported: ImportedCheckpoint) -> list[str]:
    info = imported.info
    count = len(info.class_names)
    other = "; its model is left out" if imported.has_both else ""
    part = f"ema, the average over training{other}" if imported.part == "ema" else imported.part
    names = ", ".join(info.class_names[:_NAMES_SHOWN]) + (", ..." if count > _NAMES_SHOWN else "")
    origin = "of the checkpoint" if imported.names_are_stored else "numbers, for the checkpoint has none"
    anchors = " | ".join(" ".join(f"{w:g},{h:g}" for w, h in level) for level in info.anchors.sizes_px)
    said = "of the checkpoint" if imported.image_size_is_stored else "the usual one, for the checkpoint does not say"
    return [
        f"found:   size {info.size} in {one_line(str(source))}, {imported.num_tensors} tensors; nothing of it was run",
        f"from:    {part}",
        f"classes: {count}, {origin}: {one_line(names)}",
        f"anchors: {anchors} px at strides {', '.join(map(str, info.anchors.strides))}",
        f"image:   {info.image_size} px, {said}",
    ]
