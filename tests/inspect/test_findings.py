"""Each planted defect is found, named with its place, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchorite.inspect import KINDS, report_text, summary_text
from tests.data.format_samples import coco_json, voc_object, voc_xml, write_text
from tests.inspect.samples import healthy, inspected, texture, write_picture, write_texture, yolo_folder


def test_a_healthy_dataset_has_no_finding(tmp_path: Path) -> None:
    inspection = inspected(healthy(tmp_path))
    assert inspection.findings == ()
    assert "Nothing found." in summary_text(inspection)


def test_bad_rows_are_all_listed_not_the_first_twenty(tmp_path: Path) -> None:
    healthy(tmp_path)
    write_text(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2\n" + "0 0.5 0.5 0.2\n" * 30)
    inspection = inspected(tmp_path)
    bad = [finding for finding in inspection.findings if finding.kind == "malformed"]
    label = tmp_path / "labels/train/a.txt"
    assert [finding.origin for finding in bad] == [f"{label}:{row}" for row in range(2, 32)]
    assert {finding.image for finding in bad} == {str(tmp_path / "images/train/a.png")}
    assert {(finding.split, finding.severity, finding.effect) for finding in bad} == {("train", "error", "refused")}
    assert all(str(finding.origin) in report_text(inspection) for finding in bad)


def test_what_reading_does_to_boxes(tmp_path: Path) -> None:
    healthy(tmp_path)
    rows = "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0 0\n1 0.95 0.5 0.2 0.2\n"
    write_text(tmp_path / "labels/val/c.txt", rows)
    inspection = inspected(tmp_path)
    found = {finding.kind: finding for finding in inspection.findings}
    assert inspection.counts() == {"empty-box": 1, "duplicate-box": 1, "clipped-box": 1}
    assert {finding.split for finding in inspection.findings} == {"val"}
    assert {finding.image for finding in inspection.findings} == {str(tmp_path / "images/val/c.png")}
    assert [found[kind].effect for kind in ("empty-box", "duplicate-box", "clipped-box")] == [
        "dropped",
        "dropped",
        "clipped",
    ]
    assert [found[kind].severity for kind in ("empty-box", "clipped-box")] == ["error", "warning"]
    assert found["clipped-box"].box_xyxy == pytest.approx((108.8, 38.4, 134.4, 57.6))
    assert found["clipped-box"].class_name == "dog"


def test_edges_of_the_image_are_inside_it(tmp_path: Path) -> None:
    write_texture(tmp_path / "images/a.png", 1)
    annotation = voc_xml(voc_object("cat", 64, 48, 128, 96), voc_object("cat", 0, 0, 64, 96), size=(128, 96))
    write_text(tmp_path / "Annotations/a.xml", annotation)
    inspection = inspected(tmp_path)
    assert inspection.counts() == {"single-image-split": 1}


def test_leftover_files_and_damaged_images(tmp_path: Path) -> None:
    healthy(tmp_path)
    for stem in "pqrstuvw":
        write_text(tmp_path / f"labels/train/{stem}.txt", "0 0.5 0.5 0.2 0.2\n")
    cut = tmp_path / "images/val/d.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    empty = write_text(tmp_path / "images/val/e.jpg", "")
    inspection = inspected(tmp_path)
    assert inspection.counts() == {"unreadable-image": 2, "unused-label": 8}
    unused = [finding.origin for finding in inspection.findings if finding.kind == "unused-label"]
    assert unused == [str(tmp_path / f"labels/train/{stem}.txt") for stem in "pqrstuvw"]
    unreadable = {finding.image for finding in inspection.findings if finding.kind == "unreadable-image"}
    assert unreadable == {str(cut), str(empty)}


def test_the_same_pixels_in_two_splits_are_an_error_and_in_one_a_warning(tmp_path: Path) -> None:
    healthy(tmp_path)
    write_picture(tmp_path / "images/val/c.bmp", texture(0))  # as train/a.png
    (tmp_path / "images/val/c.png").unlink()
    write_texture(tmp_path / "images/train/twin.png", 1)  # as train/b.png
    inspection = inspected(tmp_path)
    assert inspection.counts() == {"shared-image": 1, "repeated-picture": 1, "background-image": 1}
    shared = next(finding for finding in inspection.findings if finding.kind == "shared-image")
    assert (shared.split, shared.image) == ("val", str(tmp_path / "images/val/c.bmp"))
    assert shared.others == (str(tmp_path / "images/train/a.png"),)
    assert shared.severity == "error"


def test_the_same_file_named_by_two_splits(tmp_path: Path) -> None:
    healthy(tmp_path)
    write_text(tmp_path / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    inspection = inspected(tmp_path)
    assert inspection.counts() == {"shared-image": 2}


def test_the_same_view_in_two_splits_is_a_warning_and_in_one_a_note(tmp_path: Path) -> None:
    healthy(tmp_path)
    write_picture(tmp_path / "images/val/c.jpg", texture(0), quality=60)
    (tmp_path / "images/val/c.png").unlink()
    wide = texture(50, 200)
    write_picture(tmp_path / "images/train/b.png", wide[:, :128])
    write_picture(tmp_path / "images/train/twin.png", wide[:, 32:160])
    write_text(tmp_path / "labels/train/twin.txt", "0 0.5 0.5 0.2 0.2\n")
    inspection = inspected(tmp_path)
    assert inspection.counts() == {"similar-shared-image": 1, "similar-image": 1}
    by_kind = {finding.kind: finding for finding in inspection.findings}
    across, within = by_kind["similar-shared-image"], by_kind["similar-image"]
    assert {Path(str(across.image)).name, Path(across.others[0]).name} == {"a.png", "c.jpg"}
    assert {Path(str(within.image)).name, Path(within.others[0]).name} == {"b.png", "twin.png"}
    assert (across.severity, within.severity) == ("warning", "note")


def test_classes_and_splits(tmp_path: Path) -> None:
    rows = {"a": "0 0.5 0.5 0.2 0.2\n", "b": "0 0.4 0.5 0.2 0.2\n"}
    splits = {"train": rows, "val": {"c": "1 0.5 0.5 0.2 0.2\n"}, "test": {}}
    inspection = inspected(yolo_folder(tmp_path, splits, '[cat, dog, "Cat ", cow]'))
    details = {finding.kind: finding.detail for finding in inspection.findings}
    assert inspection.counts() == {
        "class-without-training": 3,
        "similar-class-names": 1,
        "empty-split": 1,
        "single-image-split": 1,
    }
    untrained = [finding.detail for finding in inspection.findings if finding.kind == "class-without-training"]
    assert untrained == [
        "class 'dog': only 1 in val",
        "class 'Cat ': no box in any split",
        "class 'cow': no box in any split",
    ]
    assert details["similar-class-names"] == "'cat' and 'Cat '"
    assert [counts.boxes_per_class for counts in inspection.balances] == [(2, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)]


def test_nothing_to_train_on(tmp_path: Path) -> None:
    background = inspected(yolo_folder(tmp_path / "background", {"train": {"a": "", "b": ""}}))
    assert background.counts() == {"no-training-boxes": 1, "background-image": 2}
    empty = inspected(yolo_folder(tmp_path / "empty", {"train": {}, "val": {"a": "0 0.5 0.5 0.2 0.2\n"}}))
    assert empty.counts() == {"no-training-images": 1, "single-image-split": 1}
    assert empty.findings[0].severity == background.findings[0].severity == "error"


def test_images_beside_that_no_json_names(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write_texture(tmp_path / "images/train" / f"{name}.png", seed)
    images = [{"id": n, "file_name": f"{name}.png", "width": 128, "height": 96} for n, name in enumerate("ab")]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 30, 30], "iscrowd": n} for n in range(2)]
    coco_json(tmp_path / "annotations/instances_train.json", boxes, images)
    inspection = inspected(tmp_path)
    assert inspection.counts() == {"class-without-training": 1, "unlisted-image": 1, "ignored-box": 1}
    unlisted = next(finding for finding in inspection.findings if finding.kind == "unlisted-image")
    assert unlisted.others == (str(tmp_path / "images/train/c.png"),)
    assert inspection.balances[0].ignored == 1


def test_dense_images(tmp_path: Path) -> None:
    rows = [f"0 {0.05 + 0.09 * (k % 11):.3f} {0.05 + 0.09 * (k // 11):.3f} 0.08 0.08\n" for k in range(101)]
    dense, full = "".join(rows), "".join(rows[:100])
    inspection = inspected(yolo_folder(tmp_path, {"train": {"a": dense, "b": full}}, "[cat]"))
    assert inspection.counts() == {"dense-image": 1}
    assert inspection.findings[0].image == str(tmp_path / "images/train/a.png")


def test_the_json_has_everything_and_the_fingerprints_notice_labels_and_pixels(tmp_path: Path) -> None:
    healthy(tmp_path)
    before = json.loads(json.dumps(inspected(tmp_path).to_json()))
    write_text(tmp_path / "labels/train/b.txt", "1 0.5 0.5 0.3 0.3\n")
    relabelled = json.loads(json.dumps(inspected(tmp_path).to_json()))
    write_texture(tmp_path / "images/train/a.png", 77)
    repainted = json.loads(json.dumps(inspected(tmp_path).to_json()))
    prints = [one["fingerprints"] for one in (before, relabelled, repainted)]
    assert prints[0]["labels"] != prints[1]["labels"] == prints[2]["labels"]
    assert prints[0]["splits"]["train"] != prints[1]["splits"]["train"]
    assert prints[0]["splits"]["val"] == prints[1]["splits"]["val"]
    assert prints[0]["images"] == prints[1]["images"] != prints[2]["images"]
    assert before["splits"][0]["boxes_per_class"] == [1, 2]


def test_every_kind_has_a_heading_of_its_own() -> None:
    assert len({kind.heading for kind in KINDS.values()}) == len(KINDS)


def test_a_name_with_a_line_break_cannot_forge_a_line(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path, {"train": {"a\nERRORS: 0 b": "0 0.5 0.5 0 0\n"}})
    assert not any(line.startswith("ERRORS: 0") for line in report_text(inspected(folder)).splitlines())


def test_the_documentation_names_every_kind_under_its_severity() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
    section = page.partition("## Inspecting a dataset")[2]
    errors, _, rest = section.partition("**Warnings**")
    warnings, _, notes = rest.partition("**Notes**")
    parts = {"error": errors, "warning": warnings, "note": notes}
    assert [name for name, kind in KINDS.items() if f"`{name}`" not in parts[kind.severity]] == []
