"""What a newcomer does wrong first, by command: what is said, the exit code, and that nothing is written.

Wrong spellings of commands, recipes and datasets stand in test_usage.py.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import cv2
import numpy as np
import pytest

from anchorite.cli import build_app, run
from anchorite.cli.folders import refuse_taken
from anchorite.data import open_dataset
from anchorite.errors import InputError, StorageError
from anchorite.model import Detector, WeightsInfo, default_anchors, save_weights
from tests.cli.commands import contents, data_folder
from tests.model.torch_checkpoints import read_in_this_process

NO_PLACE = Path("/proc/anchorite-out")  # where even root can make nothing


@cache
def untrained(other_classes: bool = False) -> str:
    """Path of weights for the classes of `data_folder`, or for others."""
    names = ("zebra", "gnu") if other_classes else open_dataset(data_folder()).class_names
    anchors = default_anchors("n")
    path = Path(mkdtemp()) / ("other.safetensors" if other_classes else "own.safetensors")
    save_weights(path, Detector("n", len(names), anchors), WeightsInfo("n", names, anchors, 64))
    return str(path)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of somebody who has just begun."""
    monkeypatch.chdir(tmp_path)
    read_in_this_process(monkeypatch)
    files = {
        "a.jpg": cv2.imencode(".jpg", np.full((40, 40, 3), 90, np.uint8))[1].tobytes(),
        "film.mp4": b"\0\0\0\x18ftypmp42" + bytes(100),
        "films/one.MOV": b"\0\0\0\x14ftypqt  ",
        "phone/IMG_1.HEIC": b"\0\0\0\x18ftypheic",
        "phone/IMG_2.HEIC": b"\0\0\0\x18ftypheic",
        "text.safetensors": b"Epoch 1: loss 3.1\n" * 40,
        "empty.safetensors": b"",
        "page.safetensors": b"<!DOCTYPE html><title>404</title>" * 20,
        "list.json": json.dumps({"images": list(range(99))}).encode(),
        "pickled.pt": pickle.dumps({"a": 1}),
        "lines.yaml": b"epochs: 3\nlr0: 0.01\nhsv_h: 0.1\nloss:\n  box: 3\n",
        "one/data.yaml": b"train: images/train\nnames: [card]\n",
        "one/images/train/a.jpg": cv2.imencode(".jpg", np.full((40, 40, 3), 90, np.uint8))[1].tobytes(),
        "one/labels/train/a.txt": b"0 0.5 0.5 0.2 0.2\n",
        "runs/none/note.txt": b"no run",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zip.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "astray").symlink_to(tmp_path / "gone")
    return tmp_path


def everything(folder: Path) -> tuple[dict[Path, bytes], set[Path]]:
    return contents(folder), set(folder.rglob("*"))


def assert_refused(words: str, code: int, said: list[str], desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with the code and a message that has all parts in it, and leaves everything as it was."""
    places = {"W": untrained(), "OTHER": untrained(True), "D": str(data_folder())}
    before = everything(desk), everything(data_folder()), everything(Path(untrained()).parent)
    assert run([places.get(word, word) for word in words.split()]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("anchorite: ")
    assert "Traceback" not in captured.out + captured.err
    for part in said:
        assert part in captured.err
    assert (everything(desk), everything(data_folder()), everything(Path(untrained()).parent)) == before


SOURCES = [
    ("http://host/a.jpg", ["http://host/a.jpg: an address, and nothing is ever downloaded; save it as a file first"]),
    ("s3://bucket/photos", ["s3://bucket/photos: an address, and nothing is ever downloaded"]),
    ("file:///photos/a.jpg", ["file:///photos/a.jpg: files are named by their path alone"]),
    ("97", ["camera:97: there is no such camera"]),
    ("a.jpg 97", ["97: a camera, a stream or a list on stdin is read alone"]),
    ("films", ["films: no image in this folder", "but files: 1 of .mov; videos are named", "such as 'films/*.MOV'"]),
    ("phone", ["phone: no image", "2 of .heic; convert photographs among them to JPEG or PNG"]),
    ("a.jpg/b.jpg", ["a.jpg/b.jpg: no such file or folder"]),
    ("film.mp4 gone.mp4 http://host/a.jpg", ["gone.mp4: no such file", "\nhttp://host/a.jpg: an address"]),
]


@pytest.mark.parametrize(("sources", "said"), SOURCES)
def test_sources_that_are_no_images(
    sources: str, said: list[str], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(f"predict W {sources}", 2, said, desk, capsys)


WEIGHTS = [
    ("text.safetensors", 2, ["no safetensors file but a text that begins with 'Epoch 1: loss", "of a run, or what"]),
    ("empty.safetensors", 2, ["no safetensors file (it is empty)", "best.safetensors or last.safetensors of a run"]),
    ("page.safetensors", 2, ["a web page, saved in place of a download"]),
    ("list.json", 2, ["list.json: no safetensors file but a text that begins with '{"]),
    ("a.jpg", 2, ["a.jpg: no safetensors file but an image; the weights come first, then the images"]),
    ("zip.safetensors", 5, ["by content a zip", "import zip.safetensors zip-imported.safetensors"]),
    ("hollow", 2, ["hollow: a folder, no weight file; give the path of a .safetensors file"]),
    ("yolo.pt", 2, ["yolo.pt: cannot be read: No such file", "nothing is ever downloaded"]),
    ("pickled.pt", 5, ["pickled.pt: by content or name a pickle", "is not read"]),
]
WITH_WEIGHTS = ["predict {} a.jpg", "validate {} D", "suspects D --weights {}", "explain D --weights {}", "export {}"]


@pytest.mark.parametrize(("name", "code", "said"), WEIGHTS)
def test_weights_that_are_none(
    name: str, code: int, said: list[str], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in WITH_WEIGHTS:
        assert_refused(words.format(name), code, said, desk, capsys)


SETTINGS = [
    ("--set lr=0.1", ["--set lr: no such recipe field; did you mean optimizer.lr?"]),
    ("--set lr0=0.1", ["--set lr0: no such recipe field; did you mean optimizer.lr?"]),
    ("--set learning_rate=0.1", ["did you mean optimizer.lr?"]),
    ("--set hsv_h=0.1", ["did you mean augment.hue?"]),
    ("--set label_smoothing=0.1", ["did you mean loss.label_smoothing?"]),
    ("--set box=0.05", ["did you mean loss.box_gain?"]),
    ("--set loss.cls=0.5", ["--set loss.cls", "did you mean loss.class_gain?"]),
    ("--set copy_paste=0.5", ["nothing here does what copy_paste does elsewhere: it needs masks"]),
    ("--set optimizer=adam", ["--set optimizer: this is a group", "optimizer.name, optimizer.lr"]),
    (
        "--recipe lines.yaml",
        [
            "lines.yaml:2: lr0: no such recipe field; did you mean optimizer.lr?",
            "lines.yaml:3: hsv_h: no such recipe field; did you mean augment.hue?",
            "lines.yaml:5: loss.box: no such recipe field; did you mean loss.box_gain?",
        ],
    ),
    ("--img 640", ["train: unknown option --img: here it is --image-size\nusage: anchorite train DATA"]),
    ("--project x", ["unknown option --project: here it is --out"]),
    ("--weights yolo.pt", ["yolo.pt: cannot be read", "nothing is ever downloaded"]),
    ("--lr0 0.1", ["unknown option --lr0: it is a field of the recipe: --set optimizer.lr=VALUE"]),
    ("--patience=5", ["unknown option --patience: it is a field of the recipe: --set patience=VALUE"]),
    ("--label-smoothing 0.1", ["--set loss.label_smoothing=VALUE"]),
]


@pytest.mark.parametrize(("words", "said"), SETTINGS)
def test_names_of_other_trainers(words: str, said: list[str], desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"train D {words}", 2, said, desk, capsys)


REST = [
    ("predict W a.jpg --conf-thres=0.3", 2, ["predict: unknown option --conf-thres: here it is --confidence"]),
    ("predict W a.jpg --lr0 3", 2, ["predict: Unknown option: --lr0", "usage: anchorite predict WEIGHTS SOURCE"]),
    ("predict W a.jpg --out astray", 2, ["--out astray: a link"]),
    (
        "import pickled.pt",
        2,
        ["import: OUT is missing: new weight file, such as", "usage: anchorite import SOURCE OUT"],
    ),
    ("import gone.pt w.safetensors", 2, ["gone.pt: no such file; give a .pt file"]),
    ("import pickled.pt w.safetensors", 5, ["pickled.pt: a bare pickle", "is not read"]),
    ("import W w.safetensors", 2, ["a safetensors file already; use it as it is"]),
    ("import pickled.pt w.onnx", 2, ["w.onnx: weights are safetensors; name a file w.safetensors"]),
    ("export", 2, ["export: WEIGHTS is missing: weights, such as", "usage: anchorite export WEIGHTS [OPTIONS]"]),
    ("report hollow", 2, ["report hollow: not a run folder (no recipe.yaml); name a runs/NAME folder"]),
    ("runs runs", 2, ["runs runs: holds no run", "train one"]),
    ("suspects D", 2, ["suspects: --weights WEIGHTS is missing", "usage: anchorite suspects DATA --weights WEIGHTS"]),
    (
        "suspects D --weights OTHER",
        2,
        ["other.safetensors and", "have other classes: ", "['zebra', 'gnu']", "same order"],
    ),
    ("explain", 2, ["explain: DATA is missing: folder of labelled images", "usage: anchorite explain DATA"]),
    ("explain D --weights OTHER", 2, ["have other classes", "leave --weights out to see the assignment alone"]),
    ("explain D --split nosplit", 2, ["--split nosplit: is not there; the splits of", "val (4 images)"]),
    ("explain D --image nope", 2, ["--image nope: no image of split val has this name"]),
    ("validate OTHER D", 2, ["have other classes"]),
    ("tune D --trials 0", 2, ['tune: Invalid value "0" for --trials. Must be >= 1', "usage: anchorite tune DATA"]),
    ("tune D --set lr0=0.1", 2, ["lr0: no such recipe field; did you mean optimizer.lr?"]),
    ("serve", 2, ["serve: WEIGHTS is missing", "usage: anchorite serve WEIGHTS"]),
    ("serve W --port 99999", 2, ['"99999" for --port. Must be <= 65535', "usage: anchorite serve WEIGHTS"]),
    ("split one out", 2, ["one: 1 view is too few for a split val of 20%"]),
    ("split D", 2, ["split: OUT is missing: new folder for the copy", "usage: anchorite split DATA OUT"]),
    ("split D out --val 2", 2, ["--val 2: a share of the images from 0 to under 1"]),
    ("convert D out", 2, ["convert: --to TO is missing: format of the copy", "--to yolo|coco|voc|shards [OPTIONS]"]),
    ("convert D out --to pascal", 2, ['"pascal" for --to. Choose from: "yolo", "coco", "voc"']),
    ("anchors", 2, ["anchors: DATA is missing", "usage: anchorite anchors DATA"]),
    ("inspect gone", 2, ["gone: does not exist; name a dataset's folder"]),
    ("benchmark los", 2, ['"los" for WHICH. Choose from:']),
    ("demo --epochs 0", 2, ["--epochs: must be greater than or equal to 1 (got 0)"]),
]


@pytest.mark.parametrize(("words", "code", "said"), REST)
def test_every_other_command(
    words: str, code: int, said: list[str], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(words, code, said, desk, capsys)


@pytest.mark.parametrize("command", [name for name in build_app() if not name.startswith("-")])
def test_the_usage_of_every_command_is_told(command: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"{command} --no-such-flag", 2, [f"usage: anchorite {command} "], desk, capsys)


@pytest.mark.parametrize(
    "words",
    [
        "train gone --out {}",
        "predict gone gone.jpg --out {}",
        "validate gone gone --out {}",
        "inspect gone --out {}",
        "inspect gone --fix {}",
        "convert gone {} --to coco",
        "split gone {}",
        "suspects gone --weights gone --out {}",
        "tune gone --out {}",
        "anchors gone --out {}",
        "demo --out {}",
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    words: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = NO_PLACE / "deep"
    assert_refused(words.format(place), 4, [f"{place}: nothing can be made in /", "name another folder"], desk, capsys)


@pytest.mark.parametrize("words", ["explain D --out {}", "report RUN --out {}"])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    words: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "RUN").mkdir()
    (desk / "RUN" / "recipe.yaml").write_text("epochs: 3\n")
    page = NO_PLACE / "page.html"
    told = [f"{NO_PLACE}: nothing can be made in /", "name another folder"]
    assert_refused(words.format(page), 4, told, desk, capsys)


def test_looking_whether_a_folder_can_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    before = everything(tmp_path)
    for name in ("empty", "new", "new/below/../deep", "empty/new"):
        refuse_taken(tmp_path / name)
        assert everything(tmp_path) == before


def test_a_folder_that_refuses_is_told_with_what_was_made_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anchorite.cli.folders.mkdtemp", full)
    with pytest.raises(StorageError, match=f"nothing can be made in {tmp_path}: No space left on device"):
        refuse_taken(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        refuse_taken(tmp_path)
