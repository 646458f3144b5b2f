"""YOLO datasets: a data.yaml, and one text file an image with rows `class cx cy w h`, normalised to 0..1.

The labels of .../images/.../a.jpg stand in .../labels/.../a.txt (the last `images` within the dataset counts), else
beside the image; an image without a label file is background. Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from pathlib import Path, PurePosixPath

import yaml

from anchorite.data.dataset import RecordTable, pack_box
from anchorite.data.formats.common import (
    ClassesAndSplits,
    Fence,
    ReadingLog,
    SplitBuilder,
    distinct_class_names,
    exists,
    is_image_name,
    plain_integer,
    plain_number,
    split_of,
    walk_images,
)
from anchorite.data.headers import ImageHeader
from anchorite.errors import InputError
from anchorite.plain_yaml import kind_of, line_of, read_yaml_mapping
from anchorite.reading import printable, read_limited, shorten

LOOKED_FOR = "YOLO: data.yaml, or one *.yaml with names and train"
SUFFIXES = ".yaml", ".yml"
_MAX_LINE_BYTES = 1_000_000
_MAX_LABEL_BYTES = 64_000_000
_MAX_LIST_BYTES = 512_000_000
_BOM = b"\xef\xbb\xbf"

# Numbers written with four decimals may lie this far outside 0..1 by rounding alone.
RANGE_TOLERANCE = 1e-4

YoloRow = tuple[int, float, float, float, float]
SplitSource = tuple[Path, str]  # a folder of images or a text file that lists images, and the "file:line" that names it


def find(root: Path, log: ReadingLog, fence: Fence) -> Path | None:
    """The data.yaml of a folder: a file of that name, else the only *.yaml with names and a train split.

    Raises InputError when it is a link that leads out of the fence.
    """
    if root.is_file():
        return root
    for name in ("data.yaml", "data.yml"):
        if (root / name).is_file():
            return fence.check(root / name)
    fitting: list[Path] = []
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            if not fence.refusal(path) and {"names", "train"} <= read_yaml_mapping(path).keys():
                fitting.append(path)
        except InputError:
            continue  # any yaml may lie there
    if len(fitting) > 1:
        listed = ", ".join(path.name for path in fitting)
        raise InputError(f"{root}: several files could be the data.yaml ({listed}); name the one to use")
    return fitting[0] if fitting else None


def read(yaml_path: Path, _: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names and splits of a data.yaml; records in the order of path, or of the list where a split is a list.

    Raises InputError for a bad data.yaml; the log is told of bad rows and images.
    """
    fence = Fence([yaml_path.parent], allow_outside)
    log.dependencies.add_file(yaml_path)
    class_names, folder, sources = read_yolo_config(yaml_path, fence, log)
    bases = (yaml_path.parent, folder)
    splits: dict[str, RecordTable] = {}
    for split, own in sources.items():
        splits[split] = _read_split(own, bases, len(class_names), SplitBuilder(split, class_names, fence, log))
    return class_names, splits


def read_yolo_config(
    path: Path, fence: Fence, log: ReadingLog
) -> tuple[tuple[str, ...], Path, dict[str, list[SplitSource]]]:
    """The K class names of a data.yaml, the folder that it names (or lies in), and its splits; `download:` is never
    run.

    Raises InputError naming file and line for anything amiss: these mistakes concern the whole dataset, so there is
    nothing to skip.
    """
    nodes = read_yaml_mapping(path)
    stated = {key: node for key, node in nodes.items() if kind_of(node) != "null"}
    class_names = _class_names(nodes, path)
    count = stated.get("nc")
    if count is not None and plain_integer(str(count.value)) != len(class_names):
        given = f"nc is {shorten(count.value)}, but names has {len(class_names)}"
        raise _fault(path, count, f"{given}; correct the one that is wrong, or remove nc")
    folder = path.parent
    if "path" in stated:
        shown, folder, refusal = _named("path", stated["path"], path, path.parent, fence, log)
        if refusal:
            raise _fault(path, stated["path"], f"path: {shown} {refusal}; without path, the yaml's own folder is taken")
        if not exists(folder) or not folder.is_dir():
            looked = f"looked at {printable(str(folder), 300)}"
            raise _fault(path, stated["path"], f"path: {shown} is not a folder ({looked}); correct or remove the line")
    splits: dict[str, list[SplitSource]] = {}
    for key, node in stated.items():
        split, shown = split_of(key), printable(key, 60)
        if split in splits:
            raise _fault(path, node, f"{shown}: names the {split} split a second time; remove one")
        if split is not None:
            items = node.value if isinstance(node, yaml.SequenceNode) else [node]
            splits[split] = [_source(shown, item, path, folder, fence, log) for item in items]
    if not splits:
        raise InputError(f"{path}: no split; add lines such as `train: images/train` and `val: images/val`")
    if "download" in nodes:
        origin = f"{path}:{line_of(nodes['download'])}"
        log.adjusted("ignored-key", origin, "download: is never run; all splits are here already")
    return class_names, folder, splits


def _fault(path: Path, node: yaml.Node, reason: str) -> InputError:
    return InputError(f"{path}:{line_of(node)}: {reason}")


def _class_names(nodes: Mapping[str, yaml.Node], path: Path) -> tuple[str, ...]:
    if "names" not in nodes:
        raise InputError(f"{path}: no names; add a line such as `names: [cat, dog]`, in the order of the class numbers")
    node = nodes["names"]
    items = node.value
    if isinstance(node, yaml.MappingNode):
        numbered: dict[int, yaml.Node] = {}
        for key, value in items:
            number = plain_integer(key.value)
            if number is None:
                raise _fault(path, key, f"names: {shorten(key.value)} is not a class number; count from 0")
            if number in numbered:  # the YAML reader refuses equal keys, but 0 and 00 are not
                raise _fault(path, key, f"names: class {number} stands twice; remove one")
            numbered[number] = value
        missing = set(range(len(items))) - set(numbered)
        if missing:
            needed = f"{len(items)} names need the numbers 0..{len(items) - 1}"
            raise _fault(path, node, f"names: class {min(missing)} is missing; {needed}")
        items = [numbered[number] for number in range(len(items))]
    if not isinstance(items, list):
        raise _fault(path, node, f"names must be a list such as [cat, dog]; got {shorten(items)}")
    if not items:
        raise _fault(path, node, "names is empty; name at least one class")
    for item in items:
        if not isinstance(item, yaml.ScalarNode):
            raise _fault(path, item, "a class name must be a word; got a nested list or mapping")
        if kind_of(item) != "str":
            quoted = f'put it in quotes: "{printable(item.value, 60)}"'
            raise _fault(path, item, f"YAML reads the class name {shorten(item.value)} as {kind_of(item)}; {quoted}")
    return distinct_class_names(((line_of(item), item.value) for item in items), path)


def _named(
    key: str, node: yaml.Node, path: Path, base: Path, fence: Fence, log: ReadingLog
) -> tuple[str, Path, str | None]:
    """What an entry names below `base`: the text as shown, the path, and why it may not be read."""
    if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or "\0" in node.value:
        raise _fault(path, node, f"{key}: must be a path; got {shorten(node.value)}")
    target = base / node.value
    log.dependencies.add_candidate(target)
    return printable(node.value, 100), target, fence.refusal(target)


def _source(key: str, node: yaml.Node, path: Path, folder: Path, fence: Fence, log: ReadingLog) -> SplitSource:
    """What an entry of a split names."""
    shown, target, refusal = _named(key, node, path, folder, fence, log)
    origin = f"{path}:{line_of(node)}"
    if refusal or not exists(target):
        # A common exporter writes ../train/images for the train/images that lies beside its data.yaml.
        inside = path.parent.joinpath(*dropwhile("..".__eq__, PurePosixPath(node.value).parts))
        log.dependencies.add_candidate(inside)
        if inside not in (target, path.parent) and exists(inside) and not fence.refusal(inside):
            log.adjusted("relocated", origin, f"{key}: {shown} does not lie in the dataset; took {inside}")
            return inside, origin
        remedy = "correct the path or remove the line. A download: key is never run"
        missing = f"does not exist (looked at {printable(str(target), 300)}); {remedy}"
        raise _fault(path, node, f"{key}: {shown} {refusal or missing}")
    if target.is_file() and target.suffix.lower() != ".txt":
        raise _fault(path, node, f"{key}: {shown} is neither a folder of images nor a .txt list of them")
    return target, origin


def _read_split(
    sources: Sequence[SplitSource], bases: Sequence[Path], num_classes: int, builder: SplitBuilder
) -> RecordTable:
    """The records of a split's folders and lists, in their order, each image once; bases: folders of the dataset."""
    log = builder.log
    first_origins: dict[Path, str] = {}
    num_labelled = 0
    for path, named_at in sources:
        is_list = path.is_file()
        if is_list:
            images = _listed_images(path, bases[1], log)
        else:
            images = [(image, named_at) for image in walk_images(path, builder.fence, log)]
        labels: set[Path] = set()
        for image, origin in images:
            if image in first_origins:
                detail = f"{image} stands in {first_origins[image]} already"
                log.adjusted("repeated-image", origin, detail, image=image)
                continue
            first_origins[image] = origin
            label = _label_path(image, bases, log)
            labels.add(label)
            is_labelled = log.folders.has(label)
            num_labelled += is_labelled
            header = builder.header(image)
            if header is None:
                continue
            boxes = _read_labels(label, image, header, num_classes, builder) if is_labelled else b""
            if boxes is not None:
                builder.add(image, header, boxes)
        for folder in sorted({label.parent for label in labels}):
            if not is_list and not folder.is_relative_to(path):  # beside the images, any text file may lie
                texts = [name for name in log.folders.names(folder) if name.endswith(".txt") and name != "classes.txt"]
                unused = [name for name in texts if folder / name not in labels]
                log.adjusted_files("unused-label", folder, unused, "label files without image")
    if first_origins and not num_labelled:
        image, origin = next(iter(first_origins.items()))
        looked_for = _label_path(image, bases, log)
        detail = f"none of the {len(first_origins)} images has a label file; looked for {looked_for}"
        log.adjusted("no-labels", origin, detail)
    return builder.table()


def _listed_images(path: Path, folder: Path, log: ReadingLog) -> list[tuple[Path, str]]:
    """The images in a list and their origins; the log is told of lines that name none."""
    images: list[tuple[Path, str]] = []
    log.dependencies.add_file(path)
    lines = read_limited(path, _MAX_LIST_BYTES).removeprefix(_BOM).split(b"\n")
    for number, line in enumerate(lines, start=1):
        origin = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            log.bad(origin, f"the line is not UTF-8 text ({shorten(line)})")
            continue
        if not text:
            continue
        if "\0" in text or not is_image_name(Path(text).name):
            log.bad(origin, f"not the name of an image ({shorten(text)})")
            continue
        places = [base / text for base in (path.parent, folder)]
        found = next((place for place in places if log.folders.has(place)), None)
        if found is None:
            log.bad(origin, f"the image does not exist ({shorten(text)}; looked at {places[0]})")
        else:
            images.append((found, origin))
    return images


def _label_path(image: Path, bases: Sequence[Path], log: ReadingLog) -> Path:
    """Where the labels of an image are: the last `images` within the dataset as `labels`, else beside the image."""
    beside = image.with_suffix(".txt")
    for base in (*bases, Path(image.anchor)):
        if image.is_relative_to(base):
            folders = list(image.relative_to(base).parent.parts)
            if "images" not in folders:
                break
            last = len(folders) - 1 - folders[::-1].index("images")
            apart = base.joinpath(*folders[:last], "labels", *folders[last + 1 :], beside.name)
            return beside if log.folders.has(beside) and not log.folders.has(apart) else apart
    return beside


def _read_labels(
    path: Path, image: Path, header: ImageHeader, num_classes: int, builder: SplitBuilder
) -> bytearray | None:
    """The boxes in a label file; the log is told of bad rows. None when the file cannot be read at all."""
    log = builder.log
    log.dependencies.add_file(path)
    try:
        lines = read_limited(builder.fence.check(path), _MAX_LABEL_BYTES).removeprefix(_BOM).split(b"\n")
    except InputError as error:
        log.bad(str(path), str(error).removeprefix(f"{path}: "), image)
        return None
    boxes, head_id, width, height = bytearray(), builder.head_id(f"{path}:"), header.width, header.height
    for number, line in enumerate(lines, start=1):
        if not line.strip(b" \t\r"):
            continue
        row = parse_row(line, num_classes)
        if isinstance(row, str):
            log.bad(f"{path}:{number}", row, image)
            continue
        class_id, cx, cy, w, h = row
        corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        boxes += pack_box(class_id, corners, head_id, number)
    return boxes


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
