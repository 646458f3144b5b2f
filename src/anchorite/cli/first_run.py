"""What somebody who trains for the first time is told beside the facts, on a terminal only.

Nothing is kept on who has read what: a run is the first as long as no run beside it has ended.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from anchorite.data import DatasetIndex
    from anchorite.train import Recipe

_FEW_IMAGES = 100
_TINY_PX, _MANY = 8.0, 0.25  # sides on the network's input, and share of the boxes, that call for a larger input
_QUICK_PX = 320


class Hint(NamedTuple):
    """A sentence, and the command that it leads to where there is one."""

    sentence: str
    command: str | None = None


def is_first_run(folder: Path) -> bool:
    """Whether no run beside `folder` has ended."""
    return not any(folder.parent.glob("*/summary.json"))


def data_hints(dataset: DatasetIndex, recipe: Recipe) -> list[Hint]:
    """One for each thing about the data that will limit what comes out."""
    hints = []
    train = dataset.splits.get("train", ())
    place = shlex.quote(str(dataset.root))
    if 0 < len(train) < _FEW_IMAGES:
        what = f"{len(train)} training images are few: more of them help more than any setting. Are these in order?"
        hints.append(Hint(what, f"anchorite inspect {place}"))
    if not dataset.splits.get("val"):
        what = "without a val split nobody knows how good the detector is. A copy that has one:"
        hints.append(Hint(what, f"anchorite split {place} NEW_FOLDER"))
    tiny = _share_of_tiny(dataset, recipe.image_size)
    if tiny > _MANY:
        hints.append(
            Hint(
                f"{tiny:.0%} of the training boxes are narrower than {_TINY_PX:.0f} px at image size "
                f"{recipe.image_size}, hard to find; try --image-size {recipe.image_size * 2}"
            )
        )
    return hints


def machine_hints(recipe: Recipe, device_type: str) -> list[Hint]:
    """What makes training bearable without a GPU; none where there is one, or where the run is small already."""
    if device_type != "cpu" or recipe.device != "auto":
        return []
    smaller = []
    if recipe.image_size > _QUICK_PX:
        smaller.append(f"--image-size {_QUICK_PX}")
    if recipe.model not in ("n", "n6") and recipe.weights is None:
        smaller.append("--model n")
    return [Hint(f"no GPU was found; {' and '.join(smaller)} would be several times as fast")] if smaller else []


def running_hints(folder: Path) -> list[Hint]:
    """How to stop and go on, and what to look at meanwhile."""
    place = shlex.quote(str(folder))
    return [
        Hint("Ctrl-C stops the run and loses nothing. To go on with it:", f"anchorite train --resume {place}"),
        Hint(
            f"a page with the curves so far, {folder / 'report.html'}, is written at any time by",
            f"anchorite report {place}",
        ),
    ]


def _share_of_tiny(dataset: DatasetIndex, image_size: int) -> float:
    sides = dataset.split("train").box_sides(image_size).min(axis=1)
    return float((sides < _TINY_PX).mean()) if len(sides) else 0.0
