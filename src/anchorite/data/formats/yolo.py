"""YOLO datasets: a data.yaml, and one text file an image with a row for each object, in parts of the image's size.

    class cx cy w h                  a box; a sixth column, the number of its track or its score, is ignored, but for a
                                     score that shall be the weight of the object
    class x1 y1 x2 y2 x3 y3 ...      a polygon, or four corners of a rotated box: the box around the points is taken
    class cx cy w h x1 y1 [v1] ...   a pose, only where data.yaml has kpt_shape: the box is taken

as CVAT describes them (https://docs.cvat.ai/docs/dataset_management/formats/format-yolo-ultralytics/). The labels of
.../images/.../a.jpg stand in .../labels/.../a.txt, else beside the image; the last `images` or `JPEGImages` within the
dataset counts, all in any letter case. An image without a label file is background. Two keys of data.yaml are our own:
`ignore_classes: [name, ...]`, classes whose rows are ignored regions, and `scores: as-weights`.

Legend: K classes.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal, NamedTuple, get_args

import yaml

from anchorite.choices import ScoresUse
from anchorite.data.dataset import NO_CLASS, AdjustmentKind, Box, RecordTable, pack_box
from anchorite.data.formats.common import (
    SCORES_HINT,
    ClassesAndSplits,
    Fault,
    Fence,
    Folders,
    ReadingLog,
    SplitBuilder,
    box_around,
    distinct_class_names,
    exists,
    files_with_suffix,
    is_image_name,
    is_text_name,
    plain_number,
    split_of,
    walk_images,
    weight_fault,
    whole_number,
)
from anchorite.data.formats.named import plain_parts
from anchorite.data.headers import ImageHeader
from anchorite.errors import InputError
from anchorite.plain_yaml import kind_of, line_of, read_yaml_mapping
from anchorite.reading import printable, read_limited, shorten

LOOKED_FOR = "YOLO: data.yaml, or one *.yaml with names and train"
SUFFIXES = ".yaml", ".yml"
_MAX_LINE_BYTES = 1_000_000
_MAX_LABEL_BYTES = 64_000_000
_MAX_LIST_BYTES = 512_000_000
_IMAGE_FOLDERS = frozenset({"images", "jpegimages"})
_NO_LABEL = re.compile(r"(classes|predefined_classes|class_names|obj|notes|readme.*)\.txt", re.IGNORECASE)

# Numbers written with four decimals may lie this far outside 0..1 by rounding alone.
RANGE_TOLERANCE = 1e-4
# Points may lie outside the image, as CVAT writes them of objects cut by its edge; the box is clipped. Far under 2, the
# visibility of a key point, so that a pose that is not stated to be one is hardly taken for a polygon.
_POINT_REACH = 0.5


class SplitSource(NamedTuple):
    """Where images of a split are: in and below a folder, or in a text file that lists them.

    origin: the "FILE:LINE" that names it; images: those of the folder, where only some count.
    """

    path: Path
    origin: str
    images: Sequence[Path] | None = None


class SplitEntry(NamedTuple):
    """What a dataset's description says of a split: a key, the path behind it, and the "FILE:LINE" of both."""

    split: str
    key: str
    text: str
    origin: str


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out.

    folders: those that its paths may be relative to; num_point_values: how many numbers follow the box of a pose.
    """

    class_names: tuple[str, ...]
    folders: tuple[Path, ...]
    sources: Mapping[str, Sequence[SplitSource]]
    num_point_values: int = 0


def find(root: Path, log: ReadingLog, fence: Fence) -> Path | None:
    """The data.yaml of a folder: a file of that name, else the only *.yaml with names and a train split.

    Raises InputError when it is a link that leads out of the fence.
    """
    if root.is_file():
        return root
    configs = [path for path in files_with_suffix(root, ".yaml", ".yml") if path.is_file()]
    named = [path for path in configs if path.stem.lower() == "data"]
    if named:
        return fence.check(min(named, key=lambda path: path.name != "data.yaml"))
    fitting: list[Path] = []
    for path in configs:
        try:
            if not fence.refusal(path) and {"names", "train"} <= {key.lower() for key in read_yaml_mapping(path)}:
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
    return read_layout(read_yolo_config(yaml_path, fence, log), fence, log)


# The data.yaml. Whatever is amiss there concerns the whole dataset, so there is nothing to skip.


def read_yolo_config(path: Path, fence: Fence, log: ReadingLog) -> Layout:
    """What a data.yaml says, its keys in any letter case; `download:` is never run.

    Raises InputError naming file and line for anything amiss.
    """
    nodes = _keys_in_any_case(path)
    stated = {key: node for key, node in nodes.items() if kind_of(node) != "null"}
    class_names = _class_names(nodes, path)
    count = stated.get("nc")
    if count is not None and whole_number(str(count.value)) != len(class_names):
        given = f"nc is {shorten(count.value)}, but names has {len(class_names)}"
        raise _fault(path, count, f"{given}; correct the one that is wrong, or remove nc")
    folder, fault = _dataset_folder(stated.get("path"), path, fence, log)
    try:
        sources = _split_sources(stated, path, (folder, path.parent), fence, log)
    except InputError as error:
        raise (fault or error) from None
    if fault:
        shown = printable(str(stated["path"].value), 100)
        detail = f"path: {shown} is no folder of the dataset; took {folder}"
        log.adjusted("relocated", f"{path}:{line_of(stated['path'])}", detail)
    _read_own_keys(stated, path, log)
    if "download" in nodes:
        origin = f"{path}:{line_of(nodes['download'])}"
        log.adjusted("ignored-key", origin, "download: is never run; all splits are here already")
    return Layout(class_names, (path.parent, folder), sources, _num_point_values(stated.get("kpt_shape"), path))


def _keys_in_any_case(path: Path) -> dict[str, yaml.Node]:
    nodes: dict[str, yaml.Node] = {}
    for key, node in read_yaml_mapping(path).items():
        if key.lower() in nodes:
            raise _fault(path, node, f"the key {shorten(key)} stands twice, in another letter case; remove one")
        nodes[key.lower()] = node
    return nodes


def _dataset_folder(
    node: yaml.Node | None, path: Path, fence: Fence, log: ReadingLog
) -> tuple[Path, InputError | None]:
    """The folder that `path` names, or where the splits may be instead, and then what is wrong with `path`.

    Often it names a folder of the computer where the dataset was made, and the splits lie beside the data.yaml.
    """
    if node is None:
        return path.parent, None
    text = _path_text("path", node, path)
    target = _readable(text, path.parent, fence, log)
    if target is not None and target.is_dir():
        return target, None
    missing = f"is not a folder (looked at {printable(str(path.parent / text), 300)}); correct or remove the line"
    refusal = fence.refusal(path.parent / text)
    reason = f"{refusal}; without path, the yaml's own folder is taken" if refusal else missing
    inside = [found for found in log.folders.ending_like([path.parent], plain_parts(text), fence) if found.is_dir()]
    return (inside[0] if len(inside) == 1 else path.parent), _fault(
        path, node, f"path: {printable(text, 100)} {reason}"
    )


def _split_sources(
    stated: Mapping[str, yaml.Node], path: Path, homes: Sequence[Path], fence: Fence, log: ReadingLog
) -> dict[str, list[SplitSource]]:
    entries: list[SplitEntry] = []
    for key, node in stated.items():
        split, shown = split_of(key), printable(key, 60)
        if split is None:
            continue
        if split in (entry.split for entry in entries):
            raise _fault(path, node, f"{shown}: names the {split} split a second time; remove one")
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            entries.append(SplitEntry(split, shown, _path_text(shown, item, path), f"{path}:{line_of(item)}"))
    if not entries:
        raise InputError(f"{path}: no split; add lines such as `train: images/train` and `val: images/val`")
    return find_sources(entries, homes, fence, log)


def _read_own_keys(stated: Mapping[str, yaml.Node], path: Path, log: ReadingLog) -> None:
    """Tell the log which classes are ignored and whether scores are weights."""
    if (node := stated.get("ignore_classes")) is not None:
        if not isinstance(node, yaml.SequenceNode):
            raise _fault(path, node, f"ignore_classes must be a list such as [people]; got {shorten(node.value)}")
        for item in node.value:
            log.ignored_classes.setdefault(_class_name(item, path), f"{path}:{line_of(item)}")
    if (node := stated.get("scores")) is not None:
        if node.value not in get_args(ScoresUse):
            raise _fault(path, node, f"scores must be {' or '.join(get_args(ScoresUse))}; got {shorten(node.value)}")
        log.scores = "as-weights" if node.value == "as-weights" else log.scores


def _num_point_values(node: yaml.Node | None, path: Path) -> int:
    """How many numbers the key points of a pose take: of kpt_shape [17, 3], 51."""
    if node is None:
        return 0
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    counts = [whole_number(item.value) for item in items if isinstance(item, yaml.ScalarNode)]
    if len(items) != 2 or len(counts) != 2 or counts[0] is None or counts[1] not in (2, 3):
        shown = [item.value for item in items] if items else node.value
        raise _fault(path, node, f"kpt_shape must be [number of points, 2 or 3]; got {shorten(shown)}")
    return counts[0] * counts[1]


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
            number = whole_number(key.value)
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
    return distinct_class_names(((line_of(item), _class_name(item, path)) for item in items), path)


def _class_name(item: yaml.Node, path: Path) -> str:
    if not isinstance(item, yaml.ScalarNode):
        raise _fault(path, item, "a class name must be a word; got a nested list or mapping")
    if kind_of(item) != "str":
        quoted = f'put it in quotes: "{printable(item.value, 60)}"'
        raise _fault(path, item, f"YAML reads the class name {shorten(item.value)} as {kind_of(item)}; {quoted}")
    return str(item.value)


def _path_text(key: str, node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or "\0" in node.value:
        raise _fault(path, node, f"{key}: must be a path; got {shorten(node.value)}")
    return str(node.value)


def _readable(text: str, home: Path, fence: Fence, log: ReadingLog) -> Path | None:
    """What a path names below a folder, written with slashes of either kind; None where nothing may be read there."""
    for target in dict.fromkeys((home / text, home / text.replace("\\", "/"))):
        log.dependencies.add_candidate(target)
        if exists(target) and fence.refusal(target) is None:
            return target
    return None


def find_sources(
    entries: Sequence[SplitEntry], homes: Sequence[Path], fence: Fence, log: ReadingLog
) -> dict[str, list[SplitSource]]:
    """The folders and lists that some entries name below the first of some folders of the dataset.

    Where there is none, it is the one in them whose path ends likewise: one common exporter writes ../train/images for
    the train/images beside its data.yaml, and others the paths of their own computer. Raises InputError at the entry.
    """
    targets = [_readable(entry.text, homes[0], fence, log) for entry in entries]
    owners = {target: plain_parts(entry.text) for target, entry in zip(targets, entries, strict=True) if target}
    splits: dict[str, list[SplitSource]] = defaultdict(list)
    for (split, key, text, origin), found in zip(entries, targets, strict=True):
        target, shown, literal = found, f"{key}: {printable(text, 100)}", printable(str(homes[0] / text), 300)
        if target is None:
            parts = plain_parts(text)
            similar = log.folders.ending_like(list(dict.fromkeys(homes)), parts, fence)
            others = [path for path, theirs in owners.items() if theirs != parts]
            inside = [path for path in similar if not any(_overlap(path, other) for other in others)]
            if len(inside) != 1:
                remedy = "correct the path or remove the line"
                reason = f"does not exist (looked at {literal}); {remedy}"
                if inside:
                    reason = f"does not exist, and could be {' or '.join(map(str, inside[:3]))}; {remedy}"
                elif exists(homes[0] / text):
                    reason = fence.refusal(homes[0] / text) or reason
                raise InputError(f"{origin}: {shown} {reason}")
            target = inside[0]
            owners[target] = parts
            log.adjusted("relocated", origin, f"{shown} is not in the dataset (looked at {literal}); took {target}")
        if target.is_file() and target.suffix.lower() != ".txt":
            raise InputError(f"{origin}: {shown} is neither a folder of images nor a .txt list of them")
        splits[split].append(SplitSource(target, origin))
    return dict(splits)


def _overlap(path: Path, other: Path) -> bool:
    return path == other or path in other.parents or other in path.parents


# Splits: their images, and the label file of each.


def read_layout(layout: Layout, fence: Fence, log: ReadingLog) -> ClassesAndSplits:
    """The class names and splits of a layout; the log is told of bad rows and images."""
    labels, splits = LabelFiles(layout.folders, log.folders), dict[str, RecordTable]()
    for split, sources in layout.sources.items():
        builder = SplitBuilder(split, layout.class_names, fence, log)
        splits[split] = _read_split(sources, layout, labels, builder)
    return layout.class_names, splits


def _read_split(
    sources: Iterable[SplitSource], layout: Layout, labels: LabelFiles, builder: SplitBuilder
) -> RecordTable:
    """The records of a split's folders and lists, in their order, each image once."""
    log, num_labelled = builder.log, 0
    first_origins: dict[Path, str] = {}
    searched: dict[Path, None] = {}  # folders of images that count as a whole, so that each label file has its image
    for source in sources:
        is_list = source.path.is_file()
        for image, origin in _images_of(source, layout.folders, builder.fence, log):
            if image in first_origins:
                detail = f"{image} stands in {first_origins[image]} already"
                log.adjusted("repeated-image", origin, detail, image=image)
                continue
            first_origins[image] = origin
            label = labels.of(image)
            num_labelled += label is not None
            if not is_list:
                searched[image.parent] = None
            header = builder.header(image)
            if header is None:
                continue
            if isinstance(label, str):
                log.bad(str(image), label, image)
                continue
            boxes = b"" if label is None else _read_labels(label, image, header, layout, builder)
            if boxes is not None:
                builder.add(image, header, boxes)
    _report_unused_labels(searched, labels, builder)
    if first_origins and not num_labelled:
        image, origin = next(iter(first_origins.items()))
        looked, num_folders = labels.places(image.parent), len({one.parent for one in first_origins})
        places = " and ".join(str(place / f"{image.stem}.txt") for place in looked)
        detail = f"none of the {len(first_origins)} images has a label file; looked for {places}"
        if num_folders > 1:
            detail += f", and likewise for {num_folders - 1} other folder{'s' * (num_folders > 2)} of images"
        log.adjusted("no-labels", origin, detail)
    return builder.table()


def _report_unused_labels(image_folders: Collection[Path], labels: LabelFiles, builder: SplitBuilder) -> None:
    for folder in dict.fromkeys(place for home in image_folders for place in labels.places(home)):
        names = labels.unclaimed(folder, builder.fence)
        if folder in image_folders:  # any text file may lie there
            names = [name for name in names if is_label_file(folder / name, builder.fence)]
        builder.log.adjusted_files("unused-label", folder, names, "label files without image")


def _images_of(
    source: SplitSource, folders: Sequence[Path], fence: Fence, log: ReadingLog
) -> Iterable[tuple[Path, str]]:
    """The images of a source and their origins; the log is told of those that a list names and that are not there."""
    if source.path.is_file():
        return _listed_images(source.path, folders, fence, log)
    images = walk_images(source.path, fence, log) if source.images is None else source.images
    return ((image, source.origin) for image in images)


def _listed_images(path: Path, folders: Sequence[Path], fence: Fence, log: ReadingLog) -> list[tuple[Path, str]]:
    """The images in a list and their origins; the log is told of lines that name none.

    A line counts from the list's folder, else from one of the dataset's. Paths of another computer, or with a folder
    that is not there (`data/` of CVAT), name the image in these folders whose path ends likewise.
    """
    images: list[tuple[Path, str]] = []
    homes = list(dict.fromkeys([path.parent, *folders]))
    relocated: dict[Path, tuple[str, ...]] = {}
    log.dependencies.add_file(path)
    lines = read_limited(path, _MAX_LIST_BYTES).removeprefix(BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, start=1):
        origin = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            log.bad(origin, f"the line is not UTF-8 text ({shorten(line)})")
            continue
        name = PureWindowsPath(text).name  # splits at both kinds of slashes
        if not text or name.startswith("._"):  # what macOS leaves beside files
            continue
        if "\0" in text or not is_image_name(name):
            log.bad(origin, f"not the name of an image ({shorten(text)})")
            continue
        spellings, parts = dict.fromkeys((text, text.replace("\\", "/"))), plain_parts(text)
        places = [home / one for home in homes for one in spellings if log.folders.has(home / one)]
        found = next((place for place in places if not fence.refusal(place)), None)
        if found is None and (inside := log.folders.ending_like(homes, parts, fence)):
            owner = relocated.setdefault(inside[0], parts)
            if len(inside) > 1 or owner != parts:
                several, other = ", ".join(map(str, inside[:3])), f"{inside[0]} is {shorten('/'.join(owner))} already"
                reason = f"several could be meant: {several}" if len(inside) > 1 else other
                log.bad(origin, f"the image does not exist ({shorten(text)}; {reason})")
                continue
            found = inside[0]
            log.counted("relocated", origin, "listed images that are not there, found by the end of their paths")
        found = found or next(iter(places), None)  # one outside, which is refused with its reason
        if found is None:
            log.bad(origin, f"the image does not exist ({shorten(text)}; looked at {homes[0] / text})")
        else:
            images.append((found, origin))
    return images


class LabelFiles:
    """Finds the label file of each image, and the files that are of none.

    homes: folders of the dataset, above which the name of a folder says nothing.
    """

    def __init__(self, homes: Sequence[Path], folders: Folders) -> None:
        self._homes, self._folders = homes, folders
        self._places: dict[Path, list[Path]] = {}
        self._claimed: dict[Path, set[str]] = defaultdict(set)

    def places(self, folder: Path) -> list[Path]:
        """The folders in which labels of a folder's images may lie; the first need not exist."""
        if folder not in self._places:
            self._places[folder] = list(dict.fromkeys([*self._apart(folder), folder]))
        return self._places[folder]

    def _apart(self, folder: Path) -> list[Path]:
        for home in (*self._homes, Path(folder.anchor)):
            if folder.is_relative_to(home):
                parts = folder.relative_to(home).parts
                if _IMAGE_FOLDERS.isdisjoint(map(str.lower, parts)):
                    break
                last = max(number for number, part in enumerate(parts) if part.lower() in _IMAGE_FOLDERS)
                above, below = home.joinpath(*parts[:last]), parts[last + 1 :]
                names = [name for name in sorted(self._folders.names(above)) if name.lower() == "labels"]
                found = [place for name in names for place in self._folders.matching(above / name, below)]
                return found or [above.joinpath("labels", *below)]
        return []

    def of(self, image: Path) -> Path | str | None:
        """The label file of an image, None where it has none, or why it cannot be told which one it is."""
        places, stem, fault = self.places(image.parent), image.stem, None
        similar = [place / name for place in places for name in self._folders.texts_of_stem(place, stem)]
        found = [path for path in similar if path.stem == stem]
        if not found and similar:  # names that differ in letter case, for an image that is their only one
            images = {Path(name).stem for name in self._folders.images_of_stem(image.parent, stem)}
            found = [path for path in similar if path.stem not in images]
            others = images - {stem} - {path.stem for path in similar}
            if found and others:
                fault = f"{found[0]} could be its label file, or that of {' or '.join(sorted(others))}; rename one"
        if len(found) > 1:
            fault = f"it has {len(found)} label files ({', '.join(map(str, found))}); keep one"
        for path in found:
            self._claimed[path.parent].add(path.name)
        return fault or next(iter(found), None)

    def unclaimed(self, folder: Path, fence: Fence) -> list[str]:
        """The text files of a folder that could be labels and are of no image so far."""
        return [
            name
            for name in filter(is_text_name, self._folders.names(folder))
            if name not in self._claimed[folder]
            and not _NO_LABEL.match(name)
            and (split_of(Path(name).stem) is None or is_label_file(folder / name, fence))  # else a list of images
        ]


# Label files and their rows.

RowKind = Literal["box", "scored", "tracked", "polygon", "corners", "pose"]
_TOLD: Mapping[RowKind, tuple[AdjustmentKind, str]] = {
    "scored": ("ignored-score", f"rows with a score in a sixth column, which is not used; {SCORES_HINT}"),
    "tracked": ("ignored-score", "rows with the number of a track in a sixth column, which is not used"),
    "polygon": ("shape-as-box", "polygons, read as the boxes around them"),
    "corners": ("shape-as-box", "rows of four corners (rotated boxes), read as the upright boxes around them"),
    "pose": ("shape-as-box", "poses, of which the boxes are read and the key points are not used"),
}


class YoloRow(NamedTuple):
    """An object: its class, its corners as parts of the image's size, what the row was, its score if it is a number in
    0..1, and what is wrong with its class where that is `NO_CLASS`."""

    class_id: int
    xyxy: Box
    kind: RowKind = "box"
    score: float = 1.0
    fault: str = ""


def is_label_file(path: Path, fence: Fence) -> bool:
    """Whether a text file may be read and begins with a row of a class and four numbers or more."""
    try:
        lines = read_limited(fence.check(path), _MAX_LABEL_BYTES).removeprefix(BOM_UTF8).splitlines()
    except InputError:
        return False
    columns = next((line for line in lines if line.strip()), b"")[:_MAX_LINE_BYTES].decode("ascii", "replace").split()
    numbers = [plain_number(column) for column in columns]
    return len(columns) >= 5 and whole_number(columns[0]) is not None and None not in numbers


def _read_labels(
    path: Path, image: Path, header: ImageHeader, layout: Layout, builder: SplitBuilder
) -> bytearray | None:
    """The boxes in a label file; None when one of its rows cannot be read and the log says that the image goes."""
    log = builder.log
    log.dependencies.add_file(path)
    try:
        lines = read_limited(builder.fence.check(path), _MAX_LABEL_BYTES).removeprefix(BOM_UTF8).split(b"\n")
    except InputError as error:
        log.bad(str(path), str(error).removeprefix(f"{path}: "), image)
        return None
    boxes, head_id, width, height = bytearray(), builder.head_id(f"{path}:"), header.width, header.height
    faults, told, num_classes = list[Fault](), list[tuple[RowKind, int]](), len(layout.class_names)
    has_weights = log.scores == "as-weights"
    for number, line in enumerate(lines, start=1):
        if not line.strip(b" \t\r"):
            continue
        row = parse_row(line, num_classes, layout.num_point_values)
        if isinstance(row, YoloRow) and has_weights and row.kind in ("scored", "tracked"):
            row = weight_fault(row.score) or row._replace(kind="box")
        if isinstance(row, str):
            faults.append((f"{path}:{number}", row, False))
            continue
        if row.fault:
            faults.append((f"{path}:{number}", row.fault, True))
        x1, y1, x2, y2 = row.xyxy
        corners, is_region = (x1 * width, y1 * height, x2 * width, y2 * height), row.class_id == NO_CLASS
        boxes += pack_box(row.class_id, corners, head_id, number, is_region, weight=row.score if has_weights else 1.0)
        if row.kind != "box":
            told.append((row.kind, number))
    if not log.bad_labels(faults, image):
        return None
    for kind, number in told:
        adjustment, what = _TOLD[kind]
        log.counted(adjustment, f"{path}:{number}", what)
    return boxes


def parse_row(line: bytes, num_classes: int, num_point_values: int = 0) -> YoloRow | str:
    """One row of a label file, or the reason why it is none; num_point_values: of the key points of a pose."""
    if len(line) > _MAX_LINE_BYTES:
        return f"a line of {len(line)} bytes; a row has at most {_MAX_LINE_BYTES}"
    if b"\0" in line:
        return "the line contains NUL bytes; the file is damaged"
    try:
        columns = line.decode("utf-8").replace("\t", " ").strip(" \r").split(" ")
    except UnicodeDecodeError:
        return f"the line is not UTF-8 text ({shorten(line)})"
    columns = [column for column in columns if column]
    kind = _kind_of_row(len(columns), num_point_values)
    if kind is None:
        return f"{_wrong_number(columns, num_point_values)} ({shorten(' '.join(columns))})"
    class_id, fault = whole_number(columns[0]), ""
    if class_id is None or class_id >= num_classes:
        fault = f"the class must be a whole number 0..{num_classes - 1} ({shorten(columns[0])})"
        if class_id is None:  # of such a row it is not even sure that its numbers are a box
            return fault
        class_id = NO_CLASS
    numbers: list[float] = []
    is_box = kind not in ("polygon", "corners")
    for index, column in enumerate(columns[1:]):
        number = plain_number(column)
        if number is None:
            return f"{_column_name(kind, index)} must be a plain finite number ({shorten(column)})"
        reach = RANGE_TOLERANCE if is_box else _POINT_REACH
        if not -reach <= number <= 1 + reach or (number < 0 and is_box and index in (2, 3)):
            if kind == "scored" and index == 4 and whole_number(column) is not None:
                kind = "tracked"
            elif kind != "pose" or index < 4:
                part = "" if kind == "scored" and index == 4 else ", as a part of the image's size"
                part += "" if is_box else f", or up to {_POINT_REACH} outside"
                return f"{_column_name(kind, index)} must lie in 0..1{part} ({shorten(column)})"
        numbers.append(number)
    if not is_box:
        return YoloRow(class_id, box_around(zip(numbers[::2], numbers[1::2], strict=True)), kind, 1.0, fault)
    cx, cy, w, h = numbers[:4]
    score = numbers[4] if kind in ("scored", "tracked") else 1.0
    return YoloRow(class_id, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), kind, score, fault)


def _kind_of_row(num_columns: int, num_point_values: int) -> RowKind | None:
    if num_columns in (5, 6):
        return "box" if num_columns == 5 else "scored"
    if num_point_values:
        return "pose" if num_columns == 5 + num_point_values else None
    if num_columns < 7 or num_columns % 2 == 0:
        return None
    return "corners" if num_columns == 9 else "polygon"


def _wrong_number(columns: Sequence[str], num_point_values: int) -> str:
    """Why a row of so many columns is none."""
    told = f"{len(columns)} columns, not the 5 of `class cx cy w h`"
    if num_point_values:
        return f"{told} or the {5 + num_point_values} of a pose with kpt_shape"
    if len(columns) > 6:
        return f"{told} or the odd number of a polygon; poses need a line `kpt_shape: [points, 2 or 3]` in data.yaml"
    return told + ("; put spaces, not commas, between them" if any("," in column for column in columns) else "")


def _column_name(kind: RowKind, index: int) -> str:
    if kind in ("polygon", "corners"):
        return f"{'xy'[index % 2]}{index // 2 + 1}"
    if index < 4:
        return ("cx", "cy", "w", "h")[index]
    return "the score in the sixth column" if kind in ("scored", "tracked") else f"key point value {index - 3}"
