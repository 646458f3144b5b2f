"""A whole inspection: the index, every image decoded once, and all findings in one list."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anchorite.anchors import AnchorSet
from anchorite.data import DatasetIndex
from anchorite.data.fingerprint import dataset_fingerprint, split_fingerprints
from anchorite.inspect.anchors import AnchorFit, anchor_findings, anchor_fit
from anchorite.inspect.boxes import overlap_findings
from anchorite.inspect.findings import KINDS, SEVERITIES, Finding, Severity
from anchorite.inspect.images import SeenImage, picture_findings, see_images
from anchorite.inspect.labels import (
    SplitBalance,
    balance,
    image_findings,
    name_findings,
    reading_findings,
    split_findings,
    unlisted_findings,
)
from anchorite.inspect.pictures import Progress
from anchorite.inspect.similar import MAX_EXHAUSTIVE, MAX_WITHIN_SPLITS

_REPORT_VERSION = 1


@dataclass(frozen=True)
class Inspection:
    """What was found. findings: errors first, then by kind, in reading order; label_fingerprint: of classes, names,
    sizes and labels (`anchorite.data.fingerprint`); image_fingerprint: SHA-256 over all pixels, in order."""

    dataset: DatasetIndex
    balances: tuple[SplitBalance, ...]
    anchor_fit: AnchorFit
    findings: tuple[Finding, ...]
    images: tuple[SeenImage, ...]
    label_fingerprint: str
    split_fingerprints: dict[str, str]
    image_fingerprint: str
    search: str

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
            "anchors": asdict(self.anchor_fit),
            "similarity_search": self.search,
            "severities": {severity: len(self.of_severity(severity)) for severity in SEVERITIES},
            "counts": self.counts(),
            "findings": [finding.to_json() for finding in self.findings],
        }


def inspect_dataset(
    dataset: DatasetIndex,
    anchors: AnchorSet,
    image_size: int,
    progress: Progress | None = None,
    comparing: Progress | None = None,
) -> Inspection:
    """Inspect a dataset that was opened with skip_bad, so that every malformed row is among its adjustments.

    Anchors and image size are those of the training in mind. progress is called with (images decoded, images in all),
    comparing, after that, with (images compared with all others, images in all). Nothing is written.
    """
    num_classes = len(dataset.class_names)
    balances = tuple(balance(split, records, num_classes) for split, records in dataset.splits.items())
    images = see_images(dataset, progress)
    order = {kind: number for number, kind in enumerate(KINDS)}
    found = [*_findings_of_labels(dataset, balances), *picture_findings(images, comparing)]
    found += [*overlap_findings(dataset), *anchor_findings(dataset, anchors, image_size)]
    return Inspection(
        dataset=dataset,
        balances=balances,
        anchor_fit=anchor_fit(dataset.splits.get("train", ()), anchors, image_size),
        findings=tuple(sorted(found, key=lambda finding: order[finding.kind])),
        images=tuple(images),
        label_fingerprint=dataset_fingerprint(dataset),
        split_fingerprints=split_fingerprints(dataset),
        image_fingerprint=_pixels_fingerprint(images),
        search=_search_made(len(images)),
    )


def _findings_of_labels(dataset: DatasetIndex, balances: tuple[SplitBalance, ...]) -> Iterator[Finding]:
    yield from reading_findings(dataset)
    yield from unlisted_findings(dataset)
    yield from name_findings(dataset)
    yield from split_findings(dataset, balances)
    yield from image_findings(dataset)


def _pixels_fingerprint(images: Sequence[SeenImage]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.picture.digest or b"unreadable")
    return digest.hexdigest()


def _search_made(num_images: int) -> str:
    if num_images <= MAX_EXHAUSTIVE:
        return "every pair of images, shifted by up to a third"
    pairs = "every pair of images" if num_images <= MAX_WITHIN_SPLITS else "every pair of images across splits"
    return f"{pairs}, shifted by up to a twentieth (up to {MAX_EXHAUSTIVE} images: by up to a third)"
