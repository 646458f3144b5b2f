"""Mistakes on the command line: one message that names what is wrong and what to do, and the exit code."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.cli.messages import RESUME_HINT, Terminated
from anchorite.errors import InputError
from tests.cli.commands import contents, data_folder, finished_run, weights


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and stderr of a command that must fail without a word on stdout."""
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("anchorite: ")
    assert "Traceback" not in captured.err
    return code, captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian data", ['"trian"', '"train"', "anchorite --help"]),
        ("help", ["help: no such command; write anchorite --help"]),
        ("version", ["write anchorite --version"]),
        ("--hepl", ["--hepl", "did you mean --help?"]),
        ("--epochs 3", ["--epochs", "the command comes first"]),
        ("train", ["data is missing", "anchorite train data", "--resume run"]),
        ("train data --epoch 3", ["--epoch.", "--epochs?", "anchorite train --help"]),
        ("train data --epochs", ["--epochs", "requires an argument"]),
        ("train data --epochs three", ["--epochs", "'three' is no whole number"]),
        ("train data --model q", ["--model", '"q"', '"n6"']),
        ("train data more", ["'more' is one word too many", "quote"]),
        ("train data --format voc2", ["--format", '"voc2"', '"voc"']),
        ("validate", ["weights is missing", "anchorite validate weights data"]),
        ("validate w.safetensors", ["data is missing"]),
        ("validate w.safetensors data --batch 0", ["--batch", '"0"', ">= 1"]),
        ("validate w.safetensors data --image-size 0", ["--image-size", ">= 1"]),
        ("predict", ["weights is missing", "anchorite predict weights source"]),
        ("predict w.safetensors", ["source is missing"]),
        ("predict w.safetensors x.jpg --without boxes", ["--without", '"boxes"', '"images"', '"txt"']),
        ("predict w.safetensors x.jpg --confidence 2", ["--confidence 2.0", "less than or equal to 1"]),
        ("predict w.safetensors x.jpg --confidence nan", ["--confidence nan"]),
        ("predict w.safetensors x.jpg --max-detections 0", ["--max-detections 0", "greater than or equal to 1"]),
        ("predict w.safetensors nowhere.jpg", ["nowhere.jpg: no such file"]),
        ("report", ["run is missing", "anchorite report run"]),
        ("report nowhere", ["nowhere", "not a run folder"]),
        ("recipes smal-data", ["smal-data", "did you mean small-data?"]),
    ],
)
def test_wrong_words_are_named_with_a_remedy(
    words: str, said: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = refused(capsys, *words.split())
    assert code == 2
    for part in said:
        assert part in message.lower()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs 0", ["--epochs: must be greater than or equal to 1 (got 0)"]),
        ("--batch 0", ["--batch: must be greater than or equal to 1 (got 0)"]),
        ("--workers -2", ["--workers: must be greater than or equal to 0 (got -2)"]),
        ("--image-size 100", ["--image-size: must be a multiple of 32", "take 96 or 128 (got 100)"]),
        ("--image-size 96 --model n6", ["--image-size", "multiple of 64", "model n6", "take 64 or 128"]),
        ("--image-size 20", ["--image-size", "greater than or equal to 32"]),
        ("--device cuda:77", ["cuda:77"]),
        ("--device gpu", ["device gpu", "auto, cpu, cuda or cuda:N"]),
        ("--device cpu --precision fp16", ["precision fp16", "bf16 or fp32"]),
        ("--recipe smal-data", ["--recipe smal-data", "did you mean small-data?"]),
        ("--set a.b=3", ["--set a.b: no such recipe field"]),
        ("--seed 9999999999999999999999", ["--seed: must be less than or equal to"]),
        ("--set epoch=3", ["--set epoch", "did you mean epochs?"]),
        ("--set epochs", ["--set 'epochs'", "name=value"]),
        ("--set loss.box_gain=abc", ["--set loss.box_gain", "'abc'"]),
        ("--set augment=3", ["--set augment", "group of settings"]),
        ("--set patience=-1", ["--set patience"]),
        ("--epochs 3 --set epochs=4", ["--epochs and --set epochs: two values"]),
    ],
)
def test_a_wrong_recipe_is_refused_before_the_data_is_looked_at(
    words: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capsys, "train", "nowhere", *words.split())
    assert code == 2
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\nimage_sise: 64\n", [":2: image_sise", "did you mean image_size?"]),
        ("epochs: many\n", [":1: epochs", "'many'"]),
        ("epochs: [1\n", [":2: not valid YAML"]),
        ("model: n\nimage_size: 100\n", [":2: image_size", "take 96 or 128"]),
    ],
)
def test_a_wrong_recipe_file_is_named_with_its_line(
    text: str, said: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    code, message = refused(capsys, "train", "nowhere", "--recipe", path)
    assert code == 2
    for part in said:
        assert str(path) + part in message if part.startswith(":") else part in message


def test_data_that_is_none_is_refused_with_what_was_looked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    for name, said in (
        ("photos.zip", "unpack it and name the folder"),
        ("nowhere", "does not exist"),
        ("empty", "an empty folder"),
        ("note.txt", "a dataset is a folder"),
    ):
        code, message = refused(capsys, "train", tmp_path / name)
        assert (code, said in message) == (2, True), message
    code, message = refused(capsys, "train", data_folder() / "images")
    assert code == 2
    assert f"{data_folder() / 'data.yaml'}: name its folder" in message
    code, message = refused(capsys, "train", data_folder().parent)
    assert f"{data_folder() / 'data.yaml'}: name its folder" in message
    code, message = refused(capsys, "train", data_folder(), "--format", "coco")
    assert code == 2
    assert "coco only" in message


def test_a_taken_folder_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for command in (["train", "nowhere"], ["validate", "w", "nowhere"], ["predict", "w", "nowhere.jpg"], ["demo"]):
        code, message = refused(capsys, *command, "--out", tmp_path)
        assert code == 2
        assert f"--out {tmp_path}: exists already" in message
        code, message = refused(capsys, *command, "--out", tmp_path / "mine.txt" / "below")
        assert code == 4
        assert f"{tmp_path / 'mine.txt'} is a file" in message
    assert contents(tmp_path) == {tmp_path / "mine.txt": b"mine"}


def test_weights_that_are_none_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "junk.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"junk" * 4)
    (tmp_path / "folder").mkdir()
    for name, expected, said in (
        ("w.pt", 5, "pickle"),
        ("pickle.safetensors", 5, "pickle"),
        ("junk.safetensors", 2, "no safetensors file"),
        ("nowhere.safetensors", 2, "No such file"),
        ("folder", 2, "give the path of a .safetensors file"),
    ):
        for command in (["validate", tmp_path / name, data_folder()], ["predict", tmp_path / name, data_folder()]):
            words = [*command, "--recursive"] if command[0] == "predict" else command
            code, message = refused(capsys, *words, "--out", tmp_path / "out")
            assert code == expected
            assert str(tmp_path / name) in message
            assert said in message
    assert not (tmp_path / "out").exists()


def test_debug_raises_instead() -> None:
    with pytest.raises(InputError):
        run(["train", "nowhere"], debug=True)


@pytest.mark.parametrize(
    ("error", "code", "said"), [(KeyboardInterrupt(), 130, "interrupted"), (Terminated(), 143, "terminated")]
)
def test_interrupts_have_codes_of_their_own(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise error

    monkeypatch.setattr("anchorite.recipe_names.built_in_recipes", interrupted)
    assert refused(capsys, "recipes") == (code, f"anchorite: {said}\n")
    error.add_note("Traceback (of a worker)")
    error.add_note(f"{RESUME_HINT} try again")
    assert refused(capsys, "recipes") == (code, f"anchorite: {said}\n{RESUME_HINT} try again\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("anchorite.recipe_names.built_in_recipes", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run(["recipes"])


def test_memory_that_runs_out_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchs = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes")
    for error in (MemoryError(), torchs, OSError(errno.ENOMEM, "Cannot allocate memory")):

        def starve(error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("anchorite.recipe_names.built_in_recipes", starve)
        code, message = refused(capsys, "recipes")
        assert code == 4
        assert "smaller --batch or --image-size" in message


@pytest.mark.slow
def test_a_runs_folder_and_its_checkpoints_are_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refused(capsys, "validate", finished_run(), data_folder())
    assert code == 2
    assert f"give {weights()}" in message
    checkpoint = finished_run() / "checkpoints" / "epoch-0002.safetensors"
    code, message = refused(capsys, "predict", checkpoint, data_folder(), "--recursive")
    assert code == 2
    assert "best.safetensors" in message
    code, message = refused(capsys, "validate", data_folder(), weights())
    assert code == 2
    assert "the weights come first" in message
