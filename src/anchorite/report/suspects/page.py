"""The suspects as one page: a crop of each with its boxes, why it is suspected, and filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorite.report.page import render_page
from anchorite.report.suspects.crops import Crop, make_crops
from anchorite.report.suspects.ranking import KINDS, Ranking, Suspect
from anchorite.report.suspects.table import from_root

_TEMPLATE = "suspects.html.j2"
_STYLES, _SCRIPTS = ("style.css", "suspects.css"), ("suspects.js",)
MAX_PAGE_BYTES = 2_950_000


def suspects_page(
    ranking: Ranking, class_names: Sequence[str], root: Path, title: str, weights: str, top: int = 100
) -> str:
    """The page of the first `top` suspects, as HTML of at most 3 MB: smaller crops, and in the end fewer, keep it so.

    root: the data set's folder, which paths are told from; title, weights: what was looked at and with what. Raises
    InputError when an image cannot be decoded any more.
    """
    chosen = ranking.suspects[:top]
    context = {
        "title": title,
        "weights": weights,
        "ranking": ranking,
        "counts": ranking.counts(),
        "kinds": KINDS,
    }
    # What each card takes beside its picture is known once the page is drawn with empty ones.
    blank = [Crop("", (0, 0, 1, 1), 1, 1)] * len(chosen)
    bare = _render(context, chosen, blank, class_names, root)
    crops = make_crops(chosen, max(0, MAX_PAGE_BYTES - len(bare.encode("utf-8")) - 400 * len(chosen)))
    return _render(context, chosen[: len(crops)], crops, class_names, root)


def _render(
    context: dict[str, Any], chosen: Sequence[Suspect], crops: Sequence[Crop], class_names: Sequence[str], root: Path
) -> str:
    cards = [_card(suspect, crop, class_names, root) for suspect, crop in zip(chosen, crops, strict=True)]
    shown = {
        "cards": cards,
        "shown_kinds": Counter(suspect.kind for suspect in chosen),
        "splits": sorted({suspect.split for suspect in chosen}, key=_split_order),
        "classes": _classes(chosen, class_names),
    }
    return render_page(_TEMPLATE, {**context, **shown}, styles=_STYLES, scripts=_SCRIPTS)


def _split_order(split: str) -> tuple[int, str]:
    known = ("train", "val", "test")
    return (known.index(split) if split in known else len(known)), split


def _classes(chosen: Sequence[Suspect], class_names: Sequence[str]) -> list[tuple[int, str]]:
    """Numbers and names of the classes that occur, as label or as what is seen."""
    numbers = {number for suspect in chosen for number in _class_ids(suspect)}
    return [(number, class_names[number]) for number in sorted(numbers)]


def _class_ids(suspect: Suspect) -> list[int]:
    return [number for number in dict.fromkeys((suspect.class_id, suspect.seen_class)) if number is not None]


def _card(suspect: Suspect, crop: Crop, class_names: Sequence[str], root: Path) -> dict[str, Any]:
    """What the template shows of one suspect."""
    label = None if suspect.class_id is None else class_names[suspect.class_id]
    seen = None if suspect.seen_class is None else class_names[suspect.seen_class]
    return {
        "suspect": suspect,
        "crop": crop,
        "label": label,
        "seen": seen,
        "class_ids": " ".join(map(str, _class_ids(suspect))),
        "image": from_root(str(suspect.image), root),
        "origin": from_root(suspect.origin, root),
        "label_box": _in_crop(suspect.label_xyxy, crop),
        "seen_box": _in_crop(suspect.seen_xyxy, crop),
    }


def _in_crop(box: tuple[float, float, float, float] | None, crop: Crop) -> dict[str, float] | None:
    """Left, top, width and height in pixels of the crop."""
    if box is None:
        return None
    left, top, right, bottom = crop.box_xyxy
    x, y = crop.width / (right - left), crop.height / (bottom - top)
    return {
        "x": round((box[0] - left) * x, 1),
        "y": round((box[1] - top) * y, 1),
        "width": round((box[2] - box[0]) * x, 1),
        "height": round((box[3] - box[1]) * y, 1),
    }
