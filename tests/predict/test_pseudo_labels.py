"""Pseudo-labels: which detections become objects, which become regions, and what is written of them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import anchorite
from anchorite.anchors import AnchorSet
from anchorite.boxes import Detections
from anchorite.cli import run
from anchorite.cli.predict import PseudoOptions
from anchorite.data import DatasetIndex, Record, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.data.dataset import NO_CLASS
from anchorite.errors import InputError
from anchorite.model import Detector, WeightsInfo, save_weights
from anchorite.predict import FrameResult, PseudoLabels
from anchorite.predict.frames import read_frame
from anchorite.predict.pseudo_labels import CONFIDENT, DOUBTFUL
from tests.cli.commands import contents, data_folder

NAMES = ("red", "green", "ignore")
Found = list[tuple[float, int, tuple[float, float, float, float]]]
SURE: Found = [(0.9, 0, (10, 10, 50, 50))]


@dataclass
class Told:
    """A network that finds what it is told to, by the stem of the image: (score, class, box), best first."""

    found: dict[str, Found]
    info: WeightsInfo = field(default_factory=lambda: WeightsInfo("n", NAMES, AnchorSet.coco_p5(), 320))

    def stream(self, paths: list[Path], config: Any, size: Any, batch: int, unreadable: Any) -> Iterator[FrameResult]:
        for path in paths:
            try:
                frame = read_frame(path)
            except InputError as error:
                unreadable(error)
                continue
            rows = [row for row in self.found.get(path.stem, []) if row[0] >= config.confidence]
            scores, class_ids = (torch.tensor([row[column] for row in rows]) for column in (0, 1))
            boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
            yield FrameResult(
                frame, Detections(boxes, scores, class_ids.long(), NAMES, frame.image.shape[:2], str(path))
            )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of 100 x 80 pixels, a, b and c, and labels of a that nobody asked for."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 255, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("7 this is no label\n")
    return folder


def labels(found: dict[str, Found], photos: Path, **options: Any) -> tuple[PseudoLabels, DatasetIndex]:
    out = photos.with_name("out")
    return anchorite.pseudo_label(Told(found), photos, out, **options), open_dataset(out)


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_sure_detections_are_objects_and_doubtful_ones_regions_where_nothing_better_is(
    photos: Path, format: str
) -> None:
    found: Found = [
        *SURE,
        (0.6, 1, (60, 10, 90, 40)),  # as sure as it has to be
        (0.5, 1, (12, 10, 50, 50)),  # on an object of another class: IoU .95
        (0.4, 0, (10, 10, 50, 30)),  # IoU with it .5
        (0.3, 2, (10, 10, 50, 29)),  # .475
        (0.2, 0, (60, 50, 80, 70)),
        (0.15, 1, (61, 50, 80, 70)),  # where a better region is
        (0.12, 1, (100, 10, 100, 20)),  # no area is left of it
        (0.1, 1, (0, 60, 20, 80)),
        (0.09, 1, (30, 60, 50, 80)),  # too weak
    ]
    before = contents(photos)
    result, dataset = labels({"a": found}, photos, format=format)
    assert dataset.class_names == NAMES
    (record,) = dataset.split("train")
    boxes = [(10, 10, 50, 50), (60, 10, 90, 40), (10, 10, 50, 29), (60, 50, 80, 70), (0, 60, 20, 80)]
    order = np.lexsort(record.boxes_xyxy[:, ::-1].T)
    expected = np.array(boxes, float)
    expected_order = np.lexsort(expected[:, ::-1].T)
    assert np.allclose(record.boxes_xyxy[order], expected[expected_order], atol=1e-4)
    assert record.class_ids[order].tolist() == np.array([0, 1, *[NO_CLASS] * 3])[expected_order].tolist()
    assert record.ignored[order].tolist() == np.array([False, False, True, True, True])[expected_order].tolist()
    objects = record.weights[~record.ignored]
    assert sorted(objects.tolist()) == pytest.approx([0.6, 0.9])
    assert record.path.read_bytes() == (photos / "a.png").read_bytes()
    assert (result.images, result.boxes, result.regions) == (1, {"red": 1, "green": 1, "ignore": 0}, 3)
    assert result.without_object == 2
    assert contents(photos) == before


def test_boxes_that_are_one_once_they_are_cut_to_the_image_are_written_once(photos: Path) -> None:
    whole = (0.0, 0.0, 100.0, 80.0)
    _, dataset = labels({"a": [(0.9, 0, whole), (0.8, 1, whole), (0.7, 0, whole)]}, photos)
    (record,) = dataset.split("train")
    assert record.class_ids.tolist() == [0, 1]


def test_images_without_an_object_are_kept_when_asked(photos: Path) -> None:
    found = {"a": SURE, "b": [(0.3, 0, (10.0, 10.0, 50.0, 50.0))]}
    result, dataset = labels(found, photos, keep_empty=True)
    assert [record.ignored.tolist() for record in dataset.split("train")] == [[False], [True], []]
    assert (result.images, result.without_object) == (3, 2)


def test_images_of_the_labelled_data_are_left_out_and_both_named_in_one_file(photos: Path, tmp_path: Path) -> None:
    copied, none = tmp_path / "mine" / "b (1).png", np.zeros((0, 4))
    copied.parent.mkdir()
    shutil.copy(photos / "b.png", copied)
    record = Record(copied, 100, 80, none, np.zeros(0, int), np.zeros(0, bool), np.zeros(0), ())
    known = DatasetIndex(copied.parent, "yolo", ("green", "red"), {"train": [record], "val": [record]})
    write_dataset(known, tmp_path / "known", "yolo")
    result, dataset = labels(dict.fromkeys("abc", SURE), photos, labelled=tmp_path / "known")
    assert [path.name for path in dataset.split("train").paths()] == ["a.png", "c.png"]
    assert (result.known, result.sources) == (1, tmp_path / "out.yaml")
    with pytest.raises(InputError, match="has all of its 1 images"):
        anchorite.pseudo_label(Told({}), tmp_path / "mine", tmp_path / "more", labelled=tmp_path / "known")
    both = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert both == {"sources": [{"data": "known"}, {"data": "out", "background_weight": 0.5}]}


@pytest.mark.parametrize(
    ("options", "out", "said"),
    [
        ({"doubtful": 0.7}, "out", "doubtful 0.7, confident 0.6"),
        ({"doubtful": 0.0}, "out", "doubtful 0"),
        ({"confident": 1.5}, "out", "confident 1.5"),
        ({"confident": 0.95}, "out", "the best: 0.90"),
        ({}, "photos/out", "lies in"),
        ({}, "photos", "exists already"),
        ({"labelled": "photos/none"}, "out", "does not exist"),
        ({"confidence": 0.3}, "out", "confiden"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(
    options: dict[str, Any], out: str, said: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    before = contents(photos.parent)
    with pytest.raises(InputError, match=said):
        anchorite.pseudo_label(Told({"a": SURE}), "photos", out, **options)
    assert contents(photos.parent) == before
    assert not Path("out").exists()


def test_a_file_of_sources_that_is_there_is_not_overwritten(photos: Path) -> None:
    photos.with_name("out.yaml").touch()
    with pytest.raises(InputError, match=r"out\.yaml: exists already"):
        labels({"a": SURE}, photos, labelled=data_folder())


def test_what_is_no_image_is_an_error_or_handed_on(photos: Path) -> None:
    (photos / "b.png").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"b\.png"):
        labels({"a": SURE}, photos)
    errors: list[object] = []
    result, dataset = labels({"a": SURE}, photos, on_unreadable=errors.append)
    assert len(dataset.split("train")) == len(errors) == len(result.unreadable) == 1


@pytest.mark.usefixtures("small_networks")
def test_the_command_says_what_it_did_and_its_limits_are_those_of_the_function(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (PseudoOptions.confident, PseudoOptions.doubtful) == (CONFIDENT, DOUBTFUL)
    (photos / "b.png").write_bytes(b"hello")
    (photos / "c.png").unlink()
    teacher = tmp_path / "teacher.safetensors"
    save_weights(teacher, Detector("n", 3, AnchorSet.coco_p5()), WeightsInfo("n", NAMES, AnchorSet.coco_p5(), 64))
    words = ["pseudo", str(teacher), str(photos), str(tmp_path / "out"), "--confident", "1e-7", "--doubtful", "1e-7"]
    capsys.readouterr()
    assert run([*words, "--labelled", str(data_folder())]) == 2  # one file is no image
    captured = capsys.readouterr()
    assert "1 image written" in captured.out
    assert f"anchorite train {tmp_path / 'out.yaml'} --allow-outside" in captured.out
    assert f"{photos / 'b.png'}: not a" in captured.err
    assert len(open_dataset(tmp_path / "out").split("train")) == 1


def test_an_interrupt_leaves_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path.write_bytes

    def interrupted(path: Path, content: bytes) -> int:
        if path.suffix == ".png":
            signal.raise_signal(signal.SIGINT)
        return copy(path, content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labels({"a": SURE}, photos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
