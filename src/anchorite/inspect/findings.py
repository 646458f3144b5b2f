"""What an inspection finds: the kinds, how grave each is, and what training does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
Fate = Literal["clipped", "dropped", "kept", "refused", "ignored"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Kind(NamedTuple):
    """How grave a kind of finding is, what training does about it, and a heading for several of them."""

    severity: Severity
    fate: Fate
    heading: str


# Errors are what a user loses without noticing, or what training refuses: labels, images, or the worth of val and test.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "malformed": Kind("error", "refused", "label rows or files that cannot be read; with --skip-bad left out"),
        "unreadable-image": Kind("error", "refused", "images that cannot be decoded; with --skip-bad left out"),
        "empty-box": Kind("error", "dropped", "boxes without area"),
        "duplicate-box": Kind("error", "dropped", "boxes written twice"),
        "unused-label": Kind("error", "ignored", "label files without an image"),
        "ignored-file": Kind("error", "ignored", "files in no split, or without their labels"),
        "shared-image": Kind("error", "kept", "images that stand in two splits: the score of the one is no proof"),
        "no-training-images": Kind("error", "refused", "no image to train on"),
        "no-training-boxes": Kind("error", "kept", "no box to train on"),
        "clipped-box": Kind("warning", "clipped", "boxes that reach outside their image"),
        "similar-shared-image": Kind("warning", "kept", "images of two splits that show the same view"),
        "repeated-picture": Kind("warning", "kept", "images with the same pixels in one split"),
        "repeated-image": Kind("warning", "dropped", "images listed twice in a split, read once"),
        "similar-box": Kind("warning", "kept", "pairs of boxes of a class that overlap as if drawn twice"),
        "class-conflict": Kind("warning", "kept", "pairs of boxes in one place with different classes"),
        "unmatched-box": Kind("warning", "ignored", "boxes that no anchor matches: never learned"),
        "sub-pixel-box": Kind("warning", "kept", "boxes thinner than a pixel of the network input"),
        "class-without-training": Kind("warning", "kept", "classes without a box in train"),
        "similar-class-names": Kind("warning", "kept", "class names that differ in case or spaces alone"),
        "empty-split": Kind("warning", "kept", "splits without images"),
        "single-image-split": Kind("warning", "kept", "splits of a single image"),
        "split-without-boxes": Kind("warning", "kept", "splits without a box"),
        "no-labels": Kind("warning", "kept", "splits without a label file: all taken as background"),
        "unlisted-image": Kind("warning", "ignored", "folders with images that belong to no split"),
        "similar-image": Kind("note", "kept", "images of one split that show the same view"),
        "small-box": Kind("note", "kept", "boxes thinner than two pixels of the network input"),
        "dense-image": Kind("note", "kept", "images with over 100 boxes of a class: COCO's score counts 100"),
        "background-image": Kind("note", "kept", "images without a box, trained on as background"),
        "ignored-box": Kind("note", "ignored", "crowd or difficult boxes: no target, and not scored"),
        "ignored-key": Kind("note", "ignored", "settings that are not obeyed"),
        "relocated": Kind("note", "kept", "paths that were found elsewhere in the dataset"),
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. Where they apply: split; image (path); origin ("file:line"); box in pixels; class name;
    others, the images or origins that it concerns besides. detail: the values, readable."""

    kind: str
    detail: str
    split: str | None = None
    image: str | None = None
    origin: str | None = None
    box_xyxy: tuple[float, ...] | None = None
    class_name: str | None = None
    others: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def fate(self) -> Fate:
        """What training does about it."""
        return KINDS[self.kind].fate

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "training": self.fate,
            "split": self.split,
            "image": self.image,
            "origin": self.origin,
            "class": self.class_name,
            "box_xyxy": None if self.box_xyxy is None else list(self.box_xyxy),
            "others": list(self.others),
            "detail": self.detail,
        }

    def line(self) -> str:
        """The finding as a line of text, without its kind."""
        where = self.origin or self.image or self.split or ""
        return f"{where}: {self.detail}" if where else self.detail
