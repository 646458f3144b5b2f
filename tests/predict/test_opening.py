from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from anchorite.data.prefetch import prefetch
from anchorite.errors import InputError
from anchorite.predict import SourceConfig, open_sources
from anchorite.predict.frames import FLUSH, Frame
from anchorite.predict.sources import listed_names, opened
from tests.predict.videos import make_video


@pytest.mark.parametrize(
    ("words", "config", "said"),
    [
        (["camera:0", "a.png"], SourceConfig(), "camera:0: a camera, a stream or a list on stdin is read alone"),
        (["a.png", "-"], SourceConfig(), "-: a camera, a stream or a list on stdin is read alone"),
        (["a.png", "rtsp://host/x"], SourceConfig(), "read alone"),
        (["a.png"], SourceConfig(idle_s=3.0), "--idle-seconds: .* give --watch"),
        (["a.png"], SourceConfig(null_separated=True), "--null: .* give - as the source"),
        (["camera:0"], SourceConfig(watch=True), "--watch camera:0: no folder"),
        (["-"], SourceConfig(watch=True), "--watch -: no folder"),
        (["http://host/a.mp4"], SourceConfig(), "nothing is ever downloaded"),
        (["https://host/a.m3u8"], SourceConfig(), "nothing is ever downloaded"),
        (["file:///a.mp4"], SourceConfig(), "without file:"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch, words, config, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=said):
        open_sources(words, config)


def test_what_is_known_of_sources_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    video = make_video(tmp_path / "b.avi")
    images = open_sources([str(tmp_path)])
    assert (images.paths, images.is_streamed, images.is_endless) == ([tmp_path / "a.png"], False, False)
    both = open_sources([str(tmp_path / "*")])
    assert (both.paths, both.is_streamed, both.is_endless) == ([tmp_path / "a.png", video], True, False)
    watched = open_sources([str(tmp_path)], SourceConfig(watch=True))
    assert (watched.paths, watched.is_streamed, watched.is_endless) == ([], True, True)


def test_a_folder_of_videos_alone_says_how_to_name_them(tmp_path: Path) -> None:
    make_video(tmp_path / "b.avi")
    with pytest.raises(InputError, match=r"no image in this folder .* by a quoted pattern, such as '.*\*\.avi'"):
        open_sources([str(tmp_path)])


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def say(self, data: bytes) -> None:
        os.write(self.write_end, data)


def test_a_list_is_used_while_it_is_still_being_written(tmp_path: Path) -> None:
    for name in ("a.png", "b [1].png"):
        (tmp_path / name).touch()
    pipe, stop = Pipe(), threading.Event()
    items = prefetch(lambda stop: opened(listed_names(pipe.read_end, b"\n", stop)), 4, stop, FLUSH)
    assert next(items) is FLUSH
    pipe.say(f"{tmp_path}/a.png\n{tmp_path}/b [1]".encode())
    assert next(items) == tmp_path / "a.png"
    assert next(items) is FLUSH
    pipe.say(f".png\r\n\n{tmp_path}/missing.png\n{tmp_path}/a.png".encode())  # the last line needs no end
    os.close(pipe.write_end)
    rest = [item for item in items if item is not FLUSH]
    assert rest[0] == tmp_path / "b [1].png"
    assert isinstance(rest[1], InputError)
    assert "missing.png: no such file" in str(rest[1])
    assert rest[2:] == [tmp_path / "a.png"]


def test_a_list_of_names_with_line_ends_in_them(tmp_path: Path) -> None:
    names = [tmp_path / "a\nb.png", tmp_path / "c\r.png"]
    for name in names:
        name.touch()
    pipe = Pipe()
    pipe.say(b"\0".join(os.fsencode(name) for name in names) + b"\0")
    os.close(pipe.write_end)
    assert list(opened(listed_names(pipe.read_end, b"\0", threading.Event()))) == names


def test_videos_in_a_list_are_read(tmp_path: Path) -> None:
    pipe = Pipe()
    pipe.say(os.fsencode(make_video(tmp_path / "b.avi", 10)))
    os.close(pipe.write_end)
    frames = list(opened(listed_names(pipe.read_end, b"\n", threading.Event()), every=4))
    assert all(isinstance(frame, Frame) for frame in frames)
    assert [frame.number for frame in frames] == [0, 4, 8]


def test_a_list_that_never_comes_can_be_left() -> None:
    pipe = Pipe()
    items = prefetch(lambda stop: opened(listed_names(pipe.read_end, b"\n", stop)), 4, threading.Event(), FLUSH)
    assert next(items) is FLUSH
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("anchorite")]
