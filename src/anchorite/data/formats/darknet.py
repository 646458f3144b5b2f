"""YOLO labels without a data.yaml: darknet's *.data file, or a list of class names near images and label files.

- CVAT's "YOLO 1.1" (https://docs.cvat.ai/docs/dataset_management/formats/format-yolo/) and darknet: obj.data names the
  list of class names and the lists of images.
- Label Studio's YOLO (https://labelstud.io/guide/export): classes.txt, notes.json, images/ and labels/.
- labelImg: images, label files and classes.txt in one folder; Roboflow's "YOLO Darknet"
  (https://roboflow.com/formats/yolo-darknet-txt): the same for each split, with _darknet.labels.

Rows and label files are those of `yolo`. Without lists of images and folders named by split, all is "train".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from anchorite.data.formats.common import (
    SPLITS,
    ClassesAndSplits,
    Fence,
    ReadingLog,
    assign_splits,
    distinct_class_names,
    files_with_suffix,
    is_image_name,
    split_of,
    walk_images,
    whole_number,
)
from anchorite.data.formats.named import plain_parts
from anchorite.data.formats.yolo import (
    LabelFiles,
    Layout,
    SplitEntry,
    SplitSource,
    find_sources,
    is_label_file,
    read_layout,
)
from anchorite.errors import InputError
from anchorite.reading import decode_utf8, printable, read_limited, shorten

LOOKED_FOR = "YOLO without data.yaml: obj.data, or classes.txt or obj.names near images with label files"
SUFFIXES = ".data", ".names", "classes.txt"
_MAX_BYTES = 16_000_000
_CLASS_LISTS = frozenset({"classes.txt", "obj.names", "_darknet.labels"})
_FOLDERS = frozenset({"images", "jpegimages", "labels", "data"})  # where lists and label files may lie, beside splits

Lines = list[tuple[int, str]]


def find(root: Path, log: ReadingLog, fence: Fence) -> list[Path] | None:
    """obj.data or the only *.data with names or train; else all lists of class names, if an image has a label file.

    Raises InputError where several *.data could be meant, or a folder below is a link that leads out of the fence.
    """
    if root.is_file():
        return [root]
    described = [path for path in files_with_suffix(root, ".data") if _is_description(path, fence)]
    if len(described) > 1 and any(path.name == "obj.data" for path in described):
        described = [root / "obj.data"]
    if len(described) > 1:
        listed = ", ".join(path.name for path in described)
        raise InputError(f"{root}: several files could describe the dataset ({listed}); name the one to use")
    if described:
        return described
    lists = [path for folder in _near_folders(root) for path in _class_lists(folder, is_root=folder == root)]
    if not lists:
        return None
    labels = LabelFiles((root,), log.folders)
    for image in walk_images(root, fence, log):
        label = labels.of(image)
        if isinstance(label, str) or (label is not None and is_label_file(label, fence)):
            return lists
    return None


def holds_labels(root: Path, fence: Fence) -> bool:
    """Whether there is a folder of labels, or a text file of them, in a folder or near."""
    folders = _near_folders(root)
    texts = (path for folder in folders for path in files_with_suffix(folder, ".txt"))
    return any(folder.name.lower() == "labels" for folder in folders[1:]) or any(
        is_label_file(path, fence) for path in texts
    )


def _near_folders(root: Path) -> list[Path]:
    """A folder, and up to two levels below it those where exports put lists of classes and label files."""
    found, level = [root], [root]
    for _ in range(2):
        children = (child for folder in level for child in sorted(folder.iterdir()))
        level = [one for one in children if (one.name.lower() in _FOLDERS or split_of(one.name)) and one.is_dir()]
        found += level
    return found


def _class_lists(folder: Path, is_root: bool) -> list[Path]:
    names = files_with_suffix(folder, ".txt", ".names", ".labels")
    return [path for path in names if path.name.lower() in _CLASS_LISTS or (is_root and path.suffix == ".names")]


def read(found: Sequence[Path], root: Path, log: ReadingLog, allow_outside: bool) -> ClassesAndSplits:
    """The class names and splits of a *.data file or of a folder; records in the order of the lists or paths.

    Raises InputError for a description or list of class names that cannot be read; the log is told of bad rows and
    images.
    """
    home = root if root.is_dir() else root.parent
    fence = Fence([home], allow_outside)
    is_described = found[0].suffix.lower() == ".data"
    layout = (_described if is_described else _by_folders)(found, home, fence, log)
    return read_layout(layout, fence, log)


# A *.data file: lines `key = value`.


def _is_description(path: Path, fence: Fence) -> bool:
    """Whether a *.data file is one of darknet; there are others of that suffix."""
    try:
        keys = {line.partition("=")[0].strip().lower() for _, line in _lines(fence.check(path))}
    except InputError:
        return path.name == "obj.data"
    return bool({"names", "train"} & keys)


def _described(found: Sequence[Path], home: Path, fence: Fence, log: ReadingLog) -> Layout:
    (path,) = found
    log.dependencies.add_file(path)
    entries: dict[str, tuple[int, str]] = {}
    for number, line in _lines(fence.check(path)):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise InputError(f"{path}:{number}: not a line `key = value` ({shorten(line)})")
        if key.lower() in entries:
            raise InputError(f"{path}:{number}: {shorten(key)} stands twice; remove one")
        entries[key.lower()] = number, value
    class_names = _class_names([_names_file(entries.get("names"), path, fence, log)], fence, log)
    number, count = entries.get("classes", (0, ""))
    if count and whole_number(count) != len(class_names):
        raise InputError(
            f"{path}:{number}: classes is {shorten(count)}, but the list of names has {len(class_names)}; correct one"
        )
    splits: list[SplitEntry] = []
    for key, (number, value) in entries.items():
        split = split_of(key)
        if split is None or not value:
            continue
        if "\0" in value:
            raise InputError(f"{path}:{number}: {key}: must be a path; got {shorten(value)}")
        if split in (entry.split for entry in splits):
            raise InputError(f"{path}:{number}: {key}: names the {split} split a second time; remove one")
        splits.append(SplitEntry(split, key, value, f"{path}:{number}"))
    if not splits:
        raise InputError(f"{path}: no split; add lines such as `train = train.txt` and `valid = valid.txt`")
    return Layout(class_names, (home,), find_sources(splits, (home,), fence, log))


def _names_file(entry: tuple[int, str] | None, path: Path, fence: Fence, log: ReadingLog) -> Path:
    """The list of class names that a *.data file names, else the one beside it."""
    number, text = entry or (0, "obj.names")
    found = [] if "\0" in text else log.folders.ending_like([path.parent], plain_parts(text), fence)
    if len(found) == 1:
        return found[0]
    if entry is None:
        raise InputError(f"{path}: no names; add a line such as `names = obj.names`, a file with a class name a line")
    looked = printable(str(path.parent / text), 300)
    raise InputError(f"{path}:{number}: names: {printable(text, 100)} does not exist (looked at {looked}); correct it")


# Lists of class names, and whatever lies near.


def _by_folders(found: Sequence[Path], home: Path, fence: Fence, log: ReadingLog) -> Layout:
    class_names = _class_names(found, fence, log)
    texts = [path for path in files_with_suffix(home, ".txt") if split_of(path.stem)]
    for path in texts:
        log.dependencies.add_file(path)
    lists = {path.stem: path for path in texts if _lists_images(path, fence)}
    if any(split_of(stem) == "train" for stem in lists):
        listed = {split: [SplitSource(path, str(path))] for split, path in assign_splits(lists, log).items()}
        return Layout(class_names, (home,), listed)
    folders: dict[Path, list[Path]] = defaultdict(list)
    for image in walk_images(home, fence, log):
        folders[image.parent].append(image)
    labels, sources = LabelFiles((home,), log.folders), dict[str | None, list[SplitSource]]()
    for folder, images in folders.items():
        # Others hold what was never labelled, such as drawings of results.
        is_labelled = any(labels.of(image) is not None for image in images)
        split = next(filter(None, map(split_of, folder.relative_to(home).parts)), None)
        sources.setdefault(split if is_labelled else "", []).append(SplitSource(folder, str(folder), images))
    left_out = [(source, "images in a folder without a label file") for source in sources.pop("", [])]
    if len(sources) > 1:
        left_out += [(source, "images in no folder of a split") for source in sources.pop(None, [])]
    for source, what in left_out:
        log.adjusted_files("ignored-file", source.path, [image.name for image in source.images or ()], what)
    named = {split or "train": some for split, some in sources.items()}
    return Layout(class_names, (home,), {split: named[split] for split in SPLITS if split in named})


def _lists_images(path: Path, fence: Fence) -> bool:
    """Whether a text file begins with the name of an image."""
    try:
        first = next((text for _, text in _lines(fence.check(path))), "")
    except InputError:
        return False
    return "\0" not in first and bool(plain_parts(first)) and is_image_name(plain_parts(first)[-1])


def _class_names(paths: Iterable[Path], fence: Fence, log: ReadingLog) -> tuple[str, ...]:
    """The class names in some lists, one a line, which must agree."""
    lists: dict[tuple[str, ...], Path] = {}
    for path in paths:
        log.dependencies.add_file(path)
        text = decode_utf8(read_limited(fence.check(path), _MAX_BYTES), path)
        lines = text.rstrip().split("\n")
        names = distinct_class_names(((number, line.strip()) for number, line in enumerate(lines, start=1)), path)
        lists.setdefault(names, path)
    if len(lists) > 1:
        first, second, *_ = lists.values()
        raise InputError(f"{first} and {second} hold different class names; correct one, or remove it")
    return next(iter(lists))


def _lines(path: Path) -> Lines:
    """The lines of a text file that are neither empty nor comments, without surrounding space, and their numbers."""
    lines = decode_utf8(read_limited(path, _MAX_BYTES), path).split("\n")
    numbered = ((number, line.partition(" #")[0].strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in numbered if line and line[0] not in "#;"]
