from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anchorite.errors import StorageError
from anchorite.predict import Frame
from anchorite.predict import outputs as module
from anchorite.predict.frames import Video
from anchorite.predict.outputs import AnnotatedVideos
from tests.predict.videos import all_frames, square_at


def frame(number: int, video: Video) -> Frame:
    return Frame.of(square_at(number), video, number, number / video.fps)


def test_each_so_many_th_frame_plays_in_its_time(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path)
    for number in range(0, 30, 5):
        videos.add(frame(number, Video("c.mp4", 25.0, every=5)), square_at(number))
    videos.finish()
    capture = cv2.VideoCapture(str(tmp_path / "c.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (5.0, 6.0)


def test_frames_that_a_camera_left_out_keep_their_time(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path)
    for number in (3, 4, 9, 500):
        videos.add(frame(number, Video("camera:0", 10.0, is_live=True)), square_at(number))
    videos.finish()
    # 3, 4, 5..9, and of the long gap one second.
    assert len(all_frames(tmp_path / "camera_0.mp4")) == 2 + 5 + 11


def test_what_goes_on_for_ever_is_cut_into_hours(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path)
    for number in range(75):
        videos.add(frame(number, Video("camera:0", 0.01, is_live=True)), square_at(number))
    videos.finish()
    assert {path.name: len(all_frames(path)) for path in tmp_path.iterdir()} == {
        "camera_0.mp4": 36,
        "camera_0-2.mp4": 36,
        "camera_0-3.mp4": 3,
    }


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64)])
def test_odd_sizes_lose_no_row_and_no_column(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    image[-1], image[:, -1] = 255, 255
    videos = AnnotatedVideos(tmp_path)
    videos.add(Frame.of(image, Video("c", 25.0), 0, 0), image)
    videos.finish()
    (seen,) = all_frames(tmp_path / "c.mp4")
    assert seen.shape == (48, 64, 3)
    assert seen[size[0] - 1, 5].min() > 150
    assert seen[5, size[1] - 1].min() > 150


def test_a_stream_that_changes_its_size_goes_on(tmp_path: Path) -> None:
    videos, video = AnnotatedVideos(tmp_path), Video("rtsp://host/x", 25.0, is_live=True)
    videos.add(frame(0, video), square_at(0))
    videos.add(frame(1, video), square_at(1, 48, 64))
    videos.finish()
    assert [seen.shape for seen in all_frames(tmp_path / "x.mp4")] == [(96, 128, 3)] * 2


def test_a_video_that_was_not_written_whole_is_not_passed_off_as_one(tmp_path: Path, monkeypatch) -> None:
    videos = AnnotatedVideos(tmp_path)
    videos.add(frame(0, Video("c.mp4", 25.0)), square_at(0))
    videos._num_written += 1  # as if a full disk had swallowed one
    with pytest.raises(StorageError, match="could not be written whole"):
        videos.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_nearly_full_is_told_before_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    videos = AnnotatedVideos(tmp_path)
    with pytest.raises(StorageError, match="the disk is full"):
        videos.add(frame(0, Video("c.mp4", 25.0)), square_at(0))
