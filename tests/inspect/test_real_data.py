"""The reference datasets: every known defect is found, and what else is reported is true.

The pairs of images that show the same view were looked at one by one: each shows the same cells, moved by up to a
third of the picture.
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from anchorite.data import open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.formats import FormatName
from anchorite.inspect import Finding, Inspection, corrected_dataset
from tests.inspect.samples import inspected
from tests.shared import shared_path

SAME_VIEW = (
    "037-038 204-277 206-278 223-263 226-261 227-260 229-258 230-257 231-256 233-254 236-253 237-252 242-249 243-250 "
    "244-247 382-395 384-393 386-391"
)


@cache
def inspection_of(name: str, format: str | None = None) -> Inspection:
    return inspected(shared_path(f"datasets/{name}"), format)


def of_kind(inspection: Inspection, *kinds: str) -> list[Finding]:
    return [finding for finding in inspection.findings if finding.kind in kinds]


def stem(path: str | None) -> str:
    return Path(str(path)).stem


def known_defects(kind: str) -> list[dict[str, str]]:
    with (shared_path("datasets/bccd") / "defects.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


def test_bccd_has_these_kinds_of_findings_and_no_other() -> None:
    """No box at xmax = 640 or ymax = 480 is called out of bounds, though hundreds touch these edges."""
    inspection = inspection_of("bccd")
    assert inspection.counts() == {"empty-box": 2, "similar-shared-image": 12, "similar-box": 8, "similar-image": 6}
    edges = np.concatenate([one.boxes_xyxy for records in inspection.dataset.splits.values() for one in records])
    assert (edges[:, 2] == 640).sum() > 200
    assert (edges[:, 3] == 480).sum() > 300
    assert inspection.anchor_fit.recall == 1


def test_bccd_boxes_without_area() -> None:
    known = {(row["stem"], row["split"]) for row in known_defects("zero_area")}
    assert len(known) == 2
    assert {(stem(one.image), str(one.split)) for one in of_kind(inspection_of("bccd"), "empty-box")} == known


def test_bccd_boxes_drawn_twice() -> None:
    known = {
        (row["stem"], row["split"], *(float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")))
        for row in known_defects("near_duplicate")
    }
    found = {
        (stem(one.image), one.split, *(one.box_xyxy or ())) for one in of_kind(inspection_of("bccd"), "similar-box")
    }
    assert len(known) == 8
    assert found == known


def test_bccd_images_of_the_same_view() -> None:
    found = of_kind(inspection_of("bccd"), "similar-shared-image", "similar-image")
    pairs = {"-".join(sorted((stem(one.image)[-3:], stem(one.others[0])[-3:]))) for one in found}
    assert pairs == set(SAME_VIEW.split())
    leak = next(one for one in found if {stem(one.image)[-3:], stem(one.others[0])[-3:]} == {"037", "038"})
    assert (leak.kind, leak.severity) == ("similar-shared-image", "warning")


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_cards_say_the_same_in_every_format(format: str) -> None:
    inspection = inspection_of("cards", format)
    assert inspection.counts() == {"similar-image": 6}
    pairs = {frozenset((stem(one.image), stem(one.others[0]))) for one in inspection.findings}
    assert frozenset(("cam_image1", "cam_image54")) in pairs
    assert {frozenset((f"IMG_{n}", f"IMG_{n + 1}")) for n in (2464, 2466, 2468, 2471, 2473)} < pairs
    nine = inspection.dataset.class_names.index("nine")
    assert [counts.boxes_per_class[nine] for counts in inspection.balances] == [70, 19, 26]
    fit, other = inspection.anchor_fit, inspection_of("cards", "yolo").anchor_fit
    assert (fit.recall, fit.level_recalls) == (other.recall, other.level_recalls)
    assert fit.width_quantiles == pytest.approx(other.width_quantiles, rel=1e-4)  # YOLO's numbers are rounded


def test_a_corrected_bccd_has_no_error_and_all_other_boxes(tmp_path: Path) -> None:
    inspection = inspection_of("bccd")
    dataset, changes = corrected_dataset(inspection)
    write_dataset(dataset, tmp_path / "out", "voc")
    copy = open_dataset(tmp_path / "out")
    assert copy.adjustments == ()
    assert Counter(finding.kind for _, finding in changes) == {"empty-box": 2, "similar-box": 8}
    gone = {(stem(finding.image), finding.box_xyxy) for _, finding in changes}
    for split, records in inspection.dataset.splits.items():
        copies = {record.path.name: record for record in copy.splits[split]}
        assert len(copies) == len(records)
        for record in records:
            wanted = [box for box in record.boxes_xyxy.tolist() if (record.path.stem, tuple(box)) not in gone]
            assert copies[record.path.name].boxes_xyxy.tolist() == wanted
            assert copies[record.path.name].path.read_bytes() == record.path.read_bytes()


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_a_copy_of_the_cards_has_the_numbers_of_its_source(format: FormatName, tmp_path: Path) -> None:
    inspection = inspection_of("cards", format)
    dataset, changes = corrected_dataset(inspection)
    write_dataset(dataset, tmp_path / "out", format)
    assert changes == []
    copy = open_dataset(tmp_path / "out", format)
    for split, records in inspection.dataset.splits.items():
        copies = {record.path.name: record for record in copy.splits[split]}
        for record in records:
            found = copies[record.path.name]
            atol = 0 if format == "coco" else 1e-6 * min(record.width, record.height)
            np.testing.assert_allclose(found.boxes_xyxy, record.boxes_xyxy, rtol=0, atol=atol)
            assert found.class_ids.tolist() == record.class_ids.tolist()
