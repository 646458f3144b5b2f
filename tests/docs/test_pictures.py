"""The pictures of docs/objective.md against the package: their numbers, and those of the text, computed anew."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
KEPT: dict[str, Any] = json.loads((FOLDER / "numbers.json").read_text(encoding="ascii"))
TEXT = (FOLDER.parent / "objective.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn() -> Iterator[ModuleType]:
    """The module that computes the numbers, imported as `python docs/pictures/make.py` does."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("drawn_numbers")
    sys.path.remove(str(FOLDER))


def differences(kept: Any, found: Any, relative: float, place: str = "") -> list[str]:
    """Where two trees of numbers differ."""
    if isinstance(kept, dict):
        if not isinstance(found, dict) or kept.keys() != found.keys():
            return [place]
        return [line for key in kept for line in differences(kept[key], found[key], relative, f"{place}/{key}")]
    if isinstance(kept, list):
        if not isinstance(found, list) or len(kept) != len(found):
            return [place]
        return [
            line
            for index, (old, new) in enumerate(zip(kept, found, strict=True))
            for line in differences(old, new, relative, f"{place}/{index}")
        ]
    if isinstance(kept, float):
        is_same = isinstance(found, float | int) and math.isclose(kept, found, rel_tol=relative, abs_tol=1e-6)
        return [] if is_same else [f"{place}: {kept}, now {found}"]
    return [] if kept == found else [f"{place}: {kept}, now {found}"]


@pytest.mark.parametrize("name", [name for name in KEPT if name != "precision"])
def test_the_numbers_drawn_are_those_of_the_package(drawn: ModuleType, name: str) -> None:
    found = drawn.rounded(drawn.PICTURES[name]())
    assert differences(KEPT[name], found, 1e-4) == [], "run: python docs/pictures/make.py"


def test_a_loss_in_bf16_is_as_wrong_as_drawn(drawn: ModuleType) -> None:
    found = drawn.rounded(drawn.PICTURES["precision"]())
    kept = dict(KEPT["precision"])
    errors, kept_errors = found.pop("errors"), kept.pop("errors")
    assert differences(kept["losses"]["float64"], found["losses"]["float64"], 1e-4) == []
    # Rounding depends on the instructions of the processor, its order of magnitude does not.
    for term, kept_error in kept_errors["bf16 loss"].items():
        assert kept_error / 2 < errors["bf16 loss"][term] < kept_error * 2
        assert errors["float32 loss"][term] < 1e-5
    costs_nothing = [place for place, cost in zip(kept["moved"], found["losses"]["bf16"], strict=True) if cost == 0]
    assert f"off by {costs_nothing[-1]} cells costs exactly 0 in bf16" in " ".join(TEXT.split())
    assert found["losses"]["float32"].count(0) == 1


def test_pictures_show_the_numbers_kept_and_are_small() -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        mark_of = importlib.import_module("make").mark_of
    finally:
        sys.path.remove(str(FOLDER))
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(KEPT)
    for name, numbers in KEPT.items():
        text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert mark_of(numbers) in text, f"{name}.svg was drawn from other numbers"
        assert len(text) < 150_000
        assert "prefers-color-scheme" in text
        assert f"](pictures/{name}.svg)" in TEXT


def test_the_text_quotes_the_numbers_kept() -> None:
    three, balance = KEPT["three-cells"], KEPT["balance"]
    shares = " / ".join(f"{100 * share:.{digits}f} %" for share, digits in zip(three["shares"], (3, 2, 2), strict=True))
    own, every = sum(three["own"]), sum(three["all"])
    assert f"| drawn scenes | {three['objects']} | {own:.2f} | {every:.2f} | {shares} |" in TEXT
    plain, weighted = (balance[key][2] / balance[key][0] for key in ("plain", "weighted"))
    assert f"before the weights P5 costs {plain:.0f} times what P3 does, after them {weighted:.0f} times" in " ".join(
        TEXT.split()
    )
    for smoothing, lowest in KEPT["smoothing"]["lowest"].items():
        assert f"{lowest:.2f} for e = {smoothing}" in TEXT
    for term, exact in KEPT["precision"]["errors"]["float32 loss"].items():
        rough = KEPT["precision"]["errors"]["bf16 loss"][term]
        assert f"| {term} | {exact:.1e} | {rough:.2g} |" in TEXT


def test_the_table_of_anchors_is_the_packages() -> None:
    for level, stride, px, cells in zip(
        ("P3", "P4", "P5"), KEPT["anchors"]["strides"], KEPT["anchors"]["px"], KEPT["anchors"]["cells"], strict=True
    ):
        pairs = ", ".join(f"{width:g} x {height:g}" for width, height in zip(px[::2], px[1::2], strict=True))
        (row,) = re.findall(rf"^\| {level} \| {stride} \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
        assert row[0] == pairs
        shown = [float(side) for pair in row[1].split(", ") for side in pair.split(" x ")]
        assert shown == pytest.approx([side for pair in cells for side in pair], rel=1e-5)
