"""What the page draws of a validation: the right images, the right cells, the right shares of the time."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from anchorite.data import DatasetIndex, Record
from anchorite.data.dataset import NO_CLASS
from anchorite.evaluate import ValidationResult, ValidationSpeed
from anchorite.metrics import Predictions, Truth, coco_metrics
from anchorite.report import write_run_report
from anchorite.report.conclusion import ImageVerdict, choose_examples, describe_dataset, save_details
from anchorite.report.run_data import RunFiles
from anchorite.report.run_page import confusion_table, describe_data, read_examples, time_split, validation_charts
from tests.report.fake_run import EVIL, make_full_run
from tests.report.test_run_report import Page


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(make_full_run(tmp_path / "run"))


def test_the_worst_come_first_and_no_image_twice() -> None:
    verdicts = [
        ImageVerdict(3, 0, 0, 0),
        ImageVerdict(0, 1, 0, 0),
        ImageVerdict(5, 0, 0, 0),
        ImageVerdict(1, 1, 0, 0),
        ImageVerdict(0, 2, 1, 0),
    ]
    assert choose_examples(verdicts) == ([4, 1, 3], [2, 0])
    assert choose_examples([]) == ([], [])
    worst, best = choose_examples([ImageVerdict(1, 0, 0, 0)] * 40)
    assert len({*worst, *best}) == 12


def test_examples_show_labels_and_what_was_found(files: RunFiles) -> None:
    found = read_examples(files, 1_000_000)
    assert found is not None
    worst, best = found["images"]
    assert (worst["kind"], worst["words"], [box["words"] for box in worst["labels"]]) == ("worst", "1 missed", [EVIL])
    assert worst["found"] == []
    (box,) = best["found"]
    assert (best["kind"], best["words"], box["words"]) == ("best", "1 right", "disc 0.90")
    assert (box["x"], box["y"], box["width"], box["height"]) == (20, 20, 40, 40)
    assert (worst["ignored"], best["ignored"]) == ([], [{"x": 0, "y": 0, "width": 15, "height": 10}])
    assert read_examples(files, 10) is None
    details = json.loads((files.folder / "validation.json").read_text())
    for one in details["examples"]["images"]:
        del one["ignored"]  # of an earlier release
    (files.folder / "validation.json").write_text(json.dumps(details))
    assert read_examples(RunFiles(files.folder), 1_000_000) is not None


def test_only_pictures_of_the_folder_are_shown(files: RunFiles, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes((files.folder / "examples" / "best-01.jpg").read_bytes())
    details = json.loads((files.folder / "validation.json").read_text())
    details["examples"]["images"][0]["file"] = "../../secret.jpg"
    (files.folder / "validation.json").write_text(json.dumps(details))
    found = read_examples(RunFiles(files.folder), 1_000_000)
    assert found is not None
    assert [one["kind"] for one in found["images"]] == ["best"]


def test_the_matrix_tells_in_words_what_a_count_is(files: RunFiles) -> None:
    page = Page(write_run_report(files.folder))
    cells = [one["data-tip"] for one in page.all("g") if one.get("class") == "cell"]
    assert len(cells) == 9
    assert [cells[k] for k in (0, 1, 5, 6)] == [
        "disc: 1 of 1 found",
        f"disc: 0 of 1 taken for {EVIL}",
        f"{EVIL}: 1 of 1 missed",
        "0 x disc found where nothing is labelled",
    ]


def test_of_many_classes_those_with_most_errors_are_in_the_matrix(files: RunFiles) -> None:
    counts = [[0] * 81 for _ in range(81)]
    counts[70][3] = 5
    details = {"class_names": [f"c{i}" for i in range(80)], "confusion": {"counts": counts, "confidence": 0.25}}
    (files.folder / "validation.json").write_text(json.dumps(details))
    matrix = confusion_table(files)
    assert matrix is not None
    assert len(matrix["names"]) == len(matrix["counts"]) == 25
    assert {"c70", "c3", "background"} <= set(matrix["names"])
    assert "24 of 80 classes" in matrix["note"]


def test_of_too_many_classes_the_details_hold_what_the_page_shows(tmp_path: Path) -> None:
    found = []
    for num_classes in (100, 101):  # whole, and in part
        names = tuple(f"c{k}" for k in range(num_classes))
        truth = Truth(np.tile([0.0, 0, 9, 9], (30, 1)), np.arange(30), np.zeros(30, bool), np.full(30, 81.0))
        seen = Predictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
        metrics, speed = coco_metrics([truth], [seen], names), ValidationSpeed(*(0.0 for _ in ValidationSpeed._fields))
        image = tmp_path / "image.png"
        cv2.imwrite(str(image), np.zeros((9, 9, 3), np.uint8))
        record = Record(image, 9, 9, truth.boxes_xyxy, truth.class_ids, truth.ignored, truth.areas, ("",) * 30)
        folder = tmp_path / f"{num_classes}"
        folder.mkdir()
        save_details(folder, ValidationResult(metrics, None, (truth,), (seen,), names, speed), [record])
        found.append(confusion_table(RunFiles(folder)))
    whole, part = found
    assert whole is not None
    assert part == whole | {"note": whole["note"].replace("100", "101")}
    assert (len(part["names"]), part["totals"], part["counts"][0][-1]) == (25, [1] * 24 + [0], 1)


def test_curves_have_a_line_a_labelled_class_and_their_mean(files: RunFiles) -> None:
    charts = validation_charts(files)
    assert charts is not None
    precision, f1 = charts
    assert [(one.name, one.note) for one in precision.strokes] == [
        ("disc", "1.000"),
        (EVIL, "0.000"),
        ("mean of classes", "0.500"),
    ]
    assert f1.strokes[-1].style == "strong"


def test_the_twelve_numbers_are_of_the_best_and_of_the_last_epoch(files: RunFiles) -> None:
    (files.folder / "metrics.csv").write_text("epoch,val/map,val/map50\n1,0.2,0.5\n2,0.4,0.6\n3,0.3,nan\n")
    texts = Page(write_run_report(files.folder)).texts
    table = texts[texts.index("COCO") :]
    assert table[1:3] == ["best, epoch 2", "last, epoch 3"]
    for row in (["mAP", "0.4000", "0.3000"], ["mAP50", "0.6000", "-"]):
        start = table.index(row[0])
        assert table[start : start + 3] == row


def test_the_time_is_split_into_parts_of_a_whole(files: RunFiles) -> None:
    shares = time_split(files)  # 6 epochs of 10 s, 2.5 of them waiting, 3 s validation each, in 84 s
    assert [(name, seconds) for name, _, seconds, _, _ in shares] == [
        ("training steps", 45),
        ("waiting for data", 15),
        ("validation", 18),
        ("all else", 6),
    ]
    assert sum(percent for _, _, _, percent, _ in shares) == pytest.approx(100)
    (files.folder / "summary.json").write_text('{"seconds": 12}')  # of a run that was resumed: the last part alone
    assert time_split(RunFiles(files.folder))[-1][0] == "validation"


def test_data_and_environment_are_told_while_the_run_goes_on(tmp_path: Path) -> None:
    files = RunFiles(make_full_run(tmp_path / "run", concluded=False))
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "epoch-0001.json").write_text('{"body": {"environment": {"torch": "2.13"}}}')
    (checkpoints / "epoch-0002.json").write_text("{")
    data = describe_data(files)
    assert data is not None
    assert data["splits"] == [["train", "237", "426", *"----"], ["val", "4", "5", *"----"]]
    assert files.environment() == {"torch": "2.13"}
    done = describe_data(RunFiles(make_full_run(tmp_path / "done")))
    assert done is not None
    assert ("boxes that reach outside their image", "3") in done["facts"]  # of a release that kept no more
    facts = json.loads((tmp_path / "run/run.json").read_text())
    facts["checks"] = {
        "splits": [
            {"split": "train", "ignored": 7, "left_out": {"malformed": 2, "ignored-file": 3}, "empty_images": 4}
            | {"weighted": 3, "mean_weight": 0.5}
        ],
        "sources": [
            {"name": "mine", "covers": ["disc"], "not_covered": [EVIL], "background_weight": 0.5}
            | {"images": {"train": 200, "val": 4}},
            {"name": "rest", "covers": None, "not_covered": [], "background_weight": 1, "images": {"train": 37}},
        ],
        "findings": [{"severity": "error", "kind": "empty-box", "number": 1, "text": EVIL}],
    }
    facts["val_split"] = {"share": 0.2, "seed": 4, "images": ["a.jpg", "b.jpg"]}
    (tmp_path / "run/run.json").write_text(json.dumps(facts))
    data = describe_data(RunFiles(tmp_path / "run"))
    assert data is not None
    assert data["splits"][0] == ["train", "237", "419", "3 (mean 0.50)", "7", "4", "5"]
    assert data["sources"] == [
        ("mine", f"disc; not {EVIL}", "0.5", ["200", "4"]),
        ("rest", "all classes", "1", ["37", "-"]),
    ]
    assert data["told"] == [("error", EVIL)]
    assert any("2 images of train" in text and "0.2" in text for _, text in data["facts"])
    assert EVIL not in write_run_report(tmp_path / "run").read_text()
    assert [(name, counts) for name, counts, _ in done["classes"]] == [("disc", [400]), (EVIL, [26])]


@pytest.mark.parametrize(
    "content",
    ["{}", '{"class_names": 3}', '{"class_names": ["a"], "examples": {"images": [1]}, "confusion": {"counts": [[1]]}}'],
)
def test_details_of_another_shape_leave_the_rest_of_the_page(files: RunFiles, content: str) -> None:
    (files.folder / "validation.json").write_text(content)
    page = write_run_report(files.folder).read_text()
    assert "Effective settings" in page
    assert "Confusion matrix" not in page


def test_at_the_end_of_a_run_the_summary_counts_what_was_learned() -> None:
    sides = np.array([[0.0, 0, 8, 8]] * 3)
    facts = np.array([0, 1, NO_CLASS]), np.array([False, False, True]), np.ones(3), ("a:1", "a:2", "a:3")
    record = Record(Path("a.png"), 16, 16, sides, *facts, weights=np.array([0.5, 1, 1], np.float32))
    described = describe_dataset(DatasetIndex(Path("data"), "yolo", ("cat", "dog"), {"train": [record]}))  # type: ignore[dict-item]
    counts = {"boxes": 3, "objects": 2, "ignored": 1, "weighted": 1, "mean_weight": 0.5, "images_without_boxes": 0}
    assert described["splits"] == [{"split": "train", "images": 1, **counts}]
    assert described["boxes_by_class"] == [{"class": "cat", "train": 1}, {"class": "dog", "train": 1}]
