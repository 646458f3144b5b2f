from __future__ import annotations

import os
import struct
import threading
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model import WeightsInfo
from anchorite.predict import Predictor
from anchorite.predict import frames as videos
from anchorite.predict.frames import Frame, Video, video_frames
from anchorite.predict.sources import opened
from tests.predict.fakes import SquareFinder
from tests.predict.videos import all_frames, make_video, square_at

P5 = AnchorSet.coco_p5()
INFO = WeightsInfo(size="n", class_names=("red", "green", "blue"), anchors=P5, image_size=128)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(SquareFinder(P5), INFO, device="cpu")


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "mp4v"), ("a.webm", "VP80")]
)
def test_every_frame_comes_once_in_order_with_number_and_time(tmp_path: Path, name: str, codec: str) -> None:
    path = make_video(tmp_path / name, 30, codec)
    frames = list(video_frames(path))
    assert [frame.number for frame in frames] == list(range(30))
    assert [round(frame.seconds, 2) for frame in frames] == [round(number / 25, 2) for number in range(30)]
    for frame, expected in zip(frames, all_frames(path), strict=True):
        assert np.array_equal(frame.image, expected)
        # In RGB: the square's own channel is the bright one.
        assert frame.image.max(axis=(0, 1)).argmax() == frame.number % 3
    assert frames[7].video is not None
    assert (frames[7].video.name, frames[7].video.fps, frames[7].name) == (str(path), 25.0, f"{path} frame 7")


def test_each_so_many_th_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 30)
    expected = all_frames(path)
    frames = list(video_frames(path, every=7))
    assert [frame.number for frame in frames] == [0, 7, 14, 21, 28]
    assert all(np.array_equal(frame.image, expected[frame.number]) for frame in frames)


@pytest.mark.parametrize(("batch_size", "off_by"), [(1, 0.0), (6, 1e-5)])  # sums of larger batches round otherwise
def test_detections_of_a_frame_are_those_of_the_very_frame_as_a_file(
    predictor: Predictor, tmp_path: Path, batch_size: int, off_by: float
) -> None:
    path = make_video(tmp_path / "a.avi", 40)
    found = list(predictor.stream(path, batch_size=batch_size))
    assert len(found) == 40
    for number, (image, detections) in enumerate(found):
        assert detections.source == f"{path} frame {number}"
        cv2.imwrite(str(tmp_path / "frame.png"), image[..., ::-1])
        (expected,) = predictor.predict(tmp_path / "frame.png")
        torch.testing.assert_close(detections.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=off_by)
        torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=off_by)
        assert detections.class_ids.tolist() == expected.class_ids.tolist() == [number % 3]
        left, top = 8 * (number % 10), 8 * (number // 10)
        box = np.array([left, top, left + 40, top + 40])
        assert np.abs(detections.boxes_xyxy[0].numpy() - box).max() <= 1.01  # JPEG blurs the edge


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.webm", "VP80")])
def test_of_a_video_that_is_cut_off_the_frames_before_are_used_and_the_place_is_told(
    predictor: Predictor, tmp_path: Path, name: str, codec: str
) -> None:
    path = make_video(tmp_path / name, 30, codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    whole, after = len(all_frames(path)), make_video(tmp_path / "b.avi", 3)
    assert 3 < whole < 27
    errors: list[Exception] = []
    found = list(predictor.stream([path, after], on_unreadable=errors.append))
    assert len(found) == whole + 3
    (error,) = errors
    assert str(error).startswith(f"{path}: breaks off at frame {whole} (")
    with pytest.raises(InputError, match="breaks off"):
        list(predictor.stream([path]))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_damage_in_the_midst_is_told(tmp_path: Path, seed: int) -> None:
    path = make_video(tmp_path / "a.avi", 30)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(seed).bytes(3000)
    path.write_bytes(data)
    *frames, error = opened([path])
    assert 5 < len(frames) < 28
    lost = 30 - len(frames)
    told = (f"breaks off at frame {len(frames)} (", f"{lost} of 30 frames cannot be read")
    assert isinstance(error, InputError)
    assert any(words in str(error) for words in told)


@pytest.mark.parametrize(
    ("announced", "num_read", "seconds", "is_whole"),
    [
        (100, 100, 3.96, True),
        (100, 99, 3.92, True),  # containers are off by one
        (100, 60, 3.96, True),  # of uneven times: as many as the mean rate makes of its length
        (100, 100, 2.0, True),  # all are there, whatever their times
        (100, 60, 2.36, False),
        (0, 60, 2.36, True),  # says nothing of its length
        (100, 0, 0.0, False),
    ],
)
def test_what_counts_as_the_end(announced: int, num_read: int, seconds: float, is_whole: bool) -> None:
    class Capture:
        def get(self, what: int) -> float:
            return {cv2.CAP_PROP_FRAME_COUNT: float(announced)}[what]

    with nullcontext() if is_whole else pytest.raises(InputError, match=r"a\.mkv: "):
        videos._require_end(Capture(), Video("a.mkv", 25.0), num_read, seconds)


def test_a_frame_that_cannot_be_decoded_ends_its_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = iter([*all_frames(make_video(tmp_path / "a.avi", 30))[:5], None])
    monkeypatch.setattr(videos, "retrieve_rgb", lambda capture: next(images))
    *frames, error = opened([tmp_path / "a.avi"])
    assert len(frames) == 5
    assert "breaks off at frame 5 (0.2 of 1.2 s)" in str(error)


def test_a_whole_video_of_uneven_times_is_not_called_broken(tmp_path: Path) -> None:
    # 29.97 frames a second do not divide a second; neither do 7.3.
    for fps in (29.97, 7.3, 120.0):
        for name, codec in (("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.webm", "VP80")):
            assert len(list(video_frames(make_video(tmp_path / name, 31, codec, fps)))) == 31


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the file is empty"), (b"no video" * 100, "no video that can be read"), (None, "no such video file")],
)
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes | None, said: str, capfd) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        list(video_frames(path))
    assert str(path) in str(error.value)
    assert capfd.readouterr().err == ""  # OpenCV's own words about it are kept back


def test_an_mp4_without_its_index_is_told(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 20, "mp4v")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cut off"):
        list(video_frames(path))


def test_a_name_that_crashes_opencv_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.avi"))
    path.write_bytes(make_video(tmp_path / "a.avi").read_bytes())
    with pytest.raises(InputError, match="UTF-8"):
        list(video_frames(path))


@pytest.mark.parametrize("name", ["clip%03d.mp4", "concat:a.mp4", "http:x.mp4", "[1] \u00fc 'q' *.mp4"])
def test_a_name_is_never_taken_for_a_pattern_or_an_address(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "plain.mp4", 3, "mp4v").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(video_frames(Path(name)))) == 3


def test_a_turned_video_is_shown_as_it_was_meant(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 3, "mp4v")
    upright = all_frames(path)
    data = bytearray(path.read_bytes())
    # In the track header, version 0: 40 bytes after its type lies the matrix, nine numbers of 16.16 and 2.30 bits.
    matrix = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 96 << 16, 0, 1 << 30)
    path.write_bytes(data)
    turned = [frame.image for frame in video_frames(path)]
    assert turned[0].shape == (128, 96, 3)
    for frame, before in zip(turned, upright, strict=True):
        assert np.array_equal(frame, np.rot90(before, -1))


def test_no_more_is_decoded_than_the_depth_ahead_and_the_thread_ends(tmp_path: Path, monkeypatch) -> None:
    decoded = 0

    def counted(capture):
        nonlocal decoded
        decoded += 1
        return retrieve(capture)

    retrieve = videos.retrieve_rgb
    monkeypatch.setattr(videos, "retrieve_rgb", counted)
    before = threading.active_count()
    frames = video_frames(make_video(tmp_path / "a.avi", 40), depth=5)
    next(frames)
    for _ in range(100):
        if decoded >= 7:  # one in use, five that wait, one that waits to wait
            break
        threading.Event().wait(0.02)
    threading.Event().wait(0.1)
    assert decoded == 7
    frames.close()
    assert threading.active_count() == before


def test_results_hold_their_frames(predictor: Predictor, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 20)
    plain = tmp_path / "b.png"
    cv2.imwrite(str(plain), square_at(0)[..., ::-1])
    entries = []
    for result in predictor.stream(opened([path, plain], every=3), batch_size=3):
        image, detections = result
        assert result.frame.image is image
        assert result.detections is detections
        entries.append(result.to_dict())
    assert [entry.get("frame") for entry in entries] == [0, 3, 6, 9, 12, 15, 18, None]
    assert {entry["source"] for entry in entries} == {str(path), str(plain)}
    assert entries[2]["seconds"] == 0.24


def test_a_frame_stands_for_its_image(predictor: Predictor) -> None:
    frame = Frame(square_at(4), "seen")
    (found,) = predictor.predict(frame)
    assert found.source == "seen"
    assert found.class_ids.tolist() == [1]
