"""Recipes without torch: the texts of the built-in ones, earlier names of fields, and the names of other trainers."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from anchorite.reading import shorten


def built_in_recipes() -> dict[str, str]:
    """Names and YAML texts of the recipes that come with the package."""
    files = [file for file in (resources.files("anchorite") / "train/recipes").iterdir() if file.name.endswith(".yaml")]
    return {
        file.name.removesuffix(".yaml"): file.read_text("utf-8") for file in sorted(files, key=lambda one: one.name)
    }


_ANCHORS_A_LEVEL = 3  # of the default tables
RENAMED_FIELDS = {
    "average": "ema",
    "optimizer.rate": "optimizer.lr",
    "optimizer.final_rate": "optimizer.lr_final",
    "optimizer.decay": "optimizer.schedule",
    "optimizer.warmup_bias_rate": "optimizer.warmup_bias_lr",
    "validation.iou_limit": "validation.iou_threshold",
}
"""Earlier names of fields and groups of a recipe to the current ones; files, settings and runs with them are read."""

PAIR = re.compile(r"\s*([0-9]+)\s*[,x]\s*([0-9]+)\s*")
"""Height and width as people write them."""
SQUARE = "training is square: give one number, the longer side; height and width are for predict and validate"

RENAMED_COLUMNS = {"rate": "lr"}
"""The same for the columns of metrics.csv."""


def current_name(name: str) -> str:
    """The current dotted name of a recipe field or group."""
    for old, new in RENAMED_FIELDS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def with_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Nested recipe values with the current names of their fields, and the earlier names that were replaced.

    An earlier name beside the current one stays, to be refused as an unknown field.
    """
    renamed = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    found = []
    for old, new in RENAMED_FIELDS.items():
        group, _, name = old.rpartition(".")
        fields = renamed.get(group) if group else renamed
        new_name = new.rpartition(".")[2]
        if isinstance(fields, dict) and name in fields and new_name not in fields:
            fields[new_name] = fields.pop(name)
            found.append(old)
    return renamed, found


class OtherName(NamedTuple):
    """A name that other trainers have for a setting.

    field: the dotted name of ours, empty where nothing here does the same; note: why not, or what differs;
    is_hyperparameter: it may stand in a file of hyperparameters of the original family, which is taken as a recipe.
    """

    field: str
    is_hyperparameter: bool
    note: str


@cache
def other_names() -> dict[str, OtherName]:
    """The names of other trainers, with underscores; docs/other-trainers.md tells more of them."""
    with (resources.files("anchorite") / "other_names.csv").open(encoding="utf-8") as file:
        return {
            row["name"]: OtherName(row["field"], bool(row["in_hyperparameters"]), row["note"])
            for row in csv.DictReader(file)
        }


def sorted_out(values: Mapping[str, Any], fields: Collection[str]) -> tuple[list[str], list[str]]:
    """Which names at the top level of a YAML file are the family's hyperparameters, and which are fields of ours.

    fields: the names at the top level of our recipes. "anchors" is one of both: a group here, a number or table there.
    """
    known = {name for name, other in other_names().items() if other.is_hyperparameter}
    theirs = [name for name, value in values.items() if name in known and not isinstance(value, dict)]
    return theirs, [name for name in values if name in fields and name not in theirs]


def taken_over(values: Mapping[str, Any], overruled: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The dotted name of our field for each of the family's hyperparameters that has one, and a sentence on each.

    overruled: the fields that the user sets beside the file. A name that is not of the family stands for itself, to be
    refused as a field that there is not.
    """
    fields, notes = {}, []
    for name, value in values.items():
        shown = f"{name} {value:g}" if isinstance(value, float) else f"{name} {shorten(value)}"
        other = other_names().get(name)
        if other is None or (other.field and not other.is_hyperparameter):
            field, note = name, ""
        else:
            field, _, note = other
        if not field:
            if value:
                notes.append(f"warning: {shown} is ignored: {note}")
            else:
                notes.append(f"{shown}: there is no such thing here, and off it is there, too")
            continue
        if name == "anchors" and isinstance(value, list):
            shown, note = f"anchors (a table of {len(value)} rows)", "never refitted"
        elif name == "anchors":
            told = (
                "warning: ignored, for a number alone is no table, and the default ones have "
                f"{_ANCHORS_A_LEVEL} a level; give a table by anchors.rows"
            )
            if isinstance(value, int | float) and round(value) in (0, _ANCHORS_A_LEVEL):
                told = f"so many a level have the default tables, {_ANCHORS_A_LEVEL}" if value else "the default tables"
            notes.append(f"{shown}: {told}")
            continue
        fields[name] = field
        over = "; overruled by what was set beside the file" if field in overruled else ""
        notes.append(f"{shown} -> {field}{f' ({note})' if note else ''}{over}")
    return fields, notes
