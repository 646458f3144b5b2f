"""What a data.yaml may say, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.data.formats import open_dataset
from anchorite.errors import InputError
from tests.data.format_samples import boxes, kinds, write_image, write_text, yolo_dataset

GOOD = "0 0.5 0.5 0.25 0.5\n"


def test_val_may_be_called_valid_and_may_be_absent(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD}, "train: images/train\nvalid: images/train\ntest:\nnames: {1: dog, 0: cat}\n")
    index = open_dataset(tmp_path)
    assert list(index.splits) == ["train", "val"]
    assert index.class_names == ("cat", "dog")


BAD_YAML = {
    "duplicate key": ("train: images/train\nnames: [cat]\ntrain: images/train\n", 3, "stands twice"),
    "no as a name": ("train: images/train\nnames: [yes, no]\n", 2, 'put it in quotes: "yes"'),
    "number as a name": ("train: images/train\nnames:\n  - cat\n  - 7\n", 4, 'put it in quotes: "7"'),
    "empty name": ("train: images/train\nnames:\n  - ''\n", 3, "cannot name a class"),
    "half a character": ('train: images/train\nnames: ["\\ud800"]\n', 2, "cannot name a class"),
    "name twice": ("train: images/train\nnames: [cat, cat]\n", 2, "stands twice"),
    "one name as text": ("train: images/train\nnames: cat\n", 2, "must be a list"),
    "gap in names": ("train: images/train\nnames: {0: cat, 2: dog}\n", 2, "class 1 is missing"),
    "class number twice": ("train: images/train\nnames: {0: cat, 00: dog}\n", 2, "class 0 stands twice"),
    "class number as word": ("train: images/train\nnames: {a: cat}\n", 2, "not a class number"),
    "nc": ("nc: 3\ntrain: images/train\nnames: [cat]\n", 1, "nc is '3', but names has 1"),
    "missing split": ("train: images/train\nval: images/val\nnames: [cat]\n", 2, "does not exist"),
    "missing path": ("path: elsewhere\ntrain: images/gone\nnames: [cat]\n", 1, "not a folder"),
    "path to a file": ("path: data.yaml\ntrain: images/gone\nnames: [cat]\n", 1, "not a folder"),
    "key twice in other case": ("train: images/train\nnames: [cat]\nNames: [dog]\n", 3, "stands twice"),
    "split twice in other case": ("train: images/train\nnames: [cat]\nTraining: x\n", 3, "a second time"),
    "two places for one folder": ("train: /x/train/images\nval: /x/val/images\nnames: [cat]\n", 2, "does not exist"),
    "a place that holds another": ("train: images/train\ntest: ../test/images\nnames: [cat]\n", 2, "does not exist"),
    "fraction as nc": ("nc: 1.5\ntrain: images/train\nnames: [cat]\n", 1, "nc is '1.5'"),
    "fraction as class number": ("train: images/train\nnames: {0.5: cat}\n", 2, "not a class number"),
    "key points as a number": ("train: images/train\nnames: [cat]\nkpt_shape: 17\n", 3, "[number of points, 2 or 3]"),
    "key points of one number": ("train: images/train\nnames: [cat]\nkpt_shape: [17, 1]\n", 3, "2 or 3]; got"),
    "key points of nothing": ("train: images/train\nnames: [cat]\nkpt_shape: []\n", 3, "[number of points, 2 or 3]"),
    "key points nested": ("train: images/train\nnames: [cat]\nkpt_shape: [[1], 2]\n", 3, "[number of points"),
    "outside": ("train: ..\nnames: [cat]\n", 1, "--allow-outside"),
    "absolute": ("train: /usr\nnames: [cat]\n", 1, "--allow-outside"),
    "path outside": ("path: ../..\ntrain: x\nnames: [cat]\n", 1, "--allow-outside"),
    "python tag": ("train: images/train\nnames: !!python/object/apply:os.system ['touch pwned']\n", 2, "not read"),
    "local tag": ("train: !x images/train\nnames: [cat]\n", 1, "not read"),
    "alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: images/train\nnames: *b\n", 2, "repeats a collection"),
    "depth": ("train: images/train\nnames: " + "[" * 5000 + "]" * 5000, 2, "nested deeper"),
    "not a mapping": ("- a\n- b\n", None, "not a mapping"),
    "broken": ("train: [a\nnames: b\n", 2, "not valid YAML"),
    "control character": ("train: a\x01\n", None, "not valid YAML"),
    "NUL in a path": ('train: "a\\0"\nnames: [cat]\n', 1, "must be a path"),
    "long path": ("train: " + "a" * 5000 + "\nnames: [cat]\n", 1, "does not exist"),
    "no names": ("train: images/train\n", None, "no names"),
    "no split": ("names: [cat]\n", None, "no split"),
    "val twice": ("train: images/train\nval: images/train\nvalid: images/train\nnames: [cat]\n", 3, "a second time"),
    "file": ("train: data.yaml\nnames: [cat]\n", 1, "neither a folder"),
}


@pytest.mark.parametrize(("text", "line", "reason"), BAD_YAML.values(), ids=BAD_YAML.keys())
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_bad_data_yaml_is_refused_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int | None, reason: str, skip_bad: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = yolo_dataset(tmp_path / "set", {"a": GOOD}, text) / "data.yaml"
    with pytest.raises(InputError) as caught:
        open_dataset(path, skip_bad=skip_bad)
    where = f"{path}: " if line is None else f"{path}:{line}: "
    assert str(caught.value).startswith(where)
    assert reason in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_download_is_noted_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "train: images/train\nnames: [cat]\ndownload: |\n  import os; os.system('touch pwned')\n"
    index = open_dataset(yolo_dataset(tmp_path, {"a": GOOD}, text))
    assert kinds(index) == ["ignored-key"]
    assert not (tmp_path / "pwned").exists()


def test_allow_outside_gives_leave(tmp_path: Path) -> None:
    yolo_dataset(tmp_path / "pictures", {"a": GOOD})
    yaml = write_text(tmp_path / "config" / "set.yaml", "path: ../pictures\ntrain: images/train\nnames: [cat]\n")
    with pytest.raises(InputError, match="leads out of the dataset"):
        open_dataset(yaml)
    assert len(open_dataset(yaml, allow_outside=True).splits["train"][0].class_ids) == 1


def test_the_misplaced_parent_of_a_common_exporter_is_understood(tmp_path: Path) -> None:
    home = tmp_path / "export"
    write_image(home / "train" / "images" / "a.png")
    write_text(home / "train" / "labels" / "a.txt", GOOD)
    write_text(home / "data.yaml", "train: ../train/images\nnames: ['cat']\nnc: 1\nroboflow:\n  version: 2\n")
    write_image(tmp_path / "train" / "images" / "foreign.png")
    index = open_dataset(home)
    assert [record.path.name for record in index.splits["train"]] == ["a.png"]
    assert len(index.splits["train"][0].class_ids) == 1
    assert kinds(index) == ["relocated"]


@pytest.mark.parametrize(
    "text",
    [
        "train: images\\train\nnames: [cat]\n",
        "Train: images/train\nNames: [cat]\nNC: 1.0\n",
        "TRAINING: ./images/train/\nnames: {0.0: cat}\nPath: .\n",
        "train: [images/train]\nval:\nnames: {'0': cat}\nnc: null\n",
        "path: .\\images\ntrain: train\nnames: [cat]\n",
    ],
)
def test_backslashes_and_keys_in_any_letter_case_are_read_without_a_word(tmp_path: Path, text: str) -> None:
    index = open_dataset(yolo_dataset(tmp_path, {"a": GOOD}, text))
    assert boxes(index) == [[24, 12, 40, 36]]
    assert index.adjustments == ()


@pytest.mark.parametrize("name", ["Data.yaml", "data.YML", "DATA.YAML", "set.Yaml"])
def test_a_data_yaml_is_found_in_any_letter_case_and_hidden_ones_are_not(tmp_path: Path, name: str) -> None:
    yolo_dataset(tmp_path, {"a": GOOD})
    (tmp_path / "data.yaml").rename(tmp_path / name)
    write_text(tmp_path / "._data.yaml", b"\0\5\x16\7")
    write_text(tmp_path / ".old.yaml", "train: x\nnames: [x]\n")
    assert boxes(open_dataset(tmp_path)) == [[24, 12, 40, 36]]


ELSEWHERE = {
    "path of another computer": ("path: /home/ann/sets/cats\ntrain: images/train\n", [1]),
    "path of another computer, with Windows": ("path: C:\\sets\\cats\ntrain: images\\train\n", [1]),
    "path to a folder of all sets": ("path: ../datasets/cats\ntrain: images/train\n", [1]),
    "train of another computer": ("train: /home/ann/cats/images/train\n", [1]),
    "train of Windows": ("train: 'C:\\cats\\images\\train'\n", [1]),
    "both, and val": ("path: /x/y\ntrain: /x/y/images/train\nval: [/x/y/images/train]\n", [1, 2, 3]),
    "another letter case": ("train: Images/Train\n", [1]),
}


@pytest.mark.parametrize(("text", "lines"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_paths_of_another_computer_are_found_beside_the_data_yaml_and_told(
    tmp_path: Path, text: str, lines: list[int]
) -> None:
    home = yolo_dataset(tmp_path / "cats", {"a": GOOD}, text + "names: [cat]\n")
    index = open_dataset(home)
    assert boxes(index) == [[24, 12, 40, 36]]
    told = sorted((a.kind, a.origin) for a in index.adjustments)
    assert told == [("relocated", f"{home / 'data.yaml'}:{line}") for line in lines]


def test_a_folder_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    yolo_dataset(tmp_path, {"a": GOOD}, "path: set\ntrain: /x/images/train\nnames: [cat]\n")
    write_image(tmp_path / "set" / "images" / "train" / "b.png")
    with pytest.raises(InputError, match=r"data\.yaml:2: .*could be .*set/images/train or .*images/train"):
        open_dataset(tmp_path)
