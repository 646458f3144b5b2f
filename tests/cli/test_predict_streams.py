"""`anchorite predict` over videos, watched folders and lists, in real processes."""

from __future__ import annotations

import json
import resource
import select
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest

from anchorite.cli import run
from tests.cli.commands import contents, data_folder, started, weights
from tests.predict.videos import all_frames, make_video
from tests.processes import ForkedProcess

pytestmark = pytest.mark.slow

LOW = ("--confidence", "0.0001", "--device", "cpu")


def scenes() -> list[Path]:
    return sorted((data_folder() / "images" / "train").iterdir())


def next_line(process: ForkedProcess, seconds: float = 60) -> str:
    """What the process prints next."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "nothing was printed"
    return process.stdout.readline()


def json_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ended(process: ForkedProcess, seconds: float = 60) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def test_a_video_becomes_a_video_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make_video(tmp_path / "clip.avi", 25), tmp_path / "out"
    before = contents(tmp_path)
    assert run(["predict", weights(), str(path), "--out", str(out), "--batch", "4", *LOW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 26
    assert lines[3].startswith(f"{path} frame 3: ")
    assert lines[25].startswith("25 frames, ")
    assert sorted(str(file.relative_to(out)) for file in contents(out)) == ["detections.jsonl", "videos/clip.mp4"]
    rows = json_rows(out / "detections.jsonl")
    assert [row["frame"] for row in rows] == list(range(25))
    assert {row["source"] for row in rows} == {str(path)}
    assert len(all_frames(out / "videos" / "clip.mp4")) == 25
    # The same as of the frames as files.
    for number, frame in enumerate(all_frames(path)):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), frame[..., ::-1])
    words = ["predict", weights(), str(tmp_path / "*.png"), "--out", str(tmp_path / "images"), "--save", "json"]
    assert run([*words, "--batch", "4", *LOW]) == 0
    alone = json.loads((tmp_path / "images" / "detections.json").read_text())["images"]
    assert sum(len(row["detections"]) for row in rows) > 25
    assert [row["detections"] for row in rows] == [entry["detections"] for entry in alone]
    assert before.items() <= contents(tmp_path).items()


def test_kinds_are_chosen_and_each_so_many_th_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = make_video(tmp_path / "clip.avi", 25), tmp_path / "out"
    kinds = [word for kind in ("images", "txt", "crops", "coco") for word in ("--save", kind)]
    words = ["predict", weights(), str(path), "--out", str(out), "--every", "10", "--json-lines", *kinds, *LOW]
    assert run([*words, "--max-detections", "2"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event.get("frame") for event in events] == [0, 10, 20, None]
    assert (events[3]["images"], events[3]["frames"], events[3]["dropped"]) == (0, 3, 0)
    names = [f"clip-frame-{number:06d}" for number in (0, 10, 20)]
    assert sorted(path.stem for path in (out / "images").iterdir()) == names
    assert sorted(path.stem for path in (out / "labels").iterdir()) == names
    assert len(list((out / "crops").rglob("*.png"))) == sum(len(event["detections"]) for event in events[:3])
    assert len(json.loads((out / "coco-images.json").read_text())["images"]) == 3
    assert not (out / "detections.json").exists()
    assert not (out / "videos").exists()


def test_what_is_broken_is_passed_over_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut, out = make_video(tmp_path / "cut.avi", 30), tmp_path / "out"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "empty.mp4").touch()
    whole = make_video(tmp_path / "whole.avi", 5)
    words = [str(cut), str(tmp_path / "empty.mp4"), str(whole), "--out", str(out), "--quiet"]
    assert run(["predict", weights(), *words, *LOW]) == 2
    err = capsys.readouterr().err.splitlines()
    rows = json_rows(out / "detections.jsonl")
    num_before = sum(row.get("source") == str(cut) for row in rows)
    assert err[0].startswith(f"anchorite: {cut}: breaks off at frame {num_before} (")
    assert err[1].startswith(f"anchorite: {tmp_path / 'empty.mp4'}: the file is empty")
    assert err[2].startswith("anchorite: predict: 2 of the 3 images and videos could not be read")
    assert sum("unreadable" in row for row in rows) == 2
    assert {path.name: len(all_frames(path)) for path in (out / "videos").iterdir()} == {
        "cut.mp4": num_before,
        "whole.mp4": 5,
    }


def test_a_watched_folder_until_it_is_interrupted(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    sources = scenes()
    (folder / "before.jpg").write_bytes(sources[0].read_bytes())
    process = started("predict", weights(), str(folder), "--watch", "--out", str(out), *LOW)
    try:
        assert next_line(process).startswith(f"{folder / 'before.jpg'}: ")
        for number, source in enumerate(sources[1:4]):
            data, path = source.read_bytes(), folder / f"{number}.jpg"
            path.write_bytes(data[: len(data) // 2])
            time.sleep(1.0)  # longer than a file has to be still
            with path.open("ab") as file:
                file.write(data[len(data) // 2 :])
            # There for readers while the process goes on, each image once.
            assert next_line(process).startswith(f"{path}: ")
            time.sleep(0.2)
            rows = json_rows(out / "detections.jsonl")
            assert [Path(row["source"]).name for row in rows] == [
                "before.jpg",
                *(f"{n}.jpg" for n in range(number + 1)),
            ]
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        code, printed, err = ended(process)
    finally:
        process.kill()
    assert (code, err) == (0, "")
    assert printed.splitlines()[-1].startswith("4 images, ")
    assert sorted(path.name for path in (out / "images").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "before.jpg"]
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_watch_ends_by_itself_when_nothing_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(scenes()[0].read_bytes()[:200])
    words = [str(tmp_path / "in"), "--watch", "--idle-seconds", "1", "--out", str(tmp_path / "out")]
    assert run(["predict", weights(), *words, *LOW]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("0 images, 0 objects")
    assert "bad.jpg: " in captured.err


def test_a_list_on_stdin_is_followed_while_it_is_written(tmp_path: Path) -> None:
    process = started("predict", weights(), "-", "--out", str(tmp_path / "out"), *LOW, stdin=subprocess.PIPE)
    try:
        for source in scenes()[:3]:
            process.stdin.write(f"{source}\n")
            process.stdin.flush()
            assert next_line(process).startswith(f"{source}: ")
        process.stdin.write(f"{tmp_path / 'missing.jpg'}\n{scenes()[3]}\n")
        process.stdin.close()
        code, printed, err = ended(process)
    finally:
        process.kill()
    assert code == 2
    assert printed.splitlines()[0].startswith(f"{scenes()[3]}: ")
    assert printed.splitlines()[1].startswith("4 images, ")
    assert err.splitlines()[0].startswith(f"anchorite: {tmp_path / 'missing.jpg'}: no such file")
    assert err.splitlines()[1].startswith("anchorite: predict: 1 of the images that came could not be read")
    rows = json_rows(tmp_path / "out" / "detections.jsonl")
    assert len([row for row in rows if "detections" in row]) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_video_is_whole_up_to_there(tmp_path: Path, number: signal.Signals, code: int) -> None:
    path, out = make_video(tmp_path / "clip.avi", 3000), tmp_path / "out"
    process = started("predict", weights(), str(path), "--out", str(out), "--batch", "4", *LOW)
    try:
        for _ in range(20):
            next_line(process)
        process.send_signal(number)
        ended_with, _, err = ended(process)
    finally:
        process.kill()
    assert ended_with == code
    assert len(err.splitlines()) == 1
    rows = json_rows(out / "detections.jsonl")
    assert [row["frame"] for row in rows] == list(range(len(rows)))
    assert 20 <= len(rows) < 2999
    assert len(all_frames(out / "videos" / "clip.mp4")) == len(rows)
    assert sorted(file.name for file in contents(out)) == ["clip.mp4", "detections.jsonl"]


def test_a_disk_that_fails_behind_the_network_ends_the_command(tmp_path: Path) -> None:
    path, out = make_video(tmp_path / "clip.avi", 400), tmp_path / "out"
    process = started(
        *("predict", weights(), str(path), "--out", str(out)), *("--save", "jsonl", "--batch", "4", "--quiet", *LOW)
    )
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    code, _, err = ended(process, 120)
    assert code == 4
    assert err.startswith(f"anchorite: {out / 'detections.jsonl'}: cannot be written: File too large")
    assert len(err.splitlines()) == 1
    rows = json_rows(out / "detections.jsonl")  # no half of a line
    assert rows
    assert [row["frame"] for row in rows] == list(range(len(rows)))


def test_what_cannot_be_done_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = str(make_video(tmp_path / "clip.avi"))
    for words, said in (
        (["camera:9"], "camera:9: there is no such camera"),
        (["camera:0", video], "read alone"),
        (["-", video], "read alone"),
        ([video, "--watch"], "--watch "),
        ([".", "--watch"], "--out predictions: lies in the watched folder ."),
        ([video, "--idle-seconds", "3"], "--watch"),
        ([video, "--null"], "--null"),
        ([video, "--save", "coco", "--without", "txt"], "--save and --without: choose one"),
        ([video, "--save", "gif"], "Choose from"),
        ([video, "--every", "0"], "--every"),
        (["https://host/a.mp4"], "nothing is ever downloaded"),
        ([], "SOURCE is missing"),
    ):
        assert run(["predict", weights(), *words]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clip.avi"]
