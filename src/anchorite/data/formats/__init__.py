"""Opening a dataset by looking at it: which of the label formats a folder or file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import get_args

from anchorite.choices import FormatName, ScoresUse
from anchorite.data.dataset import NO_CLASS, DatasetIndex, Split
from anchorite.data.formats import (
    coco,
    csv_table,
    cvat,
    darknet,
    label_studio,
    labelme,
    merged,
    open_images,
    via,
    voc,
    yolo,
)
from anchorite.data.formats.common import ClassesAndSplits, Fence, ReadingLog, exists
from anchorite.data.index_cache import cache_file, load_index, save_index
from anchorite.data.shards import split as shards
from anchorite.data.shards.format import MANIFEST
from anchorite.errors import InputError
from anchorite.files import StrPath
from anchorite.keywords import checks_keywords
from anchorite.reading import shorten

__all__ = ["FormatName", "open_dataset"]

_MOST_BROKEN = 5
_MOST_NAMES = 20


# Formats and their modules, of which the first that finds something in a folder is taken. LOOKED_FOR: in words, what
# `find` looks for. SUFFIXES: of a file that the user may name, or its whole name. find(root, log, fence): what `read`
# takes, for such a file or for a folder; nothing where the folder does not hold this format. CVAT goes before VOC,
# which takes any xml. Last what says least of itself: files far below the folder, and text files beside images.
_FORMATS: tuple[tuple[FormatName, ModuleType], ...] = (
    ("merged", merged),
    ("shards", shards),
    ("yolo", yolo),
    ("coco", coco),
    ("cvat", cvat),
    ("voc", voc),
    ("label-studio", label_studio),
    ("via", via),
    ("open-images", open_images),
    ("csv", csv_table),
    ("labelme", labelme),
    ("yolo", darknet),
)


@checks_keywords()
def open_dataset(
    path: StrPath,
    format: FormatName | None = None,
    skip_bad: bool = False,
    *,
    allow_outside: bool = False,
    ignore_classes: Sequence[str] = (),
    scores: ScoresUse = "ignore",
) -> DatasetIndex:
    """Read a dataset: a folder, a data.yaml or another label file, such as a COCO json or an xml of CVAT; or a YAML of
    several datasets, which are read as one.

    Of several formats in one folder shards are preferred, then YOLO, COCO, CVAT, VOC; `format` overrules. skip_bad:
    leave out images that are unreadable or have malformed labels instead of raising (damage behind an image's header is
    found, and the image left out, when it is decoded). allow_outside: follow paths and links out of the dataset.
    ignore_classes: names of classes that are to be none: their boxes become ignored regions, neither objects nor
    background. scores: "as-weights" lets an object count as much in training as the score beside its box says, as of
    pseudo-labels. A data.yaml or COCO json may say both itself; what is asked for here is added.
    Returns the index; `adjustments` says what was clipped, dropped, skipped or ignored. Nothing is written into the
    dataset; the index of a large one is kept in a cache folder, and taken from there while nothing changed.
    Raises InputError when nothing is recognised, or with the first 20 bad rows and their count.
    """
    if format is not None and format not in get_args(FormatName):
        raise InputError(f"format must be one of {', '.join(get_args(FormatName))}; got {format!r}")
    is_list = isinstance(ignore_classes, list | tuple)
    if not is_list or not all(isinstance(name, str) for name in ignore_classes):
        raise InputError(f'ignore_classes must be a list of class names, as in ["people"]; got {ignore_classes!r}')
    if scores not in get_args(ScoresUse):
        raise InputError(f"scores must be one of {', '.join(get_args(ScoresUse))}; got {scores!r}")
    root, ignore_classes = Path(path), tuple(ignore_classes)
    if not exists(root):
        raise InputError(f"{root}: does not exist; name a dataset's folder, its data.yaml or its COCO json")
    file = cache_file(root, format, skip_bad, allow_outside, ignore_classes, scores)
    if file is not None and (cached := load_index(file)) is not None:
        return cached
    log = ReadingLog(skip_bad, dict.fromkeys(ignore_classes, f"{root}: ignore_classes"), scores)
    fence = Fence([root], allow_outside)
    log.dependencies.add_candidate(root)
    try:
        for name, one in _FORMATS:
            is_possible = root.is_dir() or root.name in one.SUFFIXES or root.suffix.lower() in one.SUFFIXES
            found = one.find(root, log, fence) if is_possible and format in (None, name) else None
            if found and one is merged:
                options = {"skip_bad": skip_bad, "ignore_classes": ignore_classes, "scores": scores}
                index = merged.read(found, log, open_dataset, allow_outside, **options)
                return replace(index, root=root, ignored_classes=ignore_classes, scores=scores)
            if found:
                class_names, splits = one.read(found, root, log, allow_outside)
                break
        else:
            raise _not_recognised(root, format, fence)
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    log.raise_if_bad(root)
    class_names, splits = _without_ignored(class_names, splits, log, root)
    asked = allow_outside, skip_bad, tuple(log.ignored_classes), log.scores
    index = DatasetIndex(root, name, class_names, splits, log.adjustments, *asked)
    return index if file is None else save_index(file, index, log.dependencies)


def _without_ignored(
    names: tuple[str, ...], splits: Mapping[str, Split], log: ReadingLog, root: Path
) -> ClassesAndSplits:
    """The classes that are not ignored, and the splits with ids of these; InputError where a name is none, or none is
    left."""
    for name, origin in log.ignored_classes.items():
        if name not in names:
            known = ", ".join(map(shorten, names[:_MOST_NAMES])) + ", ..." * (len(names) > _MOST_NAMES)
            raise InputError(f"{origin}: there is no class {shorten(name)} to ignore, but {known}")
    kept = tuple(name for name in names if name not in log.ignored_classes)
    if not kept:
        raise InputError(f"{root}: all of its classes are to be ignored, so there is nothing to learn; keep one")
    if kept == names:
        return names, splits
    new_ids = [kept.index(name) if name in kept else NO_CLASS for name in names]
    return kept, {split: records.renumbered(new_ids) for split, records in splits.items()}


def _not_recognised(root: Path, format: FormatName | None, fence: Fence) -> InputError:
    """What to say of a file or folder that holds none of the formats."""
    if not root.is_dir():
        hint = f" as {format}" if format else ""
        possible = [(name, one) for name, one in _FORMATS if format in (None, name)]
        wanted = [one.LOOKED_FOR for _, one in possible if root.suffix.lower() in one.SUFFIXES]
        hint += "; a dataset is a folder, a data.yaml or another label file"
        hint += "".join(f"\n  {line}" for line in ["Of this suffix are read:", *wanted] if wanted)
        if root.suffix.lower() == ".tar" and (root.parent / MANIFEST).is_file():
            hint += f"; this is one of the shards in {root.parent}: name that folder"
        elif root.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
            hint += "; unpack it and name the folder"
        return InputError(f"{root}: cannot be opened{hint}")
    places = (root / "annotations", root) if format in (None, "coco") else ()
    broken = [fault for place in places for fault in coco.loose_jsons(place, fence)[1].values()]
    if broken:
        more = len(broken) - _MOST_BROKEN
        return InputError(
            f"{root}: no dataset recognised, and of its json files some cannot be read:\n"
            + "\n".join(f"  {error}" for error in broken[:_MOST_BROKEN])
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nIf these are its COCO labels, export or copy them again"
        )
    wanted = [one.LOOKED_FOR for name, one in _FORMATS if format in (None, name)]
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in root.iterdir())
    found = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    near = [parent / "data.yaml" for parent in root.resolve().parents[:2] if (parent / "data.yaml").is_file()]
    near += [path for name in ("data.yaml", "obj.data") for path in sorted(root.glob(f"*/{name}"))]
    hint = ""
    if format is None and near:
        hint = f"\nThe dataset may be that of {near[0]}: name its folder"
    elif format in (None, "yolo") and darknet.holds_labels(root, fence):
        hint = (
            "\nThere are YOLO labels, but no list that says what the class numbers mean, or no images of their names: "
            "put the class names, one a line, into classes.txt and the images beside the labels or into images, or "
            "write a data.yaml with the lines `train: ...` and `names: [...]`"
        )
    elif format is not None:
        hint = f"\nIt was read as {format} only, as requested; without that option all formats are tried"
    lines = [f"{root}: no dataset recognised. Looked for:", *(f"  {line}" for line in wanted)]
    return InputError("\n".join(lines) + f"\nFound: {found or 'an empty folder'}{hint}")
