"""Labels of a detector for images that nobody labelled: of a teacher, for a student to be trained on.

What it is sure of becomes an object that counts as much as its score; where it hesitates, an ignore region: what is
there is neither object nor background. So the student is not taught that what the teacher half sees is nothing.

Legend: N detections of an image, best first.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from anchorite.boxes import pairwise_iou_xyxy
from anchorite.data import DatasetIndex, Record, as_split, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import NO_CLASS
from anchorite.data.store import Progress
from anchorite.errors import AnchoriteError, InputError
from anchorite.files import StrPath, write_text_atomically
from anchorite.keywords import checks_keywords
from anchorite.predict.engine import Ensemble, FrameResult, OnUnreadable, Predictor
from anchorite.predict.postprocess import PredictConfig
from anchorite.predict.sources import expand_sources
from anchorite.predict.views import ImageSize

CONFIDENT, DOUBTFUL = 0.6, 0.1  # least scores of an object and of a region: docs/how-to/unlabelled.md
_SAME_PLACE_IOU = 0.5
_BACKGROUND_WEIGHT = 0.5  # of images whose objects the teacher may have missed


@dataclass
class PseudoLabels:
    """What `pseudo_label` did.

    folder: of the new dataset; images: how many it has; boxes: objects by class name, regions: ignore regions in them.
    without_object: images with none, left out unless they were to be kept; known: images left out because the labelled
    dataset has them; unreadable: why others were left out, by name. sources: the YAML of both datasets, if
    asked for. notes: images that got other names, in words.
    """

    folder: Path
    images: int = 0
    boxes: dict[str, int] = field(default_factory=dict)
    regions: int = 0
    without_object: int = 0
    known: int = 0
    unreadable: list[str] = field(default_factory=list)
    sources: Path | None = None
    notes: list[str] = field(default_factory=list)


@checks_keywords()
def pseudo_label(
    network: Predictor | Ensemble,
    folder: StrPath,
    out: StrPath,
    *,
    confident: float = CONFIDENT,
    doubtful: float = DOUBTFUL,
    format: Literal["yolo", "coco"] = "yolo",
    labelled: StrPath | None = None,
    allow_outside: bool = False,
    keep_empty: bool = False,
    recursive: bool = False,
    config: PredictConfig | None = None,
    image_size: ImageSize | None = None,
    batch_size: int = 8,
    on_unreadable: OnUnreadable | None = None,
    progress: Progress | None = None,
) -> PseudoLabels:
    """Write a dataset of the images in `folder`, with one split, train, and what the network finds in them as labels.

    A detection whose score is at least `confident` is an object whose weight is its score; one from `doubtful` up to
    that is a region that training ignores, unless a better one covers its place (IoU of at least 0.5). Files of labels
    in `folder` are not read. Images without an object are left out: that there is nothing the teacher believes already,
    and it may be wrong. keep_empty: take them, too.

    out: a new or empty folder, which appears when all is done; format: of its labels. labelled: the dataset that the
    student shall be trained on besides: images that it has, in any split, are left out by their bytes, and a YAML that
    names both datasets is written beside `out`, as OUT.yaml; allow_outside: as for `open_dataset`. recursive:
    subfolders of `folder`, too. config: how detections compete; its confidence does not count. image_size, batch_size,
    on_unreadable: as for `Predictor.stream`. progress is called with (images done, images in all).

    Raises InputError for limits out of order, where `folder` has no images, `out` is taken or lies in `folder`, or no
    detection is confident; StorageError when the disk refuses.
    """
    if not 0 < doubtful <= confident <= 1:
        raise InputError(f"doubtful {doubtful:g}, confident {confident:g}: wanted is 0 < doubtful <= confident <= 1")
    result = PseudoLabels(Path(out))
    paths = expand_sources([folder], recursive)
    _refuse_out(result.folder, Path(folder), paths)
    if labelled is not None:
        result.sources = _place_of_sources(result.folder)
        paths, num_paths = list(_unknown(paths, labelled, allow_outside)), len(paths)
        result.known = num_paths - len(paths)
        if not paths:
            raise InputError(f"{folder}: {labelled} has all of its {num_paths} images; name a folder of others")
    config = (config or PredictConfig()).model_copy(update={"confidence": doubtful})

    def unreadable(error: AnchoriteError) -> None:
        if on_unreadable is None:
            raise error
        on_unreadable(error)
        result.unreadable.append(str(error))

    records, best = [], 0.0
    with closing(network.stream(paths, config, image_size, batch_size, unreadable)) as found:
        for done, one in enumerate(found, start=1):
            record = _record(one, confident, config.iou_threshold)
            best = max(best, *one.detections.scores.tolist(), 0.0)
            is_empty = bool(record.ignored.all())
            result.without_object += is_empty
            if keep_empty or not is_empty:
                records.append(record)
            if progress is not None:
                progress(done + len(result.unreadable), len(paths))
    if all(record.ignored.all() for record in records):
        raise InputError(
            f"{folder}: of {len(paths)} images none has a detection of score {confident:g} (the best: {best:.2f}); "
            "lower --confident, or train the teacher for longer"
        )
    split, names = as_split(records), network.info.class_names
    dataset = DatasetIndex(Path(folder), format, names, {"train": split})
    said = f"Pseudo-labels: objects from score {confident:g} on, ignore regions from {doubtful:g} on."
    result.notes = write_dataset(dataset, result.folder, format, extra=said, progress=progress)
    if labelled is not None and result.sources is not None:
        _write_sources(result.sources, Path(labelled), result.folder)
    result.images, result.regions = len(split), split.num_ignored()
    result.boxes = dict(zip(names, split.class_counts(len(names)).tolist(), strict=True))
    return result


def _record(result: FrameResult, confident: float, iou_threshold: float) -> Record:
    """The labels of an image: objects with their scores as weights, and regions without a class."""
    found, path = result.detections, Path(result.detections.source)
    height, width = found.image_size
    boxes_xyxy, scores = found.boxes_xyxy.double(), found.scores.numpy().astype(np.float32)
    is_sure, class_ids = scores >= confident, found.class_ids.numpy()
    overlaps = pairwise_iou_xyxy(boxes_xyxy, boxes_xyxy).numpy()
    kept = np.zeros(len(found), bool)
    for number in (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1).nonzero()[:, 0].tolist():
        # Boxes of a class, too, though they have competed: cut to the image some are alike that were not.
        rivals = kept & (class_ids == class_ids[number]) if is_sure[number] else kept
        limit = iou_threshold if is_sure[number] else _SAME_PLACE_IOU
        kept[number] = overlaps[number, rivals].max(initial=0.0) < limit
    boxes = boxes_xyxy.numpy()[kept]
    sides = boxes[:, 2:] - boxes[:, :2]
    return Record(
        path, width, height, boxes, np.where(is_sure, class_ids, NO_CLASS)[kept], ~is_sure[kept],
        sides[:, 0] * sides[:, 1], (str(path),) * len(boxes), np.where(is_sure, scores, np.float32(1))[kept],
    )  # fmt: skip


def _refuse_out(out: Path, folder: Path, paths: Iterable[Path]) -> None:
    """InputError where `out` is not free or lies where the images are; before minutes of work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already, and nothing is ever overwritten; name a new or an empty folder")
    for home in {path.parent.resolve() for path in (folder / "any", *paths)}:
        if out.resolve().is_relative_to(home):
            raise InputError(f"{out}: lies in {home}, which is never written to; name a folder elsewhere")


def _place_of_sources(out: Path) -> Path:
    """OUT.yaml; InputError where it is taken."""
    place = out.resolve() if out.name in ("", "..") else out
    sources = place.with_name(f"{place.name}.yaml")
    if os.path.lexists(sources):
        raise InputError(f"{sources}: exists already, and nothing is ever overwritten; name another folder than {out}")
    return sources


def _unknown(paths: Iterable[Path], labelled: StrPath, allow_outside: bool) -> Iterator[Path]:
    """The images of which a dataset has no copy, byte for byte. Only files of equal size are read."""
    dataset = open_dataset(labelled, allow_outside=allow_outside)
    if dataset.format in ("merged", "shards"):
        raise InputError(
            f"{labelled}: is of the format {dataset.format}, which this cannot compare or name as a source; leave "
            "--labelled out, and write a YAML of both: docs/data.md"
        )
    by_size: dict[int, list[Path]] = {}
    for path in chain.from_iterable(split.paths() for split in dataset.splits.values()):
        by_size.setdefault(path.stat().st_size, []).append(path)
    for path in paths:
        if not any(filecmp.cmp(path, other, shallow=False) for other in by_size.get(path.stat().st_size, ())):
            yield path


def _write_sources(path: Path, labelled: Path, pseudo: Path) -> None:
    """A YAML of two sources; paths count from its folder."""
    where = [os.path.relpath(one.resolve(), path.parent.resolve()) for one in (labelled, pseudo)]
    sources = [{"data": where[0]}, {"data": where[1], "background_weight": _BACKGROUND_WEIGHT}]
    write_text_atomically(path, yaml.safe_dump({"sources": sources}, allow_unicode=True, sort_keys=False))
