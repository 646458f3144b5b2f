"""Cameras and streams, with a camera that the test holds in its hand: there is none in the machine."""

from __future__ import annotations

import queue
import threading

import cv2
import numpy as np
import pytest

from anchorite.errors import InputError
from anchorite.predict import Predictor, SourceConfig, open_sources
from anchorite.predict.frames import FLUSH, Frame, is_live
from tests.predict.fakes import SquareFinder
from tests.predict.test_videos import INFO, P5
from tests.predict.videos import square_at


class Camera:
    """What cv2.VideoCapture gives; `show` lets it see the next picture, `unplug` lets it fail."""

    def __init__(self) -> None:
        self.pictures: queue.Queue[int | None] = queue.Queue()
        self.seen = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.opened_with: tuple[object, ...] = ()
        self.is_open = True
        self._picture: int | None = None

    def __call__(self, *words: object) -> Camera:
        self.opened_with = words
        return self

    def show(self, *numbers: int) -> None:
        """Returns when the last of them is taken over: the reader has come back for another one."""
        for number in numbers:
            self.asked.acquire(timeout=5)
            self.pictures.put(number)
        self.asked.acquire(timeout=5)
        self.asked.release()

    def unplug(self) -> None:
        self.pictures.put(None)

    def isOpened(self) -> bool:
        return self.is_open

    def get(self, what: int) -> float:
        return 20.0 if what == cv2.CAP_PROP_FPS else 0.0

    def grab(self) -> bool:
        self.asked.release()
        self._picture = self.pictures.get(timeout=10)
        return self._picture is not None

    def retrieve(self) -> tuple[bool, np.ndarray]:
        assert self._picture is not None
        return True, square_at(self._picture)[..., ::-1]

    def release(self) -> None:
        self.is_open = False


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Camera:
    camera = Camera()
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    return camera


def test_the_newest_frame_counts_and_those_left_out_are_counted(camera: Camera) -> None:
    sources = open_sources(["camera:0"])
    assert camera.opened_with == (0,)
    stop = threading.Event()
    items = sources.items(stop, 16)
    camera_shows = threading.Thread(target=camera.show, args=(0,))
    camera_shows.start()
    first = next(items)
    assert isinstance(first, Frame)
    assert (first.number, first.name) == (0, "camera:0 frame 0")
    assert next(items) is FLUSH  # so that it is answered at once, without waiting for a batch
    camera_shows.join()
    camera.show(1, 2, 3, 4)
    newest = next(items)
    assert (newest.number, newest.seconds) == (4, 0.2)
    assert np.array_equal(newest.image, square_at(4))
    stop.set()
    camera.unplug()
    assert next(items) is FLUSH
    assert list(items) == []
    assert sources.num_dropped == 3
    assert not camera.is_open
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("anchorite")]


def test_each_frame_is_answered_before_the_next_one_comes(camera: Camera) -> None:
    predictor = Predictor(SquareFinder(P5), INFO, device="cpu")
    stop = threading.Event()
    stream = predictor.stream(open_sources(["0"]).items(stop, 16), batch_size=16)
    for number in range(4):
        threading.Thread(target=camera.show, args=(number,)).start()
        _, found = next(stream)
        assert found.source == f"camera:0 frame {number}"
        assert found.class_ids.tolist() == [number % 3]
    stop.set()
    camera.unplug()
    assert list(stream) == []


def test_each_so_many_th_picture_of_a_camera(camera: Camera) -> None:
    items = open_sources(["camera:2"], SourceConfig(every=3)).items(threading.Event(), 16)
    threading.Thread(target=camera.show, args=(0,)).start()
    assert next(items).number == 0
    assert next(items) is FLUSH
    camera.show(1, 2, 3, 4, 5)
    assert next(items).number == 3
    camera.unplug()
    items.close()


def test_a_camera_that_is_unplugged_is_told(camera: Camera) -> None:
    items = open_sources(["camera:0"]).items(threading.Event(), 16)
    threading.Thread(target=camera.show, args=(0,)).start()
    next(items)
    next(items)
    camera.unplug()
    with pytest.raises(InputError, match="camera:0: gave no more pictures after 1"):
        next(items)


def test_a_camera_or_stream_that_is_not_there_is_told_without_its_password(capfd) -> None:
    with pytest.raises(InputError, match="camera:7: there is no such camera"):
        open_sources(["camera:7"])
    with pytest.raises(InputError, match="stream does not answer") as error:
        open_sources(["rtsp://me:secret@127.0.0.1:9/x"])
    assert str(error.value).startswith("rtsp://127.0.0.1:9/x: ")
    assert capfd.readouterr().err == ""


def test_what_is_live(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3").touch()
    for word in ("0", "12", "camera:0", "rtsp://host/a", "RTSP://host/a", "udp://@:1234", "rtmp://host/live"):
        assert is_live(word)
    for word in (
        "3",
        "1234",
        "-1",
        "camera:",
        "camera:a",
        "http://host/a.mp4",
        "https://host/a.m3u8",
        "a.mp4",
        "cam:0",
    ):
        assert not is_live(word)
