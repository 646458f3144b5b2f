"""Dataset settings that would reach beyond the dataset, and datasets at the edge of what can be trained on."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from anchorite.cli import run
from anchorite.data import open_dataset
from anchorite.errors import InputError
from tests.cli.commands import quick_recipe, started, weights
from tests.cli.test_usage import refused
from tests.data.format_samples import coco_json, voc_object, voc_xml, write_image, write_text, yolo_dataset
from tests.data.test_formats_voc import BAD_FILES, voc_dataset
from tests.data.test_formats_yolo_config import BAD_YAML
from tests.faults.watch import unchanged, watched

GOOD = "0 0.5 0.5 0.25 0.5\n"
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40))])
MORE_YAML = {
    "no character": ('train: images/train\nnames: ["\\UFFFFFFFF"]\n', None, "not readable as YAML"),
    "a version of 5000 digits": ("%YAML " + "9" * 5000 + ".1\n---\ntrain: x\n", None, "not readable as YAML"),
    "alias bomb": (f"{BOMB}\ntrain: images/train\nnames: *a39\n", 2, "repeats a collection"),
    "an alias of itself": ("names: &a [cat, *a]\ntrain: images/train\n", 1, "repeats a collection"),
    "an alias key": ("train: images/train\nnames: [cat]\n<<: &m {a: 1}\nx: *m\n", 4, "repeats a collection"),
    "a new object": ("train: !!python/object/new:os.system ['touch pwned']\nnames: [cat]\n", 1, "is not read"),
    "a module": ("train: !!python/module:antigravity x\nnames: [cat]\n", 1, "is not read"),
    "a name": ("train: !!python/name:os.system\nnames: [cat]\n", 1, "is not read"),
    "a home folder": ("train: ~/photos\nnames: [cat]\n", 1, "does not exist"),
    "devices": ("train: /dev/stdin\nnames: [cat]\n", 1, "leads out of the dataset"),
    "no as a class name": ("train: images/train\nnames:\n- cat\n- no\n", 4, "put it in quotes"),
}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [*BAD_YAML.values(), *MORE_YAML.values()],
    ids=[*BAD_YAML, *(f"{k} (2)" for k in MORE_YAML)],
)
def test_a_bad_data_yaml_ends_training_and_nothing_else_happens(
    text: str,
    line: int | None,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = yolo_dataset(tmp_path / "set", {"a": GOOD}, text) / "data.yaml"
    refused(capsys, "train", "nowhere")  # what is imported on the way is not what this is about
    with unchanged(tmp_path), watched() as deeds:
        code, message = refused(capsys, "train", path)
    assert code == 2
    assert message.startswith(f"anchorite: {path}:{line}: " if line else f"anchorite: {path}: ")
    assert reason in message
    assert len(message) < 2000
    assert (deeds.spawned, deeds.network, deeds.unpickled) == ([], [], set())
    assert {os.path.realpath(path)} == deeds.below(tmp_path)


def plain_yolo(home: Path) -> None:
    yolo_dataset(home, {"a": GOOD}, "train: list.txt\nnames: [cat]\n")
    write_text(home / "list.txt", "images/train/a.png\n")


def plain_coco(home: Path) -> None:
    write_image(home / "images" / "a.png")
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 10, 20]}]
    coco_json(home / "annotations" / "instances_train.json", annotations)


def plain_json(home: Path) -> None:
    write_image(home / "images" / "a.png")
    coco_json(home / "train.json", [])


def plain_voc(home: Path) -> None:
    voc_dataset(home)
    write_text(home / "classes.txt", "cat\n")


def plain_folders(home: Path) -> None:
    write_image(home / "train" / "JPEGImages" / "a.png")
    write_text(home / "train" / "Annotations" / "a.xml", voc_xml(voc_object("cat", 4, 6, 14, 26)))


LINKED: list[tuple[Callable[[Path], None], str]] = [
    *((plain_yolo, name) for name in ("data.yaml", "list.txt", "images", "images/train", "images/train/a.png")),
    *((plain_yolo, name) for name in ("labels", "labels/train", "labels/train/a.txt")),
    *((plain_coco, name) for name in ("annotations", "annotations/instances_train.json", "images", "images/a.png")),
    *((plain_json, name) for name in ("images", "images/a.png")),
    *((plain_voc, name) for name in ("ImageSets", "ImageSets/Main", "ImageSets/Main/train.txt", "classes.txt")),
    *((plain_voc, name) for name in ("Annotations", "Annotations/a.xml", "JPEGImages", "JPEGImages/a.png")),
    *((plain_folders, name) for name in ("train", "train/Annotations", "train/JPEGImages", "train/JPEGImages/a.png")),
]


@pytest.mark.parametrize(("make", "name"), LINKED)
def test_a_link_out_of_the_dataset_is_refused_unread(
    make: Callable[[Path], None], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home, outside = tmp_path / "set", tmp_path / "outside" / "secret"
    make(home)
    assert len(open_dataset(home).splits["train"]) == 1
    outside.parent.mkdir()
    shutil.move(home / name, outside)
    (home / name).symlink_to(outside)
    with unchanged(tmp_path), watched() as deeds:
        code, message = refused(capsys, "train", home, "--out", tmp_path / "run")
    assert code == 2
    assert "leads out of the dataset" in message
    assert "--allow-outside" in message
    assert str(home) in message
    assert deeds.below(tmp_path / "outside") == set()
    assert (deeds.spawned, deeds.network) == ([], [])
    assert len(open_dataset(home, allow_outside=True).splits["train"]) == 1


def test_a_json_or_yaml_that_is_a_link_out_is_not_even_tried(tmp_path: Path) -> None:
    plain_json(tmp_path / "elsewhere")
    home = tmp_path / "set"
    home.mkdir()
    for name, text in (("set.yaml", "train: x\nnames: [cat]\n"), ("other.json", '{"images": [], "annotations": []}')):
        (home / name).symlink_to(write_text(tmp_path / "elsewhere" / name, text))
    with watched() as deeds, pytest.raises(InputError, match="no dataset recognised"):
        open_dataset(home)
    assert deeds.below(tmp_path / "elsewhere") == set()


def test_a_dataset_that_is_itself_reached_by_a_link_is_no_different(tmp_path: Path) -> None:
    for make in (plain_yolo, plain_coco, plain_json, plain_voc, plain_folders):
        home = tmp_path / make.__name__
        make(home)
        link = tmp_path / f"link to {make.__name__}"
        link.symlink_to(home)
        assert len(open_dataset(link).splits["train"]) == 1


@pytest.mark.slow
def test_a_download_key_starts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("https://example.org/data.zip", "|\n  import os\n  os.system('touch pwned')", "bash fetch.sh"):
        text = f"train: images/train\nnames: [cat]\ndownload: {value}\n"
        yolo_dataset(tmp_path / "set", {"a": GOOD}, text)
        with unchanged(tmp_path / "set"), watched() as deeds:
            assert run(["train", "set", "--recipe", quick_recipe(), "--epochs", "1"]) == 0
        assert "download: is never run" in capsys.readouterr().out
        assert deeds.network == []
        assert not [event for event in deeds.spawned if "touch" in event or "sh" in event.split()]
        assert {path.name for path in tmp_path.iterdir()} == {"set", "runs"}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_xml_ends_training_and_opens_nothing_else(
    content: str | bytes, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secret = write_text(tmp_path / "secret", "the secret")
    text = content.replace("/etc/passwd", str(secret)) if isinstance(content, str) else content
    xml = voc_dataset(tmp_path / "set", text)
    with unchanged(tmp_path), watched() as deeds:
        code, message = refused(capsys, "train", tmp_path / "set", "--out", tmp_path / "run")
    assert code == 2
    assert re.search(re.escape(str(xml)) + ".*" + re.escape(reason), message)
    assert "the secret" not in message
    assert os.path.realpath(secret) not in deeds.opened
    assert (deeds.spawned, deeds.network) == ([], [])


STEMS = [
    "with spaces  and 'quotes' \"two\"",
    "\u0444\u043e\u0442\u043e \u732b\U0001f431",
    "x" * 246,  # 250 bytes with its suffix
    "\u732b" * 82,
    "-leading-dash",
    "100%s{}\\n$HOME",
    "two\nlines",
    os.fsdecode(b"no text \xff\xfe"),
    "[bracket]*",
]


@pytest.mark.slow
def test_any_file_name_trains_validates_predicts_and_reports(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = tmp_path / "a set \u00fc"
    for number, stem in enumerate(STEMS):
        for split in ("train", "val"):
            image = home / "images" / split / f"{stem}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            image.write_bytes(cv2.imencode(".png", noise)[1].tobytes())
            write_text(home / "labels" / split / f"{stem}.txt", GOOD)
    write_text(home / "data.yaml", 'train: images/train\nval: images/val\nnames: ["<script>alert(1)</script>"]\n')
    out = tmp_path / "run"
    with unchanged(home):
        words = ["--recipe", quick_recipe(), "--epochs", "1", "--batch", "2", "--workers", "1"]
        assert run(["train", str(home), *words, "--out", str(out)]) == 0
        assert f"train: {len(STEMS)} images, {len(STEMS)} boxes to learn" in capsys.readouterr().out
        best = str(out / "best.safetensors")
        assert run(["validate", best, str(home)]) == 0
        # A real process, whose output spells bytes that are no text in another way.
        process = started("predict", best, str(home / "images" / "val"), "--out", str(tmp_path / "found"))
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert len(output.splitlines()) == len(STEMS) + 1
    assert len(list((tmp_path / "found" / "labels").iterdir())) == len(STEMS)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # its own
    assert "&lt;script&gt;alert(1)" in page
    assert 'http-equiv="Content-Security-Policy"' in page


def train_small(home: Path, out: Path) -> int:
    return run(["train", str(home), "--recipe", quick_recipe(), "--epochs", "1", "--batch", "2", "--out", str(out)])


@pytest.mark.slow
def test_a_single_image_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = yolo_dataset(tmp_path / "set", {"only": GOOD}, "train: images/train\nval: images/train\nnames: [cat]\n")
    with unchanged(home):
        assert train_small(home, tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert "train: 1 image, 1 box to learn" in output
    assert "nan" not in output.lower()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": "", "b": ""}, "train: 2 images, 0 boxes to learn, 2 images without labels"),
        ({"only": ""}, "train: 1 image, 0 boxes to learn, 1 image without labels"),
        ({"a": "0 0.5 0.5 0 0\n"}, "box without area"),
    ],
    ids=["all background", "a single background", "only empty boxes"],
)
def test_a_dataset_without_a_box_is_not_trained_on(
    rows: dict[str, str | bytes], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = yolo_dataset(tmp_path / "set", rows, "train: images/train\nval: images/train\nnames: [cat]\n")
    with unchanged(home):
        assert train_small(home, tmp_path / "run") == 2
    output, errors = capsys.readouterr()
    assert said in output
    assert "nothing to learn from" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_images_of_one_pixel_and_of_extreme_shape_train(tmp_path: Path) -> None:
    home = yolo_dataset(tmp_path / "set", {"a": GOOD})
    for stem, size in (("dot", (1, 1)), ("line", (3000, 1)), ("column", (1, 3000))):
        write_image(home / "images" / "train" / f"{stem}.png", *size)
        write_text(home / "labels" / "train" / f"{stem}.txt", GOOD)
    with unchanged(home):
        assert train_small(home, tmp_path / "run") == 0
        found = tmp_path / "found"
        assert run(["predict", weights(), str(home / "images" / "train"), "--out", str(found)]) == 0


def test_an_empty_training_split_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = yolo_dataset(tmp_path / "set", {"a": GOOD}, "train: empty\nval: images/train\nnames: [cat]\n")
    (home / "empty").mkdir()
    with unchanged(home):
        assert train_small(home, tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "no training images" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()
    voc = tmp_path / "voc"
    voc_dataset(voc, voc_xml())
    code, message = refused(capsys, "train", voc, "--out", tmp_path / "run")
    assert code == 2
    assert "no xml names an object" in message


@pytest.mark.slow
def test_an_empty_validation_split_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = yolo_dataset(tmp_path / "set", {"a": GOOD}, "train: images/train\nval: empty\nnames: [cat]\n")
    (home / "empty").mkdir()
    with unchanged(home):
        assert train_small(home, tmp_path / "run") == 0
    assert "no val split" in capsys.readouterr().out
    assert run(["validate", str(tmp_path / "run" / "best.safetensors"), str(home)]) == 2
    assert "--split val: is empty" in capsys.readouterr().err
