"""Finding the COCO jsons of a dataset, and agreeing on their categories.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from anchorite.data.formats.json_stream import stream_json
from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import Fence, assign_splits, split_of
from anchorite.data.formats.text import is_class_name
from anchorite.errors import InputError
from anchorite.reading import shorten

ROBOFLOW_NAME = "_annotations.coco.json"
Json = dict[str, Any]


class CocoFile(NamedTuple):
    """One json and the split it holds."""

    split: str
    path: Path


class Categories(NamedTuple):
    """The classes of a dataset: category id to class number 0..K-1, and the K names in that order."""

    class_ids: dict[int, int]
    names: tuple[str, ...]


def find_coco(folder: Path, log: ReadingLog, fence: Fence) -> tuple[CocoFile, ...]:
    """The jsons of a folder: annotations/instances_*.json, a json in each split's folder, or json files named by split.

    None is found unless its place says that it is COCO, or its content does. Raises InputError when one that is found
    is a link that leads out of the fence.
    """
    files = _find_files(folder, log, fence)
    for file in files:
        fence.check(file.path)
    return files


def _find_files(folder: Path, log: ReadingLog, fence: Fence) -> tuple[CocoFile, ...]:
    instances = [path for base in (folder / "annotations", folder) for path in sorted(base.glob("instances_*.json"))]
    if instances:
        return _by_split({path.stem.removeprefix("instances_"): path for path in instances}, log)
    if (folder / ROBOFLOW_NAME).is_file():
        return single_coco(folder / ROBOFLOW_NAME)
    children = [child for child in sorted(folder.iterdir()) if split_of(child.name)]
    exported = {child.name: child / ROBOFLOW_NAME for child in children if (child / ROBOFLOW_NAME).is_file()}
    if exported:
        return _by_split(exported, log)
    for base in (folder / "annotations", folder):
        faults: dict[Path, InputError] = {}
        jsons = {path.stem: path for path in _loose_jsons(base, fence) if _looks_like_coco(path, faults)}
        if jsons:
            # A split must not get lost because its json is cut short; other jsons may be anything.
            jsons |= {path.stem: path for path in faults if split_of(path.stem)}
            return _by_split(dict(sorted(jsons.items())), log)
    return ()


def broken_jsons(folder: Path, fence: Fence) -> list[InputError]:
    """What is wrong with each json of a folder in which no dataset was found, if it cannot be read at all."""
    faults: dict[Path, InputError] = {}
    for base in (folder / "annotations", folder):
        for path in _loose_jsons(base, fence):
            _looks_like_coco(path, faults)
    return list(faults.values())


def _loose_jsons(folder: Path, fence: Fence) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if not fence.refusal(path)]


def single_coco(path: Path) -> tuple[CocoFile, ...]:
    """The dataset of one json: its split by its own name, else by its folder's, else "train"."""
    split = split_of(path.stem.removeprefix("instances_")) or split_of(path.absolute().parent.name) or "train"
    return (CocoFile(split, path),)


def _by_split(paths_by_name: Mapping[str, Path], log: ReadingLog) -> tuple[CocoFile, ...]:
    return tuple(CocoFile(split, path) for split, path in assign_splits(paths_by_name, log).items())


def _looks_like_coco(path: Path, faults: dict[Path, InputError]) -> bool:
    """Whether a json holds images and annotations; what keeps it from being read is noted."""
    try:
        keys = {part.key for part in stream_json(path)}
    except InputError as error:
        faults[path] = error
        return False
    return "images" in keys and "annotations" in keys


def json_list(content: Json, key: str, path: Path) -> list[Any]:
    """The list under a key; InputError when it is absent or another type."""
    items = content.get(key)
    if not isinstance(items, list):
        raise InputError(f"{path}: {key} must be a list; got {shorten(items)}")
    return items


def is_whole(value: object) -> bool:
    """Whether a JSON value is a whole number (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def agree_on_categories(contents: Mapping[Path, Json]) -> Categories:
    """The union of all files' categories, in the order of their ids.

    Ids alone tell categories apart: those of equal names stay two classes, "name" and "name#ID". Raises InputError when
    two files give an id different names, or a name different ids.
    """
    names: dict[int, str] = {}
    first_file: dict[int, Path] = {}
    ids_of_names: dict[str, tuple[set[int], Path]] = {}
    for path, content in contents.items():
        categories = _read_categories(content, path)
        ids_here: dict[str, set[int]] = {}
        for category_id, name in categories.items():
            if names.setdefault(category_id, name) != name:
                raise InputError(
                    f"{path}: category {shorten(category_id)} is {shorten(name)}, but in {first_file[category_id]} "
                    f"it is {shorten(names[category_id])}; give all splits the same categories"
                )
            first_file.setdefault(category_id, path)
            ids_here.setdefault(name, set()).add(category_id)
        for name, ids in ids_here.items():
            other_ids, other = ids_of_names.setdefault(name, (ids, path))
            if other_ids != ids:
                raise InputError(
                    f"{path}: category {shorten(name)} has id {_listed(ids)}, but in {other} id {_listed(other_ids)}; "
                    "give all splits the same categories"
                )
    order = sorted(names)
    if not order:
        raise InputError(f"{next(iter(contents))}: categories is empty; a dataset needs at least one class")
    return Categories({category_id: index for index, category_id in enumerate(order)}, _distinct(names, order))


def _distinct(names: Mapping[int, str], order: list[int]) -> tuple[str, ...]:
    taken = set(names.values())
    given: list[str] = []
    for category_id in order:
        name = names[category_id]
        while name in given or (name != names[category_id] and name in taken):
            name = f"{name}#{category_id}"
        given.append(name)
    return tuple(given)


def _read_categories(content: Json, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, category in enumerate(json_list(content, "categories", path)):
        where = f"{path}: categories[{index}]"
        if not isinstance(category, dict) or not is_whole(category.get("id")):
            raise InputError(f"{where}: must be an object with a whole number as id; got {shorten(category)}")
        category_id, name = category["id"], category.get("name")
        if not isinstance(name, str) or not is_class_name(name):
            raise InputError(f"{where}: category {shorten(category_id)} must have a text as name; got {shorten(name)}")
        if category_id in names:
            raise InputError(
                f"{where}: the category id {shorten(category_id)} stands twice; give each category its own"
            )
        names[category_id] = name
    return names


def _listed(ids: set[int]) -> str:
    return ", ".join(shorten(category_id) for category_id in sorted(ids)[:5])
