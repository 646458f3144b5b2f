"""Opening a dataset by looking at it: which of the formats a folder or file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from anchorite.choices import FormatName
from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.coco import broken_jsons, find_coco, read_coco, single_coco
from anchorite.data.formats.common import Fence, ReadingLog, exists
from anchorite.data.formats.voc import find_voc, read_voc
from anchorite.data.formats.yolo import find_yolo, read_yolo
from anchorite.data.index_cache import Reading, load_index, save_index
from anchorite.data.shards.format import MANIFEST
from anchorite.data.shards.split import find_shards, read_shards
from anchorite.errors import InputError

_MOST_BROKEN = 5


class _Format(NamedTuple):
    """How a format is recognised and read.

    looked_for: in words. suffixes: of a file that the user may name, or its whole name. open_file: what `read` takes,
    for such a file. find: the same for a folder; nothing where the folder does not hold this format.
    """

    looked_for: str
    suffixes: tuple[str, ...]
    open_file: Callable[[Path], Any]
    find: Callable[[Path, ReadingLog, Fence], Any]
    read: Callable[[Any, Path, ReadingLog, bool], DatasetIndex]


# The first that is found in a folder is taken.
_FORMATS: dict[FormatName, _Format] = {
    "shards": _Format(
        "shards: shards.json, as anchorite convert --to shards writes it",
        (MANIFEST,),
        lambda path: path,
        lambda folder, _, fence: find_shards(folder, fence),
        read_shards,
    ),
    "yolo": _Format(
        "YOLO: data.yaml, or one *.yaml with names and train",
        (".yaml", ".yml"),
        lambda path: path,
        lambda folder, _, fence: find_yolo(folder, fence),
        read_yolo,
    ),
    "coco": _Format(
        "COCO: annotations/instances_*.json, <split>/_annotations.coco.json, or one COCO *.json",
        (".json",),
        single_coco,
        find_coco,
        read_coco,
    ),
    "voc": _Format(
        "VOC: ImageSets/Main/<split>.txt with Annotations, or folders train, val, test or Annotations holding *.xml",
        (),
        lambda path: path,
        find_voc,
        read_voc,
    ),
}


def open_dataset(
    path: Path | str, format: FormatName | None = None, skip_bad: bool = False, *, allow_outside: bool = False
) -> DatasetIndex:
    """Read a dataset: a folder, a data.yaml or a COCO json.

    Of several formats in one folder shards are preferred, then YOLO, COCO, VOC; `format` overrules. skip_bad: leave out
    malformed rows and unreadable images instead of raising (damage behind an image's header is found, and the image
    left out, when it is decoded). allow_outside: follow paths and links out of the dataset.
    Returns the index; `adjustments` says what was clipped, dropped, skipped or ignored. Nothing is written into the
    dataset; the index of a large one is kept in a cache folder, and taken from there while nothing changed.
    Raises InputError when nothing is recognised, or with the first 20 bad rows and their count.
    """
    if format is not None and format not in get_args(FormatName):
        raise InputError(f"format must be yolo, coco, voc or shards; got {format!r}")
    root = Path(path)
    if not exists(root):
        raise InputError(f"{root}: does not exist; name a dataset's folder, its data.yaml or its COCO json")
    reading = Reading(root, format, skip_bad, allow_outside)
    cached = load_index(reading)
    if cached is not None:
        return cached
    log = ReadingLog(skip_bad)
    log.dependencies.add_candidate(root)
    try:
        index = _open_file(root, format, log, allow_outside) if root.is_file() else None
        index = index or _open_folder(root, format, log, allow_outside)
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    return save_index(reading, replace(index, allow_outside=allow_outside, skip_bad=skip_bad), log.dependencies)


def _open_file(path: Path, format: FormatName | None, log: ReadingLog, allow_outside: bool) -> DatasetIndex:
    for name, one in _FORMATS.items():
        if format in (None, name) and (path.name in one.suffixes or path.suffix.lower() in one.suffixes):
            return one.read(one.open_file(path), path, log, allow_outside)
    suffix, wanted = path.suffix.lower(), f" as {format}" if format else ""
    packed = "; unpack it and name the folder" if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar") else ""
    if suffix == ".tar" and (path.parent / MANIFEST).is_file():
        packed = f"; this is one of the shards in {path.parent}: name that folder"
    raise InputError(
        f"{path}: cannot be opened{wanted}; a dataset is a folder, a data.yaml (yolo) or a json (coco){packed}"
    )


def _open_folder(root: Path, format: FormatName | None, log: ReadingLog, allow_outside: bool) -> DatasetIndex:
    fence = Fence([root], allow_outside)
    for name, one in _FORMATS.items():
        found = one.find(root, log, fence) if format in (None, name) else None
        if found:
            return one.read(found, root, log, allow_outside)
    broken = broken_jsons(root, fence) if format in (None, "coco") else []
    if broken:
        more = len(broken) - _MOST_BROKEN
        raise InputError(
            f"{root}: no dataset recognised, and of its json files some cannot be read:\n"
            + "\n".join(f"  {error}" for error in broken[:_MOST_BROKEN])
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nIf these are its COCO labels, export or copy them again"
        )
    wanted = [one.looked_for for name, one in _FORMATS.items() if format in (None, name)]
    raise InputError(
        f"{root}: no dataset recognised. Looked for:\n"
        + "\n".join(f"  {line}" for line in wanted)
        + f"\nFound: {_describe(root)}"
        + _hint(root, format)
    )


def _describe(folder: Path) -> str:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    if not names:
        return "an empty folder"
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _hint(folder: Path, format: FormatName | None) -> str:
    if format is not None:
        return f"\nIt was read as {format} only, as asked for; leave that out and all formats are looked for"
    above = next((parent for parent in folder.resolve().parents[:2] if (parent / "data.yaml").is_file()), None)
    near = above or next((found.parent for found in sorted(folder.glob("*/data.yaml"))), None)
    if near is not None:
        return f"\nThere is a data.yaml in {near}: name that folder"
    if (folder / "labels").is_dir() or any(folder.glob("*/labels")):
        return "\nThere is a labels folder: write a data.yaml with the lines `train: ...` and `names: [...]` beside it"
    return ""
