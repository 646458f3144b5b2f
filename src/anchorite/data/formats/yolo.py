"""YOLO datasets: a data.yaml, and one text file an image with rows `class cx cy w h`, normalised to 0..1.

The labels of .../images/.../a.jpg stand in .../labels/.../a.txt (the last `images` within the dataset counts), else
beside the image; an image without a label file is background. Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from anchorite.data.dataset import DatasetIndex
from anchorite.data.formats.common import (
    Fence,
    Folders,
    RawBox,
    ReadingLog,
    build_record,
    exists,
    is_class_name,
    is_image_name,
    plain_integer,
    plain_number,
    read_image_header,
    split_of,
    walk_images,
)
from anchorite.data.headers import ImageHeader
from anchorite.data.records import Record, RecordTable, TableBuilder
from anchorite.errors import InputError
from anchorite.plain_yaml import kind_of, line_of, read_yaml_mapping
from anchorite.reading import printable, read_limited, shorten


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


_MAX_LINE_BYTES = 1_000_000
_MAX_LABEL_BYTES = 64_000_000
_MAX_LIST_BYTES = 512_000_000
_BOM = b"\xef\xbb\xbf"

# Numbers written with four decimals may lie this far outside 0..1 by rounding alone.
RANGE_TOLERANCE = 1e-4

YoloRow = tuple[int, float, float, float, float]


def find_yolo(folder: Path, fence: Fence) -> Path | None:
    """The data.yaml of a folder: a file of that name, else the only *.yaml with names and a train split.

    Raises InputError when it is a link that leads out of the fence.
    """
    for name in ("data.yaml", "data.yml"):
        if (folder / name).is_file():
            return fence.check(folder / name)
    candidates = [path for path in sorted(folder.glob("*.y*ml")) if not fence.refusal(path)]
    fitting = [path for path in candidates if _is_yolo_yaml(path)]
    if len(fitting) > 1:
        listed = ", ".join(path.name for path in fitting)
        raise InputError(f"{folder}: several files could be the data.yaml ({listed}); name the one to use")
    return fitting[0] if fitting else None


def _is_yolo_yaml(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml"):
        return False
    try:
        keys = read_yaml_mapping(path).keys()
    except InputError:
        return False
    return "names" in keys and "train" in keys


def read_yolo(yaml_path: Path, root: Path, log: ReadingLog, allow_outside: bool = False) -> DatasetIndex:
    """Read the dataset of a data.yaml; records in the order of path, or of the list where a split is a list.

    Raises InputError for a bad data.yaml at once, and for bad rows and images after all have been read.
    """
    fence = Fence([yaml_path.parent], allow_outside)
    log.dependencies.add_file(yaml_path)
    config = read_yolo_config(yaml_path, fence, log)
    reader = _YoloReader(config, yaml_path.parent, fence, log)
    splits = {split: reader.read_split(split, sources) for split, sources in config.splits.items()}
    log.split = None
    log.raise_if_bad(root)
    return DatasetIndex(root, "yolo", config.class_names, splits, log.adjustments)


def parse_row(line: bytes, num_classes: int) -> YoloRow | str:
    """One row of a label file as class and normalised cx, cy, w, h; or the reason why it is none."""
    if len(line) > _MAX_LINE_BYTES:
        return f"a line of {len(line)} bytes; a row has five numbers"
    if b"\0" in line:
        return "the line contains NUL bytes; the file is damaged"
    try:
        columns = line.decode("utf-8").replace("\t", " ").strip(" \r").split(" ")
    except UnicodeDecodeError:
        return f"the line is not UTF-8 text ({shorten(line)})"
    columns = [column for column in columns if column]
    if len(columns) != 5:
        hint = "; polygons and key points are not read" if len(columns) > 5 else ""
        return f"{len(columns)} columns, not the 5 of `class cx cy w h`{hint} ({shorten(' '.join(columns))})"
    class_id = plain_integer(columns[0])
    if class_id is None or class_id >= num_classes:
        return f"the class must be a whole number 0..{num_classes - 1} ({shorten(columns[0])})"
    numbers: list[float] = []
    for name, column in zip(("cx", "cy", "w", "h"), columns[1:], strict=True):
        number = plain_number(column)
        if number is None:
            return f"{name} must be a plain finite number ({shorten(column)})"
        if not -RANGE_TOLERANCE <= number <= 1 + RANGE_TOLERANCE or (number < 0 and name in "wh"):
            return f"{name} must lie in 0..1, as a part of the image's size ({shorten(column)})"
        numbers.append(number)
    return (class_id, numbers[0], numbers[1], numbers[2], numbers[3])


class _YoloReader:
    """Reads the splits of one data.yaml, sharing folder listings."""

    def __init__(self, config: YoloConfig, home: Path, fence: Fence, log: ReadingLog) -> None:
        self._config = config
        self._home = home
        self._fence = fence
        self._log = log
        self._folders = Folders(log.dependencies)

    def read_split(self, split: str, sources: Iterable[SplitSource]) -> RecordTable:
        """The records of a split's folders and lists, in their order, each image once."""
        self._log.split = split
        records = TableBuilder()
        first_origins: dict[Path, str] = {}
        num_labelled = 0
        for source in sources:
            is_list = source.path.is_file()
            images = self._listed_images(source) if is_list else self._folder_images(source)
            label_paths: set[Path] = set()
            for image, origin in images:
                if image in first_origins:
                    detail = f"{image} stands in {first_origins[image]} already"
                    self._log.adjusted("repeated-image", origin, detail, image=image)
                    continue
                first_origins[image] = origin
                label_path = self._label_path(image)
                label_paths.add(label_path)
                num_labelled += self._folders.has(label_path)
                record = self._read_image(image, label_path)
                if record is not None:
                    records.append(record)
            if not is_list:
                self._note_unused_labels(label_paths, source)
        if first_origins and not num_labelled:
            image = next(iter(first_origins))
            self._log.adjusted(
                "no-labels",
                first_origins[image],
                f"none of the {len(first_origins)} images has a label file; looked for {self._label_path(image)}",
            )
        return records.table()

    def _folder_images(self, source: SplitSource) -> list[tuple[Path, str]]:
        images = sorted(walk_images(source.path, self._fence, self._log.dependencies), key=lambda path: path.parts)
        return [(image, source.origin) for image in images]

    def _listed_images(self, source: SplitSource) -> list[tuple[Path, str]]:
        images: list[tuple[Path, str]] = []
        self._log.dependencies.add_file(source.path)
        lines = read_limited(source.path, _MAX_LIST_BYTES).removeprefix(_BOM).split(b"\n")
        for number, line in enumerate(lines, start=1):
            origin = f"{source.path}:{number}"
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError:
                self._log.bad(origin, f"the line is not UTF-8 text ({shorten(line)})")
                continue
            if "\0" in text or not is_image_name(Path(text).name):
                self._log.bad(origin, f"not the name of an image ({shorten(text)})")
                continue
            places = [folder / text for folder in (source.path.parent, self._config.folder)]
            found = [place for place in places if self._folders.has(place)]
            if found:
                images.append((found[0], origin))
            else:
                self._log.bad(origin, f"the image does not exist ({shorten(text)}; looked at {places[0]})")
        return images

    def _label_path(self, image: Path) -> Path:
        beside = image.with_suffix(".txt")
        for base in (self._home, self._config.folder, Path(image.anchor)):
            if not image.is_relative_to(base):
                continue
            folders = list(image.relative_to(base).parent.parts)
            if "images" not in folders:
                break
            last = len(folders) - 1 - folders[::-1].index("images")
            apart = base.joinpath(*folders[:last], "labels", *folders[last + 1 :], beside.name)
            return beside if self._folders.has(beside) and not self._folders.has(apart) else apart
        return beside

    def _read_image(self, image: Path, label_path: Path) -> Record | None:
        header = read_image_header(image, self._fence, self._log)
        if header is None:
            return None
        boxes: list[RawBox] | None = []
        if self._folders.has(label_path):
            boxes = self._read_labels(label_path, image, header)
        if boxes is None:
            return None
        return build_record(image, header, boxes, self._config.class_names, self._log)

    def _read_labels(self, path: Path, image: Path, header: ImageHeader) -> list[RawBox] | None:
        refusal = self._fence.refusal(path)
        self._log.dependencies.add_file(path)
        try:
            if refusal:
                raise InputError(refusal)
            lines = read_limited(path, _MAX_LABEL_BYTES).removeprefix(_BOM).split(b"\n")
        except InputError as error:
            self._log.bad(str(path), str(error).removeprefix(f"{path}: "), image)
            return None
        boxes: list[RawBox] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip(b" \t\r"):
                continue
            origin = f"{path}:{number}"
            row = parse_row(line, len(self._config.class_names))
            if isinstance(row, str):
                self._log.bad(origin, row, image)
            else:
                boxes.append(RawBox(row[0], _to_pixels(row, header), origin))
        return boxes

    def _note_unused_labels(self, label_paths: set[Path], source: SplitSource) -> None:
        for folder in sorted({path.parent for path in label_paths}):
            if folder.is_relative_to(source.path):  # beside the images, any text file may lie
                continue
            texts = {folder / name for name in self._folders.names(folder) if name.endswith(".txt")}
            unused = sorted(path.name for path in texts - label_paths if path.name != "classes.txt")
            if unused:
                listed = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
                detail = f"{len(unused)} label files without image: {listed}"
                files = tuple(folder / name for name in unused)
                self._log.adjusted("unused-label", str(folder), detail, files=files)


def _to_pixels(row: YoloRow, header: ImageHeader) -> tuple[float, float, float, float]:
    _, cx, cy, w, h = row
    return (
        (cx - w / 2) * header.width,
        (cy - h / 2) * header.height,
        (cx + w / 2) * header.width,
        (cy + h / 2) * header.height,
    )
