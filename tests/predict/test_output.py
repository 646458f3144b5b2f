from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorite.boxes import Detections
from anchorite.data import open_dataset
from anchorite.errors import InputError, StorageError
from anchorite.predict import Frame, FrameResult
from anchorite.predict.outputs import PredictionWriter, Save, yolo_lines

IMAGE = np.full((50, 100, 3), 114, np.uint8)


def found_in(source: str, names=("cat", "dog")) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 100.0, 50.0]]),
        scores=torch.tensor([0.75, 0.5]),
        class_ids=torch.tensor([1, 0]),
        class_names=names,
        image_size=(50, 100),
        source=source,
    )


def result(image: np.ndarray, detections: Detections) -> FrameResult:
    return FrameResult(Frame(image, detections.source), detections)


def read_json(folder: Path):
    return json.loads((folder / "detections.json").read_text(encoding="utf-8"))


def test_everything_is_written_and_says_the_same(tmp_path):
    with PredictionWriter(tmp_path / "out", ("cat", "dog")) as writer:
        writer.add(result(IMAGE, found_in("photos/a.JPG")))
        writer.add(result(IMAGE, Detections(*empty(), ("cat", "dog"), (50, 100), "photos/b.png")))
    content = read_json(tmp_path / "out")
    assert content["class_names"] == ["cat", "dog"]
    first, second = content["images"]
    assert first == {
        "source": "photos/a.JPG",
        "width": 100,
        "height": 50,
        "detections": [
            {"class_name": "dog", "class_id": 1, "score": 0.75, "box_xyxy": [10.0, 20.0, 30.0, 40.0]},
            {"class_name": "cat", "class_id": 0, "score": 0.5, "box_xyxy": [0.0, 0.0, 100.0, 50.0]},
        ],
        "annotated": "images/a.jpg",
        "labels": "labels/a.txt",
    }
    assert second["detections"] == []
    lines = (tmp_path / "out/labels/a.txt").read_text().splitlines()
    assert lines == [
        "1 0.200000 0.600000 0.200000 0.400000 0.750000",
        "0 0.500000 0.500000 1.000000 1.000000 0.500000",
    ]
    assert (tmp_path / "out/labels/b.txt").read_text() == ""
    assert cv2.imread(str(tmp_path / "out/images/a.jpg")).shape == (50, 100, 3)
    assert (cv2.imread(str(tmp_path / "out/images/b.png")) == 114).all()


def empty():
    return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)


def test_annotated_images_keep_their_colours(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    with PredictionWriter(tmp_path / "out", ("cat",)) as writer:
        writer.add(result(red, Detections(*empty(), ("cat",), (8, 8), "red.png")))
    assert cv2.imread(str(tmp_path / "out/images/red.png"))[4, 4].tolist() == [0, 0, 200]


def test_equal_names_do_not_collide(tmp_path):
    sources = ["a/x.jpg", "b/x.jpg", "b/X.png", "x-2.jpg", "", "", "c/x.jpg"]
    with PredictionWriter(tmp_path / "out", ("cat", "dog")) as writer:
        for source in sources:
            writer.add(result(IMAGE, found_in(source)))
    entries = read_json(tmp_path / "out")["images"]
    assert [entry["source"] for entry in entries] == sources
    assert [Path(entry["labels"]).stem for entry in entries] == ["x", "x-2", "X-3", "x-2-2", "image", "image-2", "x-4"]
    assert len(list((tmp_path / "out/labels").iterdir())) == len(list((tmp_path / "out/images").iterdir())) == 7


@pytest.mark.parametrize("stem", ["\u00e9" * 120, "x" * 250, "a\udcffb", 'w:*?"<>|', "tab\there", "\u72ac 1"])
def test_names_that_are_long_or_strange_are_written(tmp_path, stem):
    with PredictionWriter(tmp_path / "out", ("cat", "\udcff")) as writer:
        writer.add(result(IMAGE, found_in(f"photos/{stem}.jpg", names=("cat", "\udcff"))))
        writer.add(result(IMAGE, found_in(f"other/{stem}.jpg", names=("cat", "\udcff"))))
    entries = read_json(tmp_path / "out")["images"]
    assert [entry["source"] for entry in entries] == [f"photos/{stem}.jpg", f"other/{stem}.jpg"]
    for entry in entries:
        assert (tmp_path / "out" / entry["labels"]).is_file()
        assert (tmp_path / "out" / entry["annotated"]).is_file()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="nothing is ever overwritten"):
        PredictionWriter(tmp_path, ("cat",))
    with pytest.raises(InputError, match="nothing is ever overwritten"):
        PredictionWriter(tmp_path / "mine.jpg", ("cat",))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]
    assert (tmp_path / "mine.jpg").read_bytes() == b"precious"


def test_parts_can_be_left_out(tmp_path):
    with PredictionWriter(tmp_path / "out", ("cat", "dog"), Save.only(["json"])) as writer:
        writer.add(result(IMAGE, found_in("a.jpg")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.json"]


def test_the_json_is_written_when_the_run_breaks_off(tmp_path):
    writer = PredictionWriter(tmp_path / "out", ("cat", "dog"))

    def interrupted():
        with writer:
            writer.add(result(IMAGE, found_in("a.jpg")))
            writer.add_unreadable(InputError("b.jpg: truncated"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_json(tmp_path / "out")["images"]) == 1
    assert read_json(tmp_path / "out")["unreadable"] == ["b.jpg: truncated"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        PredictionWriter(tmp_path / "file" / "out", ("cat",))


def test_yolo_lines_of_nothing_are_nothing():
    assert yolo_lines(Detections(*empty(), ("cat",), (5, 5))) == ""


def test_what_was_found_is_read_as_labels_without_its_scores(tmp_path):
    data = tmp_path / "data"
    (data / "images" / "train").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(data / "images" / "train" / name), IMAGE)
    with PredictionWriter(tmp_path / "out", ("cat", "dog"), Save.only(["txt"])) as writer:
        writer.add(result(IMAGE, found_in("a.png")))
        writer.add(result(IMAGE, Detections(*empty(), ("cat", "dog"), (50, 100), "b.png")))
    (data / "labels").mkdir()
    (tmp_path / "out" / "labels").rename(data / "labels" / "train")
    (data / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    dataset = open_dataset(data)
    first, second = dataset.splits["train"]
    assert first.boxes_xyxy == pytest.approx(np.array([[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 100.0, 50.0]]))
    assert (first.class_ids.tolist(), second.class_ids.tolist()) == ([1, 0], [])
    assert [(one.kind, one.detail[:2]) for one in dataset.adjustments] == [("ignored-score", "2 ")]
