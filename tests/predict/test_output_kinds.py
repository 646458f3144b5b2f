"""Each kind of result, read back by somebody else's means where there are any."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorite.boxes import Detections
from anchorite.errors import InputError, StorageError
from anchorite.predict import Frame, FrameResult, PredictionWriter, Save
from anchorite.predict.drawing import draw
from anchorite.predict.frames import Video
from anchorite.predict.outputs import GrowingFile, JsonDocument, folder_names, pixels_of
from tests.predict.videos import all_frames, square_at

NAMES = ("red", "green", "blue")


def found_in(source: str, seed: int, num: int = 3, size=(96, 128)) -> Detections:
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 1, (num, 2, 2)), axis=1) * np.array(size[::-1])
    boxes = torch.tensor(corners.reshape(num, 4), dtype=torch.float32)
    scores = torch.tensor(np.sort(random.uniform(0.3, 1, num))[::-1].copy(), dtype=torch.float32)
    return Detections(boxes, scores, torch.tensor(random.integers(0, 3, num)), NAMES, size, source)


def frame(number: int, video: Video) -> Frame:
    return Frame.of(square_at(number), video, number, number / video.fps)


def write(folder: Path, save: Save, results) -> None:
    with PredictionWriter(folder, NAMES, save) as writer:
        for image, detections, of_video in results:
            writer.add(FrameResult(of_video or Frame(image, detections.source), detections))


def test_coco_files_give_the_same_boxes_in_the_reference_implementation(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    results = [(square_at(n), found_in(f"photos/{n}.jpg", n, num), None) for n, num in enumerate((3, 0, 2))]
    write(tmp_path / "out", Save.only(["coco"]), results)
    with redirect_stdout(io.StringIO()):
        images = coco.COCO(str(tmp_path / "out" / "coco-images.json"))
        loaded = images.loadRes(str(tmp_path / "out" / "coco-results.json"))
    assert sorted(images.getImgIds()) == [1, 2, 3]
    for image_id, (_, detections, _) in enumerate(results, 1):
        (info,) = images.loadImgs(image_id)
        assert (info["file_name"], info["width"], info["height"]) == (detections.source, 128, 96)
        rows = loaded.loadAnns(loaded.getAnnIds(image_id))
        assert len(rows) == len(detections)
        for row, found in zip(rows, detections, strict=True):
            x, y, width, height = row["bbox"]
            assert np.allclose([x, y, x + width, y + height], found.box_xyxy, atol=0.0011)
            assert row["score"] == pytest.approx(found.score, abs=1e-6)
            assert images.loadCats(row["category_id"])[0]["name"] == found.class_name
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"coco-images.json", "coco-results.json"}


def test_yolo_rows_read_back_as_the_boxes(tmp_path: Path) -> None:
    detections = found_in("a.jpg", 5, 4)
    write(tmp_path / "out", Save.only(["txt"]), [(square_at(0), detections, None)])
    rows = np.loadtxt(tmp_path / "out" / "labels" / "a.txt", ndmin=2)
    assert rows[:, 0].tolist() == detections.class_ids.tolist()
    centre, size = rows[:, 1:3] * (128, 96), rows[:, 3:5] * (128, 96)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    assert np.abs(boxes - detections.boxes_xyxy.numpy()).max() < 2e-4
    assert np.abs(rows[:, 5] - detections.scores.numpy()).max() < 1e-6


def test_crops_are_the_pixels_inside_the_boxes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    detections = found_in("photos/a.jpg", 6, 5)
    write(tmp_path / "out", Save.only(["crops"]), [(image, detections, None), (image, found_in("b/a.png", 7, 1), None)])
    for number, found in enumerate(detections, 1):
        x0, y0 = (math.floor(edge) for edge in found.box_xyxy[:2])
        x1, y1 = (math.ceil(edge) for edge in found.box_xyxy[2:])
        crop = cv2.imread(str(tmp_path / "out" / "crops" / found.class_name / f"a-{number}.png"))
        assert np.array_equal(crop[..., ::-1], image[y0:y1, x0:x1])
    assert len(list((tmp_path / "out" / "crops").rglob("*.png"))) == 6


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ((0.0, 0.0, 100.0, 50.0), (0, 0, 100, 50)),
        ((10.0, 20.0, 30.0, 40.0), (10, 20, 30, 40)),
        ((9.9, 19.1, 30.1, 40.9), (9, 19, 31, 41)),
        ((99.8, 49.9, 100.0, 50.0), (99, 49, 100, 50)),
        ((100.0, 50.0, 100.0, 50.0), (99, 49, 100, 50)),
        ((5.0, 5.0, 5.0, 5.0), (5, 5, 6, 6)),
    ],
)
def test_the_pixels_of_a_box_are_at_least_one(box, pixels) -> None:
    assert pixels_of(box, 50, 100) == pixels


def test_class_names_cannot_lead_out_of_the_folder() -> None:
    names = [
        "../up",
        "a/b",
        "a:b",
        "..",
        "",
        ".hidden",
        "CON",
        "nul.txt",
        "Dog",
        "dog",
        "x" * 400,
        "/abs",
        "a\nb",
        "\udcff",
    ]
    folders = folder_names(names)
    assert len({name.casefold() for name in folders}) == len(names)
    for name in folders:
        assert name not in ("", ".", "..")
        assert not set(name) & set('/\\:\n\0<>"|?*')
        assert len(name.encode()) < 200
        assert not name.startswith(".")
    assert folders[1:4] == ["a_b", "a_b-2", "_"]
    assert folders[8:10] == ["Dog", "dog-2"]


def test_a_document_is_what_json_writes_itself(tmp_path: Path) -> None:
    entries = [{"a": 1, "b": [1, {"c": "\u00fc\n\u2028"}], "e": {}}, {"f": []}, 3]
    for given in ([], entries[:1], entries):
        document = JsonDocument(tmp_path / "a.json", "images", {"version": 1, "names": ("x", "y"), "none": ()})
        for entry in given:
            document.add(entry)
        document.finish({"unreadable": ["z"], "nothing": []})
        whole = {"version": 1, "names": ["x", "y"], "none": [], "images": given, "unreadable": ["z"], "nothing": []}
        expected = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == expected
        listed = JsonDocument(tmp_path / "b.json")
        for entry in given:
            listed.add(entry)
        listed.finish()
        assert (tmp_path / "b.json").read_text(encoding="utf-8") == json.dumps(
            given, indent=1, ensure_ascii=False
        ) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    video = Video("clips/c.mp4", 25.0)
    with PredictionWriter(tmp_path / "out", NAMES, Save.only(["jsonl"])) as writer:
        for number in range(3):
            writer.add(FrameResult(frame(number, video), found_in("", number)))
            lines = (tmp_path / "out" / "detections.jsonl").read_text(encoding="utf-8").splitlines()
            last = json.loads(lines[-1])
            assert len(lines) == number + 1
            assert (last["source"], last["frame"], last["seconds"]) == ("clips/c.mp4", number, number / 25)
            assert len(last["detections"]) == 3
        writer.add_unreadable(InputError("d.mp4: cut off"))
        line = (tmp_path / "out" / "detections.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        assert json.loads(line) == {"unreadable": "d.mp4: cut off"}


def test_nothing_is_kept_of_frames_that_went_through(tmp_path: Path) -> None:
    video = Video("c.mp4", 25.0)
    with PredictionWriter(tmp_path / "out", NAMES, Save.only(["jsonl", "json", "coco", "txt"])) as writer:
        for number in range(50):
            writer.add(FrameResult(frame(number, video), found_in("", number)))
        assert len(writer._taken) == 1
        assert writer._unreadable == []
    labels = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert labels == [f"c-frame-{number:06d}.txt" for number in range(50)]
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 50


def test_an_annotated_video_has_the_frames_as_drawn_at_the_speed_of_the_source(tmp_path: Path) -> None:
    video, results = Video("clips/c.mov", 12.5), []
    for number in range(20):
        results.append((square_at(number), found_in("", number, 1), frame(number, video)))
    results.append((square_at(3), found_in("photo.jpg", 3), None))
    write(tmp_path / "out", Save.usual(is_streamed=True), results)
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")) == [
        "detections.jsonl",
        "images/photo.jpg",
        "labels/photo.txt",
        "videos/c.mp4",
    ]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "videos" / "c.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    frames = all_frames(tmp_path / "out" / "videos" / "c.mp4")
    assert len(frames) == 20
    for seen, (image, detections, _) in zip(frames, results, strict=False):
        drawn = draw(image, detections)
        assert seen.shape == drawn.shape
        near = np.abs(seen.astype(int) - drawn).mean()
        assert near < 12  # of the codec
        assert near < np.abs(seen.astype(int) - image).mean()


def test_two_videos_of_one_name_become_two(tmp_path: Path) -> None:
    results = []
    for number, name in enumerate(["a/c.mp4", "a/c.mp4", "b/C.avi"]):
        results.append((square_at(number), found_in("", number), frame(number, Video(name, 25.0))))
    write(tmp_path / "out", Save.only(["video", "images"]), results)
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == ["C-2.mp4", "c.mp4"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [
        "C-2-frame-000002.jpg",
        "c-frame-000000.jpg",
        "c-frame-000001.jpg",
    ]


def test_a_line_that_does_not_fit_leaves_no_half_of_one(tmp_path: Path) -> None:
    import resource
    import signal

    lines = GrowingFile(tmp_path / "a.jsonl")
    lines.append(json.dumps({"a": "x" * 100}) + "\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
        with pytest.raises(StorageError, match=r"a\.jsonl: cannot be written: File too large"):
            lines.append(json.dumps({"b": "y" * 100}) + "\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    lines.append(json.dumps({"c": 1}) + "\n")
    lines.close()
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        {"a": "x" * 100},
        {"c": 1},
    ]


def test_one_file_that_fails_leaves_the_others_whole(tmp_path: Path, monkeypatch) -> None:
    writer = PredictionWriter(tmp_path / "out", NAMES, Save.only(["json", "jsonl", "coco", "video"]))
    writer.add(FrameResult(frame(0, Video("c.mp4", 25.0)), found_in("", 0)))
    monkeypatch.setattr(writer._videos, "finish", lambda: (_ for _ in ()).throw(StorageError("disk full")))
    with pytest.raises(StorageError, match="disk full"):
        writer.finish()
    for name in ("detections.json", "coco-results.json", "coco-images.json"):
        json.loads((tmp_path / "out" / name).read_text())


def test_what_is_usual_and_what_is_asked_for() -> None:
    assert Save.usual() == Save(frozenset({"images", "txt", "json"}), frozenset({"video", "json"}))
    assert Save.usual(True, ["video", "txt"]) == Save(frozenset({"images", "jsonl"}), frozenset({"jsonl"}))
    assert Save.only(["images", "video"]) == Save(frozenset({"images"}), frozenset({"images", "video"}))
