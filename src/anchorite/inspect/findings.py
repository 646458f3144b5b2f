"""What an inspection finds: kinds of findings and how grave each is, the whole inspection, and both as text.

Legend: K classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from anchorite.data import Adjustment, DatasetIndex, Record
from anchorite.data.dataset import NO_CLASS
from anchorite.inspect.similar import ScannedImage
from anchorite.reading import filled, one_line

Severity = Literal["error", "warning", "note"]
Effect = Literal["clipped", "dropped", "kept", "refused", "ignored"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_REPORT_VERSION = 1
_MOST_NAMED = 8  # classes of a source


class FindingKind(NamedTuple):
    """How grave a kind of finding is, what training does about it, a heading, and what reading already did about it,
    which a corrected copy lists as a change.

    heading: as a template, "box|boxes" for one and for several; without such a word it is no count of things.
    """

    severity: Severity
    effect: Effect
    heading: str
    done: str = ""

    def words(self, number: int) -> str:
        """The heading for so many findings, without the number."""
        return re.sub(r"(\w+)\|(\w+)", r"\1" if number == 1 else r"\2", self.heading)

    def counted(self, number: int) -> str:
        """The heading with the number of findings, if it counts them."""
        return f"{number} {self.words(number)}" if "|" in self.heading else self.heading


# Errors are what a user loses without noticing, or what training refuses: labels, images, or the worth of val and test.
KINDS: Mapping[str, FindingKind] = {
    "malformed": FindingKind("error", "refused", "label row|rows or file|files that cannot be read", "left out"),
    "ignored-region": FindingKind("error", "refused", "label row|rows of which only the place can be read", "ignored"),
    "unreadable-image": FindingKind("error", "refused", "image|images that cannot be decoded", "left out"),
    "empty-box": FindingKind("error", "dropped", "box|boxes without area", "dropped"),
    "duplicate-box": FindingKind("error", "dropped", "box|boxes written twice", "dropped"),
    "unused-label": FindingKind("error", "ignored", "label file|files without an image", "left out"),
    "ignored-file": FindingKind(
        "error", "ignored", "file|files in no split, or without labels that can be used", "left out"
    ),
    "shared-image": FindingKind("error", "kept", "image|images in two splits: the score on the second proves nothing"),
    "no-training-images": FindingKind("error", "refused", "no image to train on"),
    "no-training-boxes": FindingKind("error", "refused", "no box to train on"),
    "clipped-box": FindingKind("warning", "clipped", "box|boxes that reaches|reach outside its|their image", "clipped"),
    "similar-shared-image": FindingKind(
        "warning", "kept", "image|images that shows|show the same view as one of another split"
    ),
    "repeated-picture": FindingKind(
        "warning", "kept", "image|images with the same pixels as another of its|their split"
    ),
    "repeated-image": FindingKind(
        "warning", "dropped", "image|images listed twice in a split, read once", "listed once"
    ),
    "similar-box": FindingKind("warning", "kept", "pair|pairs of boxes of a class that overlap as if drawn twice"),
    "class-conflict": FindingKind("warning", "kept", "pair|pairs of nearly equal boxes with different classes"),
    "unmatched-box": FindingKind("warning", "ignored", "box|boxes that no anchor matches: never learned"),
    "sub-pixel-box": FindingKind("warning", "kept", "box|boxes thinner than a pixel of the network input"),
    "mostly-background": FindingKind(
        "warning", "kept", "most training images have no labels, and are learned as background"
    ),
    "mostly-ignored": FindingKind("warning", "ignored", "split|splits of whose area ignored regions cover over half"),
    "class-without-training": FindingKind("warning", "kept", "class|classes without a box in train"),
    "uncovered-background": FindingKind(
        "warning",
        "kept",
        "source|sources with images to train on whose background counts in full though not all classes are covered: "
        "objects of the others are learned as background; lower background_weight where there may be any",
    ),
    "similar-class-names": FindingKind(
        "warning", "kept", "pair|pairs of class names that differ only in case or spaces"
    ),
    "empty-split": FindingKind("warning", "kept", "split|splits without images"),
    "single-image-split": FindingKind("warning", "kept", "split|splits of a single image"),
    "split-without-boxes": FindingKind("warning", "kept", "split|splits without a box"),
    "no-labels": FindingKind("warning", "kept", "split|splits without a label file: all taken as background"),
    "narrow-range": FindingKind(
        "warning",
        "kept",
        "16-bit images of which few grey levels are left in 8 bits",
    ),
    "ignored-annotation": FindingKind("warning", "ignored", "annotations of images that have another, which is read"),
    "ignored-shape": FindingKind("warning", "ignored", "points, lines and tags, which outline no object", "left out"),
    "unlisted-image": FindingKind(
        "warning", "ignored", "folder|folders with images that belong to no split", "left out"
    ),
    "similar-image": FindingKind(
        "note", "kept", "image|images that shows|show the same view as another of its|their split"
    ),
    "small-box": FindingKind("note", "kept", "box|boxes thinner than two pixels of the network input"),
    "dense-image": FindingKind("note", "kept", "image|images with over 100 boxes of a class: COCO's score counts 100"),
    "background-image": FindingKind("note", "kept", "image|images without a box, trained on as background"),
    "ignored-box": FindingKind("note", "ignored", "ignored region|regions: no object, no background, and not scored"),
    "ignored-key": FindingKind("note", "ignored", "setting|settings without effect"),
    "ignored-score": FindingKind("note", "ignored", "scores beside boxes, as predictions have them"),
    "ignored-category": FindingKind("note", "ignored", "categories that only group others: no classes"),
    "shape-as-box": FindingKind("note", "kept", "shapes of which the box around each is taken"),
    "grey-images": FindingKind("note", "kept", "split|splits of grey images: the one channel is repeated to three"),
    "relocated": FindingKind("note", "kept", "path|paths found elsewhere in the dataset"),
}
KIND_OF_ADJUSTMENT = {
    "clipped": "clipped-box",
    "dropped-empty": "empty-box",
    "dropped-duplicate": "duplicate-box",
    "skipped-bad": "malformed",
}


def kind_of(adjustment: Adjustment) -> str:
    """Which kind of finding an adjustment is."""
    if adjustment.kind == "skipped-bad" and adjustment.image is not None and adjustment.origin == str(adjustment.image):
        return "unreadable-image"
    return KIND_OF_ADJUSTMENT.get(adjustment.kind, adjustment.kind)


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
    def effect(self) -> Effect:
        """What training does about it."""
        return KINDS[self.kind].effect

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        values = asdict(self)
        values["class"] = values.pop("class_name")
        return {**values, "severity": self.severity, "training": self.effect}

    def line(self) -> str:
        """The finding as a line of text, without its kind."""
        where = self.origin or self.image or self.split or ""
        return f"{where}: {self.detail}" if where else self.detail


def box_finding(dataset: DatasetIndex, split: str, record: Record, index: int) -> Finding:
    """A finding about one box of a record, still without kind and detail."""
    return Finding(
        kind="",
        detail="",
        split=split,
        image=str(record.path),
        origin=record.origins[index],
        box_xyxy=tuple(record.boxes_xyxy[index].tolist()),
        class_name=None if (class_id := record.class_ids[index]) == NO_CLASS else dataset.class_names[class_id],
    )


@dataclass(frozen=True, slots=True)
class SplitBalance:
    """What a split holds. boxes_per_class: K counts of training boxes; ignored: regions that are neither object nor
    background; left_out: images that reading left out, by the kind of finding that says why; most_boxes: of an image, 0
    where not counted; weighted, mean_weight: how many training boxes count less than 1, and what these count."""

    split: str
    images: int
    empty_images: int
    boxes: int
    ignored: int
    boxes_per_class: tuple[int, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    most_boxes: int = 0
    weighted: int = 0
    mean_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SourceBalance:
    """What labels of one source do not know, and how many images of each split have them.

    covers: names of the classes that are labelled, None for all; not_covered: of the others; background_weight: see
    `LabelSource`.
    """

    name: str
    covers: tuple[str, ...] | None
    not_covered: tuple[str, ...]
    background_weight: float
    images: Mapping[str, int]

    def line(self) -> str:
        """The same in words: source farm: images train 9, val 2; covers cat, dog, not bird; background counts 0.5."""
        counts = ", ".join(f"{split} {number}" for split, number in self.images.items() if number)
        covers = "all classes"
        if self.covers is not None:
            covers = f"{named(self.covers) or 'no class'}, not {named(self.not_covered)}"
        weight = f"; background counts {self.background_weight:g}" if self.background_weight != 1 else ""
        return f"source {one_line(self.name)}: images {counts}; covers {covers}{weight}"


def named(class_names: Sequence[str]) -> str:
    """The first of some class names, and how many more there are."""
    more = len(class_names) - _MOST_NAMED
    return one_line(", ".join(class_names[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class AnchorFit:
    """How the anchors fit the training boxes at an image size.

    recall: share of boxes that an anchor matches; level_recalls: the same for each level alone; fitted_recall: with
    anchors fitted to the data, None where there are too few distinct boxes. quantiles: 5, 50 and 95 % of the boxes'
    widths and of their heights, in pixels of the network input; None without boxes.
    """

    image_size: int
    num_boxes: int
    recall: float
    strides: tuple[int, ...]
    level_recalls: tuple[float, ...]
    fitted_recall: float | None
    width_quantiles: tuple[float, ...] | None
    height_quantiles: tuple[float, ...] | None


@dataclass(frozen=True)
class Inspection:
    """What was found. findings: errors first, then by kind, in reading order; label_fingerprint: of classes, names,
    sizes and labels; image_fingerprint: SHA-256 over all pixels, in order; search: in words, which pairs of images were
    compared; sources: see `sources_of`."""

    dataset: DatasetIndex
    balances: tuple[SplitBalance, ...]
    anchor_fit: AnchorFit
    findings: tuple[Finding, ...]
    images: tuple[ScannedImage, ...]
    label_fingerprint: str
    split_fingerprints: dict[str, str]
    image_fingerprint: str
    search: str
    sources: tuple[SourceBalance, ...] = ()

    def of_severity(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def counts(self) -> dict[str, int]:
        """The number of findings of each kind that was found, errors first."""
        counted = Counter(finding.kind for finding in self.findings)
        return {kind: counted[kind] for kind in KINDS if kind in counted}

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels as plain values."""
        return {
            "version": _REPORT_VERSION,
            "data": str(self.dataset.root),
            "format": self.dataset.format,
            "fingerprints": {
                "labels": self.label_fingerprint,
                "splits": self.split_fingerprints,
                "images": self.image_fingerprint,
            },
            "classes": list(self.dataset.class_names),
            "splits": [asdict(counts) for counts in self.balances],
            "sources": [asdict(one) for one in self.sources],
            "anchors": asdict(self.anchor_fit),
            "similarity_search": self.search,
            "severities": {severity: len(self.of_severity(severity)) for severity in SEVERITIES},
            "counts": self.counts(),
            "findings": [finding.to_json() for finding in self.findings],
        }


def summary_text(inspection: Inspection) -> str:
    """For the terminal: class balance, boxes against anchors, and the first three findings of each kind.

    Paths are relative to the dataset's folder.
    """
    root = inspection.dataset.root
    folder = root if root.is_dir() else root.parent
    return _text(inspection, is_summary=True).replace(f" {folder}/", " ")


def report_text(inspection: Inspection) -> str:
    """For a file: the same with every class and finding, and the fingerprints."""
    return _text(inspection, is_summary=False)


def _text(inspection: Inspection, is_summary: bool) -> str:
    found: dict[str, dict[str, list[Finding]]] = {}
    for finding in inspection.findings:
        found.setdefault(finding.severity, {}).setdefault(finding.kind, []).append(finding)
    facts = {
        "inspection": inspection,
        "dataset": inspection.dataset,
        "fit": inspection.anchor_fit,
        "balance": _balance_lines(inspection, 30 if is_summary else len(inspection.dataset.class_names)),
        "found": found,
        "kinds": KINDS,
        "most_findings": 3 if is_summary else len(inspection.findings),
        "is_summary": is_summary,
        # 100 only where nothing is missing
        "share": lambda share: "100%" if share == 1 else f"{min(share, 0.9999):.2%}",
        "quantiles": lambda sides: " / ".join(f"{side:.0f}" for side in sides),
    }
    return filled("inspect", "inspection", facts, one_line_each=True)


def _balance_lines(inspection: Inspection, num_shown: int) -> Iterator[str]:
    """A table with a column for each split: images, boxes, and boxes of each class."""
    names = inspection.dataset.class_names
    rare = "ignored regions", "boxes of weight under 1", "images left out"
    titles = ["", "images", "without a box", "boxes", "an image, mean", "an image, most", *rare, *names[:num_shown]]
    columns = [titles]
    for split in inspection.balances:
        mean = f"{split.boxes / split.images:.1f}" if split.images else "-"
        column = [split.split, split.images, split.empty_images, split.boxes, mean, split.most_boxes]
        column += [split.ignored, split.weighted, sum(split.left_out.values())]
        shares = [f"{n} ({n / split.boxes:.0%})" if split.boxes else n for n in split.boxes_per_class[:num_shown]]
        columns.append([str(cell) for cell in [*column, *shares]])
    first = min(32, max(map(len, titles))) + 2
    widths = [max(map(len, column)) + 3 for column in columns[1:]]
    for title, *cells in zip(*columns, strict=True):
        if title not in rare or set(cells) != {"0"}:
            yield f"{title:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    if len(names) > num_shown:
        yield f"and {len(names) - num_shown} classes more"
