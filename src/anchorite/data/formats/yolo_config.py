"""What a data.yaml says: class names, and where each split's images are.

Legend: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import Fence, exists, split_of
from anchorite.data.formats.text import is_class_name, plain_integer
from anchorite.errors import InputError
from anchorite.plain_yaml import kind_of, line_of, read_yaml_mapping
from anchorite.reading import printable, shorten


@dataclass(frozen=True, slots=True)
class SplitSource:
    """One folder of images, or one text file that lists images; origin: the "file:line" that names it."""

    path: Path
    origin: str


@dataclass(frozen=True, slots=True)
class YoloConfig:
    """A data.yaml as read. folder: what `path:` names, else the yaml's own folder; class_names: K names."""

    folder: Path
    class_names: tuple[str, ...]
    splits: dict[str, tuple[SplitSource, ...]]


def read_yolo_config(path: Path, fence: Fence, log: ReadingLog) -> YoloConfig:
    """Read a data.yaml; `download:` is never run.

    Raises InputError naming file and line for anything amiss: these mistakes concern the whole dataset, so there is
    nothing to skip.
    """
    nodes = read_yaml_mapping(path)
    class_names = _class_names(nodes, path)
    _check_count(nodes, path, len(class_names))
    folder = _folder(nodes, path, fence, log)
    splits: dict[str, tuple[SplitSource, ...]] = {}
    for key, node in nodes.items():
        split = split_of(key)
        if split is None or kind_of(node) == "null":
            continue
        if split in splits:
            raise InputError(
                f"{path}:{line_of(node)}: {printable(key, 60)}: names the {split} split a second time; remove one"
            )
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        splits[split] = tuple(_source(item, key, path, folder, fence, log) for item in items)
    if not splits:
        raise InputError(f"{path}: no split; add lines such as `train: images/train` and `val: images/val`")
    if "download" in nodes:
        origin = f"{path}:{line_of(nodes['download'])}"
        log.adjusted("ignored-key", origin, "download: is never run; all splits are here already")
    return YoloConfig(folder, class_names, splits)


def _class_names(nodes: dict[str, yaml.Node], path: Path) -> tuple[str, ...]:
    if "names" not in nodes:
        raise InputError(f"{path}: no names; add a line such as `names: [cat, dog]`, in the order of the class numbers")
    node = nodes["names"]
    if isinstance(node, yaml.SequenceNode):
        items = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        items = _in_class_order(node, path)
    else:
        raise InputError(f"{path}:{line_of(node)}: names must be a list such as [cat, dog]; got {shorten(node.value)}")
    if not items:
        raise InputError(f"{path}:{line_of(node)}: names is empty; name at least one class")
    lines: dict[str, int] = {}
    for item in items:
        name, line = _class_name(item, path), line_of(item)
        if name in lines:
            raise InputError(
                f"{path}:{line}: the class name {shorten(name)} stands twice (line {lines[name]}); rename one"
            )
        lines[name] = line
    return tuple(lines)


def _class_name(node: yaml.Node, path: Path) -> str:
    where = f"{path}:{line_of(node)}"
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{where}: a class name must be a word; got a nested list or mapping")
    if kind_of(node) != "str":
        raise InputError(
            f"{where}: YAML reads the class name {shorten(node.value)} as {kind_of(node)}; put it in quotes: "
            f'"{printable(node.value, 60)}"'
        )
    if not is_class_name(node.value):
        raise InputError(f"{where}: {shorten(node.value)} cannot name a class; give it a word")
    return str(node.value)


def _in_class_order(node: yaml.MappingNode, path: Path) -> list[yaml.Node]:
    items: dict[int, yaml.Node] = {}
    for key, value in node.value:
        number = plain_integer(key.value)
        if number is None:
            raise InputError(f"{path}:{line_of(key)}: names: {shorten(key.value)} is not a class number; count from 0")
        if number in items:
            raise InputError(f"{path}:{line_of(key)}: names: class {number} stands twice; remove one")
        items[number] = value
    missing = set(range(len(items))) - set(items)
    if missing:
        raise InputError(
            f"{path}:{line_of(node)}: names: class {min(missing)} is missing; {len(items)} names need the numbers "
            f"0..{len(items) - 1}"
        )
    return [items[number] for number in range(len(items))]


def _check_count(nodes: dict[str, yaml.Node], path: Path, num_names: int) -> None:
    node = nodes.get("nc")
    if node is None or kind_of(node) == "null":
        return
    stated = plain_integer(node.value) if isinstance(node, yaml.ScalarNode) else None
    if stated != num_names:
        raise InputError(
            f"{path}:{line_of(node)}: nc is {shorten(node.value)}, but names has {num_names}; correct the one that is "
            "wrong, or remove nc"
        )


def _folder(nodes: dict[str, yaml.Node], path: Path, fence: Fence, log: ReadingLog) -> Path:
    node = nodes.get("path")
    if node is None or kind_of(node) == "null":
        return path.parent
    origin = f"{path}:{line_of(node)}"
    text = _text(node, "path", origin)
    folder, shown = path.parent / text, printable(text, 100)
    log.dependencies.add_candidate(folder)
    refusal = fence.refusal(folder)
    if refusal:
        raise InputError(f"{origin}: path: {shown} {refusal}; without path, the yaml's own folder is taken")
    if not exists(folder) or not folder.is_dir():
        raise InputError(
            f"{origin}: path: {shown} is not a folder (looked at {printable(str(folder), 300)}); "
            "correct or remove the line"
        )
    return folder


def _source(node: yaml.Node, key: str, path: Path, folder: Path, fence: Fence, log: ReadingLog) -> SplitSource:
    origin = f"{path}:{line_of(node)}"
    text = _text(node, key, origin)
    target, shown = folder / text, printable(text, 100)
    log.dependencies.add_candidate(target)
    key = printable(key, 60)
    refusal = fence.refusal(target)
    if refusal or not exists(target):
        inside = path.parent / _without_leading_parents(text)
        log.dependencies.add_candidate(inside)
        if inside not in (target, path.parent) and exists(inside) and not fence.refusal(inside):
            # A common exporter writes ../train/images for the train/images that lies beside its data.yaml.
            log.adjusted("relocated", origin, f"{key}: {shown} does not lie in the dataset; took {inside}")
            return SplitSource(inside, origin)
    if refusal:
        raise InputError(f"{origin}: {key}: {shown} {refusal}")
    if not exists(target):
        raise InputError(
            f"{origin}: {key}: {shown} does not exist (looked at {printable(str(target), 300)}); "
            "correct the path or remove the line. A download: key is never run"
        )
    if target.is_file() and target.suffix.lower() != ".txt":
        raise InputError(f"{origin}: {key}: {shown} is neither a folder of images nor a .txt list of them")
    return SplitSource(target, origin)


def _text(node: yaml.Node, key: str, origin: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or "\0" in node.value:
        raise InputError(f"{origin}: {key}: must be a path; got {shorten(node.value)}")
    return str(node.value)


def _without_leading_parents(text: str) -> str:
    parts = PurePosixPath(text).parts
    while parts and parts[0] == "..":
        parts = parts[1:]
    return str(PurePosixPath(*parts))
