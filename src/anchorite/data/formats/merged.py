"""Several data sets as one: a YAML that lists them, as sources of labels that need not cover the same classes.

    sources:
      - data: farm               # a folder or label file, by its path from this file
        covers: [cat, dog]       # the classes that are labelled here; without it those of the source, `all` for all
        background_weight: 0.5   # how much its places without an object count, 0..1
        ignore_classes: [other]  # their objects are ignored regions; and scores, format: as in `open_dataset`
      - data: street/annotations.json
    names: [dog, cat, bird]      # the order of the classes; without it that of their first appearance

Classes are joined by name and splits by theirs. Nothing here is cached: each source has a cached index of its own.

Legend: K classes of all sources, S sources.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from anchorite.choices import FormatName, ScoresUse
from anchorite.data.dataset import (
    BOX_ROW,
    IMAGE_ROW,
    NO_CLASS,
    ONE_SOURCE,
    DatasetIndex,
    LabelSource,
    RecordTable,
    StringArray,
)
from anchorite.data.formats.common import (
    MAX_LISTED,
    SPLITS,
    Fence,
    ReadingLog,
    distinct_class_names,
    exists,
    files_with_suffix,
    plain_number,
)
from anchorite.errors import InputError
from anchorite.keywords import suggestion
from anchorite.plain_yaml import kind_of, line_of, read_yaml_mapping
from anchorite.reading import printable, shorten

LOOKED_FOR = "several data sets: a *.yaml with `sources: [{data: PATH}, ...]`"
SUFFIXES = ".yaml", ".yml"
_KEYS = "sources", "names"
_KEYS_OF_SOURCE = "data", "covers", "background_weight", "ignore_classes", "scores", "format"
_ALL = "all"
_TEXTS = "folders", "names", "heads"  # of a table

Opener = Callable[..., DatasetIndex]  # open_dataset


@dataclass(frozen=True)
class _Source:
    """What the YAML says of a source. name: its path as written; where: "FILE:LINE: source NAME"; covers: None for the
    classes that it has itself; options: what it is opened with."""

    name: str
    where: str
    path: Path
    covers: Sequence[str] | str | None
    background_weight: float
    options: Mapping[str, Any]


def find(root: Path, log: ReadingLog, fence: Fence) -> Path | None:
    """The YAML of sources: the file that is named, or in a folder without a data.yaml of its own the only one.

    InputError when there are several.
    """
    candidates = [root] if root.is_file() else files_with_suffix(root, *SUFFIXES)
    if others := [path for path in candidates if path.stem.lower() == "data"]:
        candidates = others
    found = [path for path in candidates if path.is_file() and not fence.refusal(path) and _has_sources(path)]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise InputError(f"{root}: several files list sources ({listed}); name the one to use")
    return found[0] if found else None


def _has_sources(path: Path) -> bool:
    """Whether a YAML lists sources; what cannot be read is left to other formats, which say what is wrong with it."""
    try:
        return "sources" in read_yaml_mapping(path)
    except InputError:
        return False


def read(path: Path, log: ReadingLog, opened: Opener, allow_outside: bool, **options: Any) -> DatasetIndex:
    """The sources of a YAML as one dataset; its adjustments are those of all of them.

    opened: `open_dataset`; options: its keywords for all sources, to which those of a source are added. Raises
    InputError naming file, line and source for whatever is amiss, also with `skip_bad`: it concerns all labels.
    """
    nodes = read_yaml_mapping(path)
    _refuse_unknown(path, nodes, _KEYS, "a YAML of sources")
    fence = Fence([path.parent], allow_outside)
    sources = _sources(nodes["sources"], path, fence, log)
    extra, known = list(options.pop("ignore_classes", ())), set[str]()
    indexes = []
    for source in sources:
        own = source.options.get("ignore_classes", ())
        index = _opened(source, opened, {**options, **source.options, "allow_outside": allow_outside})
        known.update(index.class_names, index.ignored_classes)
        if here := [name for name in extra if name in index.class_names]:  # which of them it has is only known now
            again = {**options, **source.options, "ignore_classes": [*own, *here]}
            index = _opened(source, opened, {**again, "allow_outside": allow_outside})
        indexes.append(index)
    if unknown := [name for name in extra if name not in known]:
        raise InputError(
            f"{path}: ignore class {shorten(unknown[0])}: no source has such a class"
            f"{suggestion(unknown[0], sorted(known)) or _there_are(sorted(known))}"
        )
    class_names = _class_names(nodes.get("names"), indexes, path, extra)
    labels = [
        LabelSource(source.name, _covered(source, index, class_names, extra), source.background_weight)
        for source, index in zip(sources, indexes, strict=True)
    ]
    splits = _joined(indexes, labels, class_names)
    for source, index, label in zip(sources, indexes, labels, strict=True):
        _refuse_uncovered(source, index, label, class_names)
    _refuse_shared_images(sources, indexes)
    adjustments = tuple(one for index in indexes for one in index.adjustments)
    skip_bad = bool(options.get("skip_bad", False))
    return DatasetIndex(path, "merged", class_names, splits, adjustments, allow_outside, skip_bad)


# The YAML.


def _fault(path: Path, node: yaml.Node, reason: str) -> InputError:
    return InputError(f"{path}:{line_of(node)}: {reason}")


def _there_are(names: Iterable[str]) -> str:
    shown = [printable(name, 60) for name in names]
    return f"; there are {', '.join(shown[:20])}" + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _refuse_unknown(path: Path, nodes: Mapping[str, yaml.Node], known: Sequence[str], what: str) -> None:
    for key, node in nodes.items():
        if key not in known:
            hint = suggestion(key, known) or _there_are(known)
            raise _fault(path, node, f"{what} has no key {shorten(key)}{hint}")


def _sources(node: yaml.Node, path: Path, fence: Fence, log: ReadingLog) -> list[_Source]:
    example = "such as `sources: [{data: farm}, {data: street}]`"
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise _fault(path, node, f"sources must be a list of data sets, {example}")
    sources: list[_Source] = []
    first: dict[str, _Source] = {}
    for item in node.value:
        if not isinstance(item, yaml.MappingNode):
            raise _fault(path, item, f"a source must be a mapping, {example}; got {shorten(item.value)}")
        source = _source({str(key.value): value for key, value in item.value}, item, path, fence, log)
        key = os.path.realpath(source.path)
        if key in first:
            raise InputError(f"{source.where} is {first[key].name}, which stands there already; remove one")
        first[key] = source
        sources.append(source)
    return sources


def _source(nodes: Mapping[str, yaml.Node], item: yaml.Node, path: Path, fence: Fence, log: ReadingLog) -> _Source:
    _refuse_unknown(path, nodes, _KEYS_OF_SOURCE, "a source")
    data = nodes.get("data")
    if data is None:
        raise _fault(path, item, "a source without data; add `data: PATH`, the path of a folder or label file")
    if not isinstance(data, yaml.ScalarNode) or kind_of(data) == "null" or not data.value.strip() or "\0" in data.value:
        raise _fault(path, data, f"data must be the path of a folder or label file; got {shorten(data.value)}")
    text = str(data.value)
    name, target = printable(text, 100), path.parent / text
    where = f"{path}:{line_of(data)}: source {name}"
    if not exists(target):
        raise InputError(f"{where} does not exist (looked at {printable(str(target), 300)}); correct the path")
    if refusal := fence.refusal(target):
        raise InputError(f"{where} {refusal}")
    if find(target, log, Fence([target], allow_outside=True)) is not None:
        raise InputError(f"{where} lists sources itself; name its sources here instead")
    options: dict[str, Any] = {}
    if "ignore_classes" in nodes:
        options["ignore_classes"] = _names("ignore_classes", nodes["ignore_classes"], path)
    allowed = {"scores": get_args(ScoresUse), "format": tuple(one for one in get_args(FormatName) if one != "merged")}
    for key, choices in allowed.items():
        if key in nodes:
            value = nodes[key].value
            if value not in choices:
                raise _fault(path, nodes[key], f"{key} must be one of {', '.join(choices)}; got {shorten(value)}")
            options[key] = value
    covers: Sequence[str] | str | None = None
    if node := nodes.get("covers"):
        is_all = isinstance(node, yaml.ScalarNode) and node.value == _ALL
        covers = _ALL if is_all else _names("covers", node, path)
    weight = 1.0
    if node := nodes.get("background_weight"):
        number = plain_number(node.value) if isinstance(node, yaml.ScalarNode) else None
        if number is None or not 0 <= number <= 1:
            raise _fault(path, node, f"background_weight must be a number from 0 to 1; got {shorten(node.value)}")
        weight = number
    return _Source(name, where, target, covers, weight, options)


def _names(key: str, node: yaml.Node, path: Path) -> tuple[str, ...]:
    """A list of class names."""
    is_list = isinstance(node, yaml.SequenceNode)
    if not is_list or not (node.value or key == "covers"):  # images of background alone need cover no class
        also = " or `all`" if key == "covers" else ""
        raise _fault(path, node, f"{key} must be a list of class names, such as [cat, dog]{also}; got {_shown(node)}")
    for item in node.value:
        if kind_of(item) != "str":
            quoted = f'put it in quotes: "{printable(str(item.value), 60)}"'
            raise _fault(path, item, f"{key}: YAML reads {_shown(item)} as {kind_of(item)}; a name is a word: {quoted}")
    return distinct_class_names(((line_of(item), item.value) for item in node.value), path)


def _shown(node: yaml.Node) -> str:
    return shorten(node.value) if isinstance(node, yaml.ScalarNode) else kind_of(node)


# The sources, and what is said of each.


def _opened(source: _Source, opened: Opener, options: Mapping[str, Any]) -> DatasetIndex:
    try:
        index = opened(source.path, **options)
    except InputError as error:
        raise InputError(f"{source.where}: {error}") from error
    splits = {name: split.table() for name, split in index.splits.items()}
    if any(set(split.label_sources) - {ONE_SOURCE} for split in splits.values()):
        raise InputError(f"{source.where} was made of several sources itself; name these here instead")
    return replace(index, splits=splits)


def _class_names(
    node: yaml.Node | None, indexes: Sequence[DatasetIndex], path: Path, ignored: Sequence[str]
) -> tuple[str, ...]:
    """The classes of all sources, in the order that the YAML gives, or of their first appearance. ignored, here and
    below: classes that are ignored in all sources, which the YAML need not know of."""
    appearing = tuple(dict.fromkeys(name for index in indexes for name in index.class_names))
    if node is None:
        return appearing
    names = tuple(name for name in _names("names", node, path) if name not in ignored)
    for name in names:
        if name not in appearing:
            raise _fault(path, node, f"names: no source has the class {shorten(name)}{_there_are(appearing)}")
    if missing := [name for name in appearing if name not in names]:
        raise _fault(
            path, node, f"names: the class {shorten(missing[0])} is missing; list all, or none by leaving it out"
        )
    return names


def _covered(
    source: _Source, index: DatasetIndex, class_names: Sequence[str], ignored: Sequence[str]
) -> tuple[bool, ...] | None:
    """Whether the labels of a source cover each class; None where they cover all."""
    names = index.class_names if source.covers is None else class_names if source.covers == _ALL else source.covers
    for name in names:
        if name not in class_names and name not in ignored:
            hint = suggestion(name, class_names) or _there_are(class_names)
            raise InputError(f"{source.where}: covers: no source has the class {shorten(name)}{hint}")
    flags = tuple(name in names for name in class_names)
    return None if all(flags) else flags


def _refuse_uncovered(source: _Source, index: DatasetIndex, label: LabelSource, class_names: Sequence[str]) -> None:
    """InputError, with the first 20 places, where objects of a source are of classes that it does not cover."""
    if label.covered is None:
        return
    covered = np.array([label.covered[class_names.index(name)] for name in index.class_names] + [True])  # NO_CLASS
    lines, counts = list[str](), Counter[str]()
    for split in index.splits.values():
        table = split.table()
        images = table.image_of_box()
        for row in np.flatnonzero(~covered[table.boxes["class_id"]] & ~table.boxes["ignored"]).tolist():
            name = index.class_names[int(table.boxes["class_id"][row])]
            counts[name] += 1
            if len(lines) < MAX_LISTED:
                image = int(images[row])
                origin = table[image].origins[row - int(table.ends[image] - table.images["num_boxes"][image])]
                lines.append(f"  {printable(origin)}: {printable(name)}")
    if counts:
        listed, number = ", ".join(printable(name, 60) for name in counts), counts.total()
        more = [f"  and {number - MAX_LISTED} more"] if number > MAX_LISTED else []
        raise InputError(
            f"{source.where} labels objects of classes that it does not cover ({listed}):\n"
            + "\n".join(lines + more)
            + f"\nAdd these classes to its covers, or write `ignore_classes: [{listed}]` there: their places are then "
            "ignored"
        )


def _refuse_shared_images(sources: Sequence[_Source], indexes: Sequence[DatasetIndex]) -> None:
    """InputError where an image is in two sources: the labels of one would say that the objects of the other are not
    there. Compared as numbers, which take a tenth of the memory of paths."""

    def keys(number: int) -> Iterator[bytes]:
        return chain.from_iterable(split.path_keys() for split in indexes[number].splits.values())

    hashes = [np.fromiter(map(hash, keys(number)), np.int64) for number in range(len(indexes))]
    owners = np.repeat(np.arange(len(hashes)), list(map(len, hashes)))
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")
    is_shared = (np.diff(every[order]) == 0) & (np.diff(owners[order]) != 0)
    for place in np.flatnonzero(is_shared).tolist():
        first, second = owners[order[[place, place + 1]]].tolist()
        if shared := set(keys(first)).intersection(keys(second)):
            raise InputError(
                f"{sources[second].where}: the image {printable(os.fsdecode(min(shared)))} is in source "
                f"{sources[first].name}, too; take it out of one"
            )


def _joined(
    indexes: Sequence[DatasetIndex], labels: Sequence[LabelSource], class_names: Sequence[str]
) -> dict[str, RecordTable]:
    """The splits of all sources, each with the images of one source behind those of another."""
    ids = {name: number for number, name in enumerate(class_names)}
    numbers = [np.array([*(ids[name] for name in index.class_names), NO_CLASS]) for index in indexes]
    joined = {}
    for split in SPLITS:
        parts = [
            (index.splits[split].table(), class_ids, label)
            for index, class_ids, label in zip(indexes, numbers, labels, strict=True)
            if split in index.splits
        ]
        if parts:
            joined[split] = _joined_tables(parts)
    return joined


def _joined_tables(parts: Sequence[tuple[RecordTable, NDArray[np.int64], LabelSource]]) -> RecordTable:
    """One table of several; with each, its class numbers here by those it has, and its source."""
    tables = [table for table, _, _ in parts]
    images = np.zeros(sum(map(len, tables)), IMAGE_ROW)
    boxes = np.zeros(sum(len(table.boxes) for table in tables), BOX_ROW)
    starts = [accumulate(map(len, column), initial=0) for column in (tables, [table.boxes for table in tables])]
    folders = accumulate((len(table.folders) for table in tables), initial=0)
    heads = accumulate((len(table.heads) for table in tables), initial=0)
    rows = zip(parts, *starts, folders, heads, strict=False)
    for source_id, ((table, class_ids, _), image, box, folder_id, head_id) in enumerate(rows):
        some_images, some_boxes = images[image:][: len(table)], boxes[box:][: len(table.boxes)]
        some_images[:], some_boxes[:] = table.images, table.boxes
        some_images["folder_id"] += folder_id
        some_images["source_id"] = source_id
        some_boxes["head_id"] += head_id
        some_boxes["class_id"] = class_ids[table.boxes["class_id"]]
    texts = {name: StringArray(np.concatenate([getattr(one, name).data for one in tables])) for name in _TEXTS}
    files = tuple(file for table in tables for file in table.files)
    return RecordTable(images, boxes, **texts, files=files, label_sources=tuple(label for _, _, label in parts))
