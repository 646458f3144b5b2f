from __future__ import annotations

import inspect
import os
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from anchorite.errors import InputError
from anchorite.predict import SourceConfig, open_sources
from anchorite.predict import sources as watched
from anchorite.predict.frames import FLUSH, Frame
from anchorite.predict.sources import watched_items
from tests.predict.videos import square_at


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_POLL_S", 0.01)
    monkeypatch.setattr(watched, "_QUIET_S", 0.05)
    monkeypatch.setattr(watched, "_PATIENCE_S", 0.3)


def png(number: int) -> bytes:
    return cv2.imencode(".png", square_at(number)[..., ::-1])[1].tobytes()


class Watching:
    """A watch that is asked step by step."""

    def __init__(self, folder: Path, recursive: bool = False) -> None:
        self.stop = threading.Event()
        self.items = watched_items([folder], recursive, None, self.stop)

    def seen(self, rounds: int = 12) -> list[str]:
        """What comes within some rounds: names of images, messages of errors."""
        items = []
        for _ in range(rounds):
            for item in iter(lambda: next(self.items), None):
                items.append(Path(item.name).name if isinstance(item, Frame) else str(item))
        return items


def test_what_is_there_and_what_comes_each_once(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png(1))
    (tmp_path / "a.png").write_bytes(png(0))
    watching = Watching(tmp_path)
    assert watching.seen() == ["a.png", "b.png"]
    assert watching.seen() == []
    (tmp_path / "c.png").write_bytes(png(2))
    assert watching.seen() == ["c.png"]
    assert watching.seen() == []


def test_an_image_is_not_taken_before_it_is_whole(tmp_path: Path) -> None:
    watching, path = Watching(tmp_path), tmp_path / "a.png"
    data = png(3)
    path.write_bytes(data[:100])
    assert watching.seen() == []  # still, but not to be decoded
    with path.open("ab") as file:
        file.write(data[100:])
    (item,) = watching.seen()
    assert item == "a.png"
    assert watching.seen() == []


def test_the_image_is_handed_out_as_it_was_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    items = open_sources([str(tmp_path)], SourceConfig(watch=True, idle_s=0.2)).items(threading.Event(), 4)
    (frame,) = (item for item in items if item is not FLUSH)
    assert np.array_equal(frame.image, square_at(5))
    assert frame.name == str(tmp_path / "a.png")
    assert frame.video is None


def test_what_stays_broken_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3)[:100])
    watching = Watching(tmp_path)
    (said,) = watching.seen(rounds=60)
    assert said.startswith(f"{tmp_path / 'a.png'}: ")
    assert watching.seen(rounds=60) == []
    (tmp_path / "a.png").write_bytes(png(3))
    assert watching.seen() == ["a.png"]


def test_what_is_broken_at_the_end_is_told_then(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3)[:100])
    sources = open_sources([str(tmp_path)], SourceConfig(watch=True, idle_s=0.15))
    items = [item for item in sources.items(threading.Event(), 4) if item is not FLUSH]
    assert [str(item).split(":")[0] for item in items] == [str(tmp_path / "a.png")]


def test_names_of_unfinished_files_are_passed_by_until_they_are_renamed(tmp_path: Path) -> None:
    watching = Watching(tmp_path)
    for name in (".a.png", "~a.png", "a.part.png", "a.tmp.png", "a.png.part", "a.txt", "b.TEMP.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "folder.png").mkdir()
    assert watching.seen() == []
    (tmp_path / "a.part.png").rename(tmp_path / "a.png")
    assert watching.seen() == ["a.png"]


def test_a_file_that_is_written_anew_is_a_new_image_and_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    watching, path = Watching(tmp_path), tmp_path / "latest.png"
    path.write_bytes(png(1))
    assert watching.seen() == ["latest.png"]
    path.write_bytes(png(2))
    os.utime(path, ns=(1, 1))
    assert watching.seen() == ["latest.png"]
    path.unlink()
    assert watching.seen() == []
    kept = inspect.getgeneratorlocals(watching.items)
    assert kept["done"] == kept["waiting"] == {}  # nothing is kept of what has gone through
    path.write_bytes(png(2))
    assert watching.seen() == ["latest.png"]


def test_subfolders_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    (tmp_path / "deep" / "a.png").write_bytes(png(1))
    (tmp_path / "deep" / ".hidden" / "b.png").write_bytes(png(1))
    assert Watching(tmp_path).seen() == []
    assert Watching(tmp_path, recursive=True).seen() == ["a.png"]


def test_stopping_ends_it_with_what_has_come(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.png").write_bytes(png(number))
    stop = threading.Event()
    items = open_sources([str(tmp_path)], SourceConfig(watch=True)).items(stop, 2)
    names = []
    for item in items:
        if item is not FLUSH:
            names.append(Path(item.name).name)
            stop.set()
    assert names == [f"{number:02}.png" for number in range(len(names))]
    assert 1 <= len(names) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("anchorite")]


def test_a_folder_that_disappears_ends_the_watch(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    items = open_sources([str(folder)], SourceConfig(watch=True)).items(threading.Event(), 2)
    assert next(items) is FLUSH
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="cannot be watched any more"):
        next(items)


def test_only_folders_can_be_watched_and_none_with_the_results_inside(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    for word, said in ((tmp_path / "a.png", "a file"), (tmp_path / "b", "no folder that exists")):
        with pytest.raises(InputError, match=f"--watch {word}: {said}"):
            open_sources([str(word)], SourceConfig(watch=True))
    sources = open_sources([str(tmp_path)], SourceConfig(watch=True))
    for inside in (tmp_path, tmp_path / "out", tmp_path / "x" / ".." / "out"):
        with pytest.raises(InputError, match="fed with its own results"):
            sources.refuse_output(inside)
    sources.refuse_output(tmp_path.parent / "elsewhere")
