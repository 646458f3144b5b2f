"""Files of hyperparameters of the original family, taken as recipes: which field each name is, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchorite.reading import one_line, printable, shorten
from anchorite.train.familiar_names import FAMILIAR_NAMES, HYPERPARAMETERS, WITHOUT_FIELD

_ANCHORS_A_LEVEL = 3  # of the default tables


@dataclass
class TakenOver:
    """A recipe made of such a file. values: as nested mappings; notes: a sentence on each name of the file.

    said: for each field that was set, where the file says so, for messages.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)


def is_foreign(values: Mapping[str, Any], fields: Collection[str]) -> bool:
    """Whether the top level of a YAML file has names of the family's hyperparameters, and none that is a field here.

    fields: the names at the top level of our recipes. "anchors" is one of both: a group here, a number or table there.
    """
    theirs, ours = _sorted_out(values, fields)
    return bool(theirs) and not ours


def mixed_note(values: Mapping[str, Any], fields: Collection[str], where: str) -> str:
    """What to add to the faults of a file that has both; empty where it has not."""
    theirs, ours = _sorted_out(values, fields)
    if not theirs or not ours:
        return ""
    return (
        f"\n{where}: names of another trainer's hyperparameters ({', '.join(theirs)}) beside fields of a recipe "
        f"({', '.join(ours)}): a file is read as one or the other; write theirs as told, or give ours by flags or --set"
    )


def _sorted_out(values: Mapping[str, Any], fields: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of the family's hyperparameters, and those of our fields that are no such."""
    theirs = [name for name, value in values.items() if name in HYPERPARAMETERS and not isinstance(value, dict)]
    return theirs, [name for name in values if name in fields and name not in theirs]


def taken_over(
    values: Mapping[str, Any], where: str, line_of: Callable[[str], str], overruled: Collection[str]
) -> TakenOver:
    """The recipe that a file of the family's hyperparameters stands for, name by name.

    where: the file, for messages; line_of: ":LINE" of a name in it; overruled: dotted names of the fields that the
    user sets otherwise. A name that is not of the family is handed on, to be refused as a field that there is not.
    """
    taken = TakenOver({"name": printable(Path(where).stem, 100)})
    taken.notes.append(
        f"recipe {one_line(where)}: hyperparameters of another trainer, {len(values)} names; what they leave open has "
        "the defaults of docs/recipes.md. They are taken so:"
    )
    for name, value in values.items():
        if name == "anchors":
            ours, note = _anchors(value)
        elif name in FAMILIAR_NAMES and name in HYPERPARAMETERS:
            ours, note = FAMILIAR_NAMES[name], HYPERPARAMETERS[name]
        elif name in WITHOUT_FIELD:
            taken.notes.append(_without(name, value))
            continue
        else:
            ours, note = name, ""
        shown = f"{name} {_shown(value)}"
        if ours is None:
            taken.notes.append(f"{shown}: {note}")
            continue
        _put(taken.values, ours, value)
        taken.said[ours] = f"{where}{line_of(name)}: {name}"
        over = "; overruled by what was set beside the file" if ours in overruled else ""
        taken.notes.append(f"{shown} -> {ours}{f' ({note})' if note else ''}{over}")
    return taken


def _anchors(value: Any) -> tuple[str | None, str]:
    """The field of what a file says of anchors, a table or a number of them; None for a number, and why."""
    if isinstance(value, list):
        return "anchors.rows", "never refitted"
    if isinstance(value, int | float) and round(value) in (0, _ANCHORS_A_LEVEL):
        return None, f"so many a level have the default tables, {_ANCHORS_A_LEVEL}" if value else "the default tables"
    return None, (
        "warning: ignored, for a number alone is no table, and the default ones have "
        f"{_ANCHORS_A_LEVEL} a level; give a table by anchors.rows"
    )


def _without(name: str, value: Any) -> str:
    """A sentence on a name that no field answers to."""
    if not value:
        return f"{name} {_shown(value)}: there is no such thing here, and off it is there, too"
    return f"warning: {name} {_shown(value)} is ignored: {WITHOUT_FIELD[name]}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"(a table of {len(value)} rows)"
    return f"{value:g}" if isinstance(value, float) else shorten(value)


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, last = dotted.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[last] = value
