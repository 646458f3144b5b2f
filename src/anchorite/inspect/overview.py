"""What is known of a dataset before an image is decoded: what its splits hold, what reading did to labels and files,
what cannot be learned or measured, and images in two splits. It takes a second or two for a million images.

Legend: N images, K classes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data import Adjustment, DatasetIndex, Split
from anchorite.data.dataset import ONE_SOURCE, LabelSource, path_key
from anchorite.data.formats.common import is_image_name
from anchorite.data.headers import open_image
from anchorite.data.shards.format import leads_into_shard, locate_image
from anchorite.errors import InputError
from anchorite.inspect.findings import KINDS, Finding, Severity, SourceBalance, SplitBalance, kind_of, named

_MOST_PLACES = 3
_MOSTLY, _MOST_REGIONS = 0.5, 1000  # share of the area; regions of an image whose common area is looked at
_LEFT_OUT = {  # kinds of findings for which an image is left out, and what is told of it
    "malformed": "with labels that cannot be read",
    "unreadable-image": "that cannot be read",
    "ignored-file": "without labels that can be used",
}
# Kinds whose details say more than their heading, as each stands for many labels or files.
_SAID_BY_DETAIL = frozenset(
    (
        *("ignored-annotation", "ignored-category", "ignored-key", "ignored-score", "ignored-shape", "no-labels"),
        *("relocated", "shape-as-box", "narrow-range", "grey-images"),
    )
)
# What is compared to find images in two splits: files of a split, and bytes that are read whole in all.
_MOST_FILES, _MOST_BYTES = 10_000, 500_000_000
_PIECE, _BLOCK = 4096, 128  # bytes of a file's middle; files that a thread looks at in one go


class Told(NamedTuple):
    """A sentence on findings of a kind: how many there are, and where the first ones are."""

    severity: Severity
    kind: str
    number: int
    text: str

    def line(self) -> str:
        """The sentence with how grave it is."""
        return f"{self.severity}: {self.text}"


@dataclass(frozen=True)
class Overview:
    """What each split holds, all that is to be told, errors first, and the sources of the labels, where there are
    several or the one does not know everything."""

    balances: tuple[SplitBalance, ...]
    told: tuple[Told, ...]
    sources: tuple[SourceBalance, ...] = ()

    def lines(self) -> list[str]:
        """Of each split a line on what it holds, and of each source; then a line for each of `told`."""
        sources, told = (one.line() for one in self.sources), (one.line() for one in self.told)
        return [*map(balance_line, self.balances), *sources, *told]

    def to_json(self) -> dict[str, Any]:
        """Both as plain values; counts of classes are left out."""
        names = ("split", "images", "boxes", "ignored", "empty_images", "left_out", "weighted", "mean_weight")
        splits = [{name: asdict(one)[name] for name in names} for one in self.balances]
        sources = [asdict(one) for one in self.sources]
        return {"splits": splits, "findings": [one._asdict() for one in self.told], "sources": sources}


def look_over(dataset: DatasetIndex, background_ok: bool = False) -> Overview:
    """Everything that is told of a dataset before it is decoded. background_ok: that most training images have no
    labels is intended."""
    balances = balances_of(dataset)
    findings = [*split_findings(dataset, balances, background_ok), *unlisted_images(dataset)]
    told = [*_told_of_reading(dataset.adjustments), *_told_of_findings(findings), *_told_of_shared(dataset.splits)]
    order = {kind: number for number, kind in enumerate(KINDS)}
    return Overview(balances, tuple(sorted(told, key=lambda one: order[one.kind])), sources_of(dataset))


def require_boxes(dataset: DatasetIndex) -> None:
    """InputError where there is nothing to learn from: no image in train, or none with a box that is not ignored."""
    train = dataset.split("train")
    if not train:
        there = ", ".join(name for name, images in dataset.splits.items() if images) or "none"
        raise InputError(
            f"{dataset.root}: no training images; a data set needs a split train (splits with images: {there})"
        )
    if why := why_no_boxes(dataset):
        raise InputError(f"{dataset.root}: nothing to learn from: {why}")


def why_no_boxes(dataset: DatasetIndex) -> str:
    """Why no box of train is learned, as far as it is known, and what to do; nothing where one is."""
    train = dataset.split("train")
    num_learned = int(train.class_counts(len(dataset.class_names)).sum())
    if num_learned and (train.num_weighted() < num_learned or train.mean_weight() > 0):
        return ""
    first = next((record.origins[0] for record in train if len(record.origins)), "")
    if num_learned:
        return f"all boxes of train have the weight 0 (the first: {first}). Give them scores above 0, or none"
    if num_ignored := train.num_boxes():
        count = f"all {num_ignored} boxes of train are" if num_ignored > 1 else "the only box of train is"
        cause, remedy = "as crowds or difficult", "Mark them otherwise where they were labelled"
        if dataset.ignored_classes:
            names = named(dataset.ignored_classes)
            cause, remedy = f"as crowds, difficult or of ignored classes ({names})", "Leave one of these classes in"
        elif dataset.format == "coco":
            cause = "as crowds, regions in which objects are not told apart"
            remedy = (
                "If each is one object, set iscrowd to 0 in the json; CVAT exports masks as crowds: convert them to "
                "polygons or boxes there, and export again"
            )
        elif dataset.format == "voc":
            cause, remedy = "as difficult", "If they are to be found, set difficult to 0"
        return f"{count} ignored {cause} (the first: {first}). {remedy}"
    kinds = ("ignored-file", "unused-label", "malformed", "ignored-shape", "empty-box")
    told = [*_told_of_reading(one for one in dataset.adjustments if one.split in ("train", None))]
    known = [one.text for one in told if one.kind == "no-labels"] or [one.text for one in told if one.kind in kinds]
    if not known:
        known = [f"none of its {len(train)} images has a label (the first: {next(train.paths())})"]
    return (
        f"there is no box in train: {'; '.join(known)}. Label the images, or put the labels where they are looked for"
    )


# What the splits hold.


def balances_of(dataset: DatasetIndex) -> tuple[SplitBalance, ...]:
    """What each split holds; `most_boxes` is not counted."""
    left_out: dict[tuple[str | None, Path], str] = {}
    for one in dataset.adjustments:
        if (kind := kind_of(one)) in _LEFT_OUT:
            images = [file for file in one.files if is_image_name(file.name)]
            for image in images if one.image is None else [one.image]:
                left_out.setdefault((one.split, image), kind)
    reasons = Counter((split, kind) for (split, _), kind in left_out.items())
    balances, num_classes = [], len(dataset.class_names)
    for split, records in dataset.splits.items():
        counts = records.class_counts(num_classes)
        gone = {kind: reasons[split, kind] for kind in _LEFT_OUT if reasons[split, kind]}
        num_boxes = int(counts.sum())
        numbers = len(records), records.num_background(), num_boxes, records.num_boxes() - num_boxes
        balance = SplitBalance(split, *numbers, tuple(counts.tolist()), gone)
        balances.append(replace(balance, weighted=records.num_weighted(), mean_weight=records.mean_weight()))
    return tuple(balances)


def sources_of(dataset: DatasetIndex) -> tuple[SourceBalance, ...]:
    """The sources of all splits, in order; none for a dataset that has one source, which knows everything."""
    images: dict[LabelSource, dict[str, int]] = {}
    for split, records in dataset.splits.items():
        for source, count in zip(records.sources(), records.images_by_source().tolist(), strict=True):
            images.setdefault(source, dict.fromkeys(dataset.splits, 0))[split] += count
    if images.keys() <= {ONE_SOURCE}:
        return ()
    names = dataset.class_names
    return tuple(
        SourceBalance(
            source.name,
            None if source.covered is None else tuple(compress(names, source.covered)),
            () if source.covered is None else tuple(compress(names, np.logical_not(source.covered))),
            source.background_weight,
            counts,
        )
        for source, counts in images.items()
        if any(counts.values())
    )


def balance_line(split: SplitBalance) -> str:
    """What a split holds, in words: train: 9 images, 20 boxes to learn, 5 of them weighted (mean .62), 3 regions
    ignored, 2 images without labels (background)."""
    aim = "to learn" if split.split == "train" else "to find"
    parts = [_number(split.images, "image"), f"{_number(split.boxes, 'box')} {aim}"]
    if split.weighted:
        parts.append(f"{split.weighted} of them weighted (mean {split.mean_weight:.2f})")
    if split.ignored:
        parts.append(f"{_number(split.ignored, 'region')} ignored (crowd, difficult, not known)")
    if split.empty_images:
        parts.append(f"{_number(split.empty_images, 'image')} without labels (background)")
    if split.left_out:
        why = ", ".join(f"{number} {_LEFT_OUT[kind]}" for kind, number in split.left_out.items())
        parts.append(f"{_number(sum(split.left_out.values()), 'image')} left out ({why})")
    return f"{split.split}: {', '.join(parts)}"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun == 'box' else 's'}"


# What was found, as single findings and in sentences.


def reading_findings(dataset: DatasetIndex) -> Iterator[Finding]:
    """What reading adjusted: a finding for each label or setting, and one a file where an adjustment names several.

    What was told of a file in one split is not told again in another.
    """
    told: set[tuple[Any, ...]] = set()
    for one in dataset.adjustments:
        kind, image = kind_of(one), None if one.image is None else str(one.image)
        found = [Finding(kind, one.detail, one.split, image, one.origin, one.box_xyxy, one.class_name)]
        if one.files:
            shown = [(str(file), str(file) if is_image_name(file.name) else None) for file in one.files]
            what = one.detail.partition(" ")[2].partition(": ")[0]  # between their number and their names
            found = [Finding(kind, what, one.split, picture, file) for file, picture in shown]
        for finding in found:
            key = (kind, finding.detail, finding.image, finding.origin)
            if key not in told:
                told.add(key)
                yield finding


def split_findings(
    dataset: DatasetIndex, balances: Sequence[SplitBalance], background_ok: bool = False
) -> Iterator[Finding]:
    """Class names that probably mean one class; splits and classes that cannot be trained or measured; sources of
    labels that may teach objects as background."""
    first: dict[str, str] = {}
    for name in dataset.class_names:
        key = "".join(name.casefold().replace("-", " ").replace("_", " ").split()) or name
        if key in first:
            yield Finding("similar-class-names", f"{first[key]!r} and {name!r}", class_name=name, others=(first[key],))
        first.setdefault(key, name)
    train = next((counts for counts in balances if counts.split == "train"), None)
    if train is None or not train.images:
        yield Finding("no-training-images", "the split train is missing or empty", "train")
    elif why := why_no_boxes(dataset):
        yield Finding("no-training-boxes", why, "train")
    elif 2 * train.empty_images > train.images and not background_ok:
        yield Finding("mostly-background", f"{train.empty_images} of {train.images} images", "train")
    for counts in balances:
        if counts is not train and not counts.images:
            yield Finding("empty-split", "no image", counts.split)
        elif counts is not train and not counts.boxes:
            yield Finding("split-without-boxes", "nothing to measure against", counts.split)
        share = 0.0 if not counts.ignored else ignored_share(dataset.splits[counts.split])
        if share > _MOSTLY:
            yield Finding("mostly-ignored", f"{share:.0%} of the images' area", counts.split)
        if counts.images == 1:
            yield Finding("single-image-split", "one image", counts.split)
    for number, name in enumerate(dataset.class_names if train and train.boxes else ()):
        there = [f"{n} in {counts.split}" for counts in balances if (n := counts.boxes_per_class[number])]
        if train and not train.boxes_per_class[number]:
            detail = f"class {name!r}: {'only ' + ' and '.join(there) if there else 'no box in any split'}"
            yield Finding("class-without-training", detail, class_name=name)
    for source in sources_of(dataset):
        if source.not_covered and source.background_weight == 1 and source.images.get("train"):
            detail = f"does not cover {named(source.not_covered)}"
            yield Finding("uncovered-background", detail, "train", origin=f"source {source.name}")


def ignored_share(records: Split) -> float:
    """The share of the images' area that ignored regions cover. Up to a half places in several regions count several
    times, which takes no time. 0 for shards, whose labels are not in memory."""
    if records.is_shuffled:
        return 0.0
    table = records.table()
    sizes = table.images["width"].astype(np.float64) * table.images["height"]
    regions, owners = (column[table.boxes["ignored"]] for column in (table.boxes["xyxy"], table.image_of_box()))
    sides = regions[:, 2:] - regions[:, :2]
    areas = np.minimum(np.bincount(owners, sides[:, 0] * sides[:, 1], minlength=len(sizes)), sizes)
    if areas.sum() > _MOSTLY * sizes.sum():
        counts = np.bincount(owners, minlength=len(sizes))
        for image in np.flatnonzero((counts > 1) & (counts <= _MOST_REGIONS)).tolist():
            areas[image] = _area_of_union(regions[slice(*np.searchsorted(owners, [image, image + 1]))])
    return float(areas.sum() / sizes.sum())


def _area_of_union(boxes_xyxy: NDArray[np.float64]) -> float:
    """The area of boxes (N, 4), what several cover once."""
    xs, ys = np.unique(boxes_xyxy[:, ::2]), np.unique(boxes_xyxy[:, 1::2])
    is_covered = np.zeros((len(ys) - 1, len(xs) - 1), np.bool_)
    columns, rows = np.searchsorted(xs, boxes_xyxy[:, ::2]), np.searchsorted(ys, boxes_xyxy[:, 1::2])
    for (left, right), (top, bottom) in zip(columns, rows, strict=True):
        is_covered[top:bottom, left:right] = True
    return float(np.diff(ys) @ is_covered @ np.diff(xs))


def unlisted_images(dataset: DatasetIndex) -> Iterator[Finding]:
    """Folders that hold images of the dataset and others that no split names, and that reading did not tell of."""
    named = (file for one in dataset.adjustments for file in (*one.files, *((one.image,) if one.image else ())))
    keys = [*map(_hashes, dataset.splits.values()), _hashed(path_key(file.parent, file.name) for file in named)]
    known = np.sort(np.concatenate(keys))
    for folder in sorted({folder for split in dataset.splits.values() for folder in split.folders_of_images()}):
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - names are compared before paths are made
        home = path_key(folder, "")
        here = _hashed(home + name.encode("utf-8", "surrogatepass") for name in names)
        others = sorted(filter(is_image_name, (names[row] for row in np.flatnonzero(~_is_among(here, known)).tolist())))
        if others:
            detail = f"{len(others)} images that no split names: {', '.join(others[:5] + ['...'] * (len(others) > 5))}"
            paths = tuple(str(folder / name) for name in others)
            yield Finding("unlisted-image", detail, origin=str(folder), others=paths)


def _hashes(split: Split) -> NDArray[np.int64]:
    """(N,) a number for the path of each image: of two paths the same with a chance of 1 to 2^64."""
    return _hashed(split.path_keys())


def _hashed(keys: Iterable[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), np.int64)


def _is_among(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each value is one of the known ones, which are sorted; `np.isin` takes ten times as long."""
    places = np.searchsorted(known, values)
    return places < len(known) if not len(known) else known[np.minimum(places, len(known) - 1)] == values


def _told_of_reading(adjustments: Iterable[Adjustment]) -> Iterator[Told]:
    """A sentence on each kind of adjustment, or on each detail where that says more."""
    groups: dict[tuple[str, str, bool], dict[tuple[str, str], None]] = {}  # the places of what is told together
    for one in adjustments:
        kind, detail, of_image = kind_of(one), "", False
        if kind == "ignored-file" and one.image is not None:  # "NAME has points, but no box"
            detail, of_image = one.detail.removeprefix(f"{one.image.name} "), True
        elif one.files or kind in _SAID_BY_DETAIL or (kind == "repeated-image" and one.image is None):
            detail = one.detail
        same = one.detail if of_image or not detail else ""
        groups.setdefault((kind, detail, of_image), {})[one.origin, same] = None
    said: Counter[str] = Counter()
    for (kind, detail, of_image), places in groups.items():
        said[kind] += 1
        number, origins = len(places), [origin for origin, _ in places]
        if not detail:
            yield Told(KINDS[kind].severity, kind, number, sentence(kind, origins))
        elif said[kind] <= _MOST_PLACES:
            head = f"{_number(number, 'image')} left out: " if of_image else ""
            yield Told(KINDS[kind].severity, kind, number, f"{head}{detail} ({_listed([*dict.fromkeys(origins)])})")
    for kind, number in said.items():
        if number > _MOST_PLACES:
            more = number - _MOST_PLACES
            yield Told(KINDS[kind].severity, kind, more, f"and {more} more such: {KINDS[kind].words(more)}")


def _told_of_findings(findings: Iterable[Finding]) -> Iterator[Told]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    for kind, found in groups.items():
        places = [finding.line() for finding in found]
        yield Told(KINDS[kind].severity, kind, len(found), sentence(kind, places))


def sentence(kind: str, places: Sequence[str]) -> str:
    """How many findings of a kind there are, what reading did about it, and the first places."""
    done = KINDS[kind].done
    did = f", {done}" if done in ("clipped", "dropped", "left out", "ignored") else ""
    return f"{KINDS[kind].counted(len(places))}{did} ({_listed(places)})"


def _listed(places: Sequence[str]) -> str:
    more = len(places) - _MOST_PLACES
    return ", ".join(places[:_MOST_PLACES]) + (f" and {more} more" if more > 0 else "")


# Images in two splits.


def _told_of_shared(splits: Mapping[str, Split]) -> Iterator[Told]:
    shared, is_sample = shared_images(splits)
    number = sum(map(len, shared.values()))
    if number:
        first = [path for split, rows in shared.items() for path in splits[split].paths_at(rows[:_MOST_PLACES])]
        more = f" and {number - _MOST_PLACES} more" if number > _MOST_PLACES else ""
        limit = f"; of each split the content of up to {_MOST_FILES} files was compared" if is_sample else ""
        text = KINDS["shared-image"].counted(number)
        shown = ", ".join(map(str, first[:_MOST_PLACES]))
        yield Told(KINDS["shared-image"].severity, "shared-image", number, f"{text} ({shown}{more}{limit})")


def shared_images(splits: Mapping[str, Split]) -> tuple[dict[str, list[int]], bool]:
    """Of each split the rows of images that an earlier split has, too: by the same path, or the same bytes in another
    file; and whether only some of the files were compared.

    All paths are compared; of files that have the same size the middle is, and where that agrees, all. Of each split up
    to 10 000 files are compared, evenly chosen (of a shuffled one the first), and up to 500 MB are read in all.
    """
    if len(splits) < 2:
        return {name: [] for name in splits}, False
    shared: dict[str, list[int]] = {}
    earlier = np.zeros(0, np.int64)
    for name, split in splits.items():
        keys = _hashes(split)
        shared[name] = np.flatnonzero(_is_among(keys, earlier)).tolist()
        earlier = np.sort(np.concatenate([earlier, keys]))
    numbers = {name: number for number, name in enumerate(splits)}
    files = []
    for name, split in splits.items():
        step = 1 if split.is_shuffled else max(1, -(-len(split) // _MOST_FILES))
        rows = sorted(set(range(0, len(split), step)[:_MOST_FILES]).difference(shared[name]))
        files += [_File(numbers[name], row, path) for row, path in zip(rows, split.paths_at(rows), strict=True)]
    for group in _same_content(files):
        first = min(file.split for file in group)
        for file in group:
            if file.split > first:
                shared[list(splits)[file.split]].append(file.row)
    is_sample = any(len(split) > _MOST_FILES for split in splits.values())
    return {name: sorted(rows) for name, rows in shared.items()}, is_sample


class _File(NamedTuple):
    split: int
    row: int
    path: Path


def _same_content(files: Sequence[_File]) -> list[list[_File]]:
    """The groups of files with the same bytes that lie in more than one split."""
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:  # remote disks answer many at once

        def divided(groups: Iterable[Sequence[_File]], key: Callable[[Path], object]) -> list[list[_File]]:
            """The groups, each divided by a key of its files, as far as they are of several splits."""
            parts: dict[tuple[int, object], list[_File]] = {}
            rows = [(number, file) for number, group in enumerate(groups) for file in group]
            blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
            values = pool.map(lambda block: [key(file.path) for _, file in block], blocks)
            for (number, file), value in zip(rows, chain.from_iterable(values), strict=True):
                if value is not None:
                    parts.setdefault((number, value), []).append(file)
            return [group for group in parts.values() if len({file.split for file in group}) > 1]

        groups = divided(divided([files], _num_bytes), _middle)
        kept, num_bytes = [], 0
        for group in groups:
            num_bytes += len(group) * (_num_bytes(group[0].path) or 0)
            if num_bytes <= _MOST_BYTES:
                kept.append(group)
        return divided(kept, partial(_read, read=lambda file: hashlib.sha256(file.read()).digest()))


def _num_bytes(path: Path) -> int | None:
    """How long an image's file is; None, here and below, where it cannot be read, which the decoder will tell."""
    try:
        return locate_image(path)[1] if leads_into_shard(path) else path.stat().st_size
    except (OSError, InputError):
        return None


def _middle(path: Path) -> bytes | None:
    def piece(file: Any) -> bytes:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        return bytes(file.read(_PIECE))

    return _read(path, piece)


def _read(path: Path, read: Callable[[Any], bytes]) -> bytes | None:
    try:
        with open_image(path) as file:
            return read(file)
    except (OSError, InputError):
        return None
