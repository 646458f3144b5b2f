"""`anchorite inspect`: what it prints and writes, its exit codes, and that it touches nothing of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.data import open_dataset
from tests.cli.commands import contents, outside_config
from tests.data.format_samples import write_text
from tests.inspect.samples import healthy, write_texture


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run(["inspect", *(str(word) for word in words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A dataset with a box without area, and with 25 bad rows of another image."""
    folder = healthy(tmp_path / "it's data")
    write_text(folder / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0 0\n")
    write_text(folder / "labels/train/bad.txt", "0 0.5 0.5\n" * 25)
    write_texture(folder / "images/train/bad.png", 99)
    return folder


def origins(folder: Path) -> list[str]:
    """Where its errors are."""
    labels = folder / "labels" / "train"
    return [*(f"{labels / 'bad.txt'}:{row}" for row in range(1, 26)), f"{labels / 'a.txt'}:2"]


def test_a_healthy_dataset_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, healthy(tmp_path))
    assert (code, err) == (0, "")
    assert "Nothing found." in out
    for part in ("images", "cat", "dog", "Training boxes at 640 px", "best possible recall"):
        assert part in out


def test_the_help_says_what_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capsys, "--help")
    assert code == 0
    assert "exit 2: labels or images get lost" in " ".join(out.split())


def test_warnings_end_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = healthy(tmp_path)
    write_text(folder / "labels/train/b.txt", "1 0.95 0.5 0.3 0.4\n")
    code, out, err = called(capsys, folder)
    assert (code, err) == (0, "")
    assert "1  clipped-box" in out


def test_errors_end_with_2_and_the_report_has_them_all(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(broken)
    code, out, err = called(capsys, broken, "--out", tmp_path / "new" / "report")
    assert code == 2
    assert f"{broken}: 26 errors (25 label rows or files that cannot be read; 1 box without area)" in err
    assert "--fix FOLDER writes a corrected copy" in err
    assert "and 22 more" in out
    assert contents(broken) == before
    text = (tmp_path / "new/report/report.txt").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "new/report/report.json").read_text(encoding="utf-8"))
    assert [one["origin"] for one in report["findings"]] == origins(broken)
    assert all(f"{origin}: " in text for origin in origins(broken))
    last = report["findings"][-1]
    assert {key: last[key] for key in ("kind", "severity", "training", "split", "class")} == {
        "kind": "empty-box",
        "severity": "error",
        "training": "dropped",
        "split": "train",
        "class": "dog",
    }
    assert last["box_xyxy"] == [64, 48, 64, 48]
    assert last["image"] == str(broken / "images/train/a.png")


def test_a_corrected_copy_is_clean(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(broken)
    code, out, _ = called(capsys, broken, "--fix", tmp_path / "copy")
    assert code == 2
    assert f"corrected copy: {tmp_path / 'copy'}, 26 changes, listed in" in out
    assert contents(broken) == before
    changes = (tmp_path / "copy/changes.txt").read_text(encoding="utf-8")
    assert all(f"{origin}: " in changes for origin in origins(broken))
    assert open_dataset(tmp_path / "copy").adjustments == ()
    code, out, _ = called(capsys, tmp_path / "copy")
    assert (code, "Nothing found." in out) == (0, True)


@pytest.mark.parametrize("flag", ["--out", "--fix"])
def test_a_folder_that_is_taken_or_lies_in_the_data_is_refused_and_nothing_written(
    flag: str, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "taken/file", "")
    (tmp_path / "link").symlink_to(broken)
    before = contents(tmp_path)
    for folder, said in [
        ("taken", "exists already"),
        (f"{broken.name}/new", "lies in the dataset"),
        ("link/new", "lies in the dataset"),
    ]:
        code, out, err = called(capsys, broken, flag, tmp_path / folder)
        assert (code, out) == (2, "")
        assert said in err
        assert flag in err or "lies in" in err
    assert contents(tmp_path) == before
    assert not (broken / "new").exists()


def test_both_folders_in_one_are_refused(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, broken, "--out", tmp_path / "x" / "report", "--fix", tmp_path / "x")
    assert (code, out) == (2, "")
    assert "neither in the other" in err
    assert not (tmp_path / "x").exists()


def test_a_data_yaml_that_is_refused_stays_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = healthy(tmp_path)
    write_text(folder / "data.yaml", "train: images/train\nnames: [no, dog]\n")
    code, out, err = called(capsys, folder)
    assert (code, out) == (2, "")
    assert "data.yaml:2: " in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--image-size 100", "--image-size 100: must be a multiple of 32, the coarsest stride of --model n; take 128"),
        ("--image-size 96 --model n6", "multiple of 64"),
        ("--image-size 0", "--image-size"),
        ("--model q", "--model"),
        ("--skip-bad", "--skip-bad"),
    ],
)
def test_wrong_flags_are_refused(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, healthy(tmp_path), *words.split())
    assert (code, out) == (2, "")
    assert said in err


def test_image_size_and_model_choose_the_anchors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = healthy(tmp_path)
    _, out, _ = called(capsys, folder, "--image-size", 128, "--model", "n6")
    assert "Training boxes at 128 px" in out
    assert "at stride 64" in out


def test_paths_out_of_the_data_need_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = outside_config(tmp_path)
    code, _, err = called(capsys, config)
    assert (code, "--allow-outside" in err) == (2, True)
    code, out, _ = called(capsys, config, "--allow-outside")
    assert "yolo, 5 classes" in out
