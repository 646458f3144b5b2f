"""Recipes: round trip, overrides, and what a user who types wrong things is told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from anchorite.errors import InputError
from anchorite.recipe_names import built_in_recipes, other_names
from anchorite.train import load_recipe, parse_setting, read_recipe, with_settings
from anchorite.train.recipe import field_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(built_in_recipes()))
def test_built_in_recipes_load_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_the_promised_recipes_are_there_and_state_their_terms() -> None:
    texts = built_in_recipes()
    assert {"small-data", "from-scratch", "no-augmentation"} <= set(texts)
    for name, text in texts.items():
        comment = "\n".join(line for line in text.splitlines() if line.startswith("#")).lower()
        for word in ("command:", "hardware:", "time:", "score:"):
            assert word in comment, f"{name} does not state its {word}"


def test_overrides_by_dotted_name() -> None:
    recipe = load_recipe("small-data", {"loss.label_smoothing": 0.1, "epochs": 3, "optimizer.name": "adamw"})
    assert (recipe.loss.label_smoothing, recipe.epochs, recipe.optimizer.name) == (0.1, 3, "adamw")
    assert recipe.loss.box_gain == load_recipe("small-data").loss.box_gain


def test_settings_are_read_as_yaml() -> None:
    assert parse_setting("loss.label_smoothing=0.1") == ("loss.label_smoothing", 0.1)
    assert parse_setting("optimizer.lr=1e-3") == ("optimizer.lr", 0.001)
    assert parse_setting("model=s") == ("model", "s")
    assert parse_setting("anchors.rows=[[1, 2], [3e0, 4]]") == ("anchors.rows", [[1, 2], [3.0, 4]])
    for wrong in ("epochs", "=3", "x=[1"):
        with pytest.raises(InputError, match="--set"):
            parse_setting(wrong)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"loss.label_smothing": 0.1}, ["--set loss.label_smothing", "did you mean loss.label_smoothing"]),
        ({"label_smoothing": 0.1}, ["did you mean loss.label_smoothing"]),
        ({"epochs": "many"}, ["--set epochs", "integer", "'many'"]),
        ({"epochs": 0}, ["--set epochs", "greater than or equal to 1", "0"]),
        ({"model": "z"}, ["--set model", "'n'", "'z'"]),
        ({"epochs.x": 1}, ["epochs is a single value"]),
    ],
)
def test_wrong_overrides_are_explained(overrides: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("small-data", overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 3\noptimizer:\n  rat: 0.1\n", ["r.yaml:3: optimizer.rat", "did you mean optimizer.lr"]),
        ("epochs: 3\nimage_size: 7\n", ["r.yaml:2: image_size", "32"]),
        ("- 1\n", ["r.yaml:1", "mapping"]),
        ("epochs: [1\n", ["r.yaml:2", "YAML"]),
        ("epochs: !!python/object/apply:os.system ['true']\n", ["r.yaml:1"]),
    ],
)
def test_wrong_files_are_explained_with_file_and_line(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("rows", [[[8, 9, 16.5, 17], [32, 33, 64, 65], [128, 129, 256, 257]]])
def test_a_table_of_anchors_is_taken_from_yaml_and_written_back(rows: list[list[float]], tmp_path: Path) -> None:
    recipe = load_recipe("small-data", {"anchors.rows": rows})
    table = recipe.anchor_table((8, 16, 32))
    assert table is not None
    assert table.to_rows() == rows
    path = tmp_path / "r.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(path, parsed := dict([parse_setting(f"anchors.rows={rows}")])) == recipe, parsed


@pytest.mark.parametrize("rows", [[[1, 2]], [[1, 2, 3]] * 3, [[1, -2]] * 3, 5])
def test_a_table_of_anchors_that_does_not_fit_the_model_is_refused(rows: object) -> None:
    with pytest.raises(InputError, match=r"^--set anchors.rows: "):
        load_recipe("small-data", {"anchors.rows": rows})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lr", "did you mean optimizer.lr?"),
        ("optimizer.lr0", "did you mean optimizer.lr?"),
        ("lrf", "did you mean optimizer.lr_final?"),
        ("hsv_h", "did you mean augment.hue?"),
        ("loss.box", "did you mean loss.box_gain?"),
        ("FlipLR", "did you mean augment.flip_horizontal?"),
        ("imgsz", "did you mean image_size?"),
        ("batch-size", "did you mean batch?"),
        ("decay", "did you mean ema.decay?"),
        ("perspective", "nothing here does what perspective does elsewhere: images are rotated"),
    ],
)
def test_the_names_that_other_trainers_use_lead_to_ours(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"--set {name}: no such recipe field; {said}")):
        load_recipe("small-data", {name: 0.1})
    *groups, last = name.split(".")
    path = tmp_path / "r.yaml"
    # With a field of ours, since a file of their names alone is read as theirs.
    path.write_text("epochs: 3\n" + "".join(f"{group}:\n" for group in groups) + f"{' ' * len(groups)}{last}: 0.1\n")
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:{len(groups) + 2}: {name}: no such recipe field; {said}")


def test_what_other_trainers_call_our_fields_is_what_the_documentation_says() -> None:
    fields = set(field_names())
    familiar = {name: other.field for name, other in other_names().items() if other.field}
    assert set(familiar.values()) <= fields
    assert all(other.note for other in other_names().values() if not other.field)
    rows = (ROOT / "docs/other-trainers.md").read_text(encoding="utf-8").splitlines()
    documented = 0
    for row in (row.split("|") for row in rows if row.startswith("|")):
        theirs = set(re.findall(r"\w+", row[1])) & familiar.keys()
        ours = set(re.findall(r"`(\w+\.\w+)`", row[3])) & fields
        for name in theirs if ours and "`--" not in row[1] else ():
            assert familiar[name] in ours, name
            documented += 1
    assert documented > 20


OLD_FILE = """epochs: 3
optimizer:
  rate: 0.03
  final_rate: 0.2
  decay: linear
  warmup_bias_rate: 0.05
average: {decay: 0.99, ramp_steps: 7.0}
validation: {iou_limit: 0.6}
"""


def test_earlier_names_of_fields_are_read_and_answered_with_the_current_ones(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD_FILE)
    settings = {"average.decay": 0.9, "loss.box_gain": 0.2}
    recipe, notes = read_recipe(path, settings)
    optimizer = recipe.optimizer
    assert (optimizer.lr, optimizer.lr_final, optimizer.schedule, optimizer.warmup_bias_lr) == (
        0.03,
        0.2,
        "linear",
        0.05,
    )
    assert (recipe.ema.decay, recipe.ema.ramp_steps, recipe.validation.iou_threshold) == (0.9, 7.0, 0.6)
    assert len(notes) == 7
    assert f"{path}:3: optimizer.rate is now called optimizer.lr" in notes
    assert with_settings(recipe, {"optimizer.rate": 0.5}).optimizer.lr == 0.5
    assert read_recipe("small-data", {"ema.decay": 0.9})[1] == ()


def test_a_field_under_both_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("optimizer:\n  lr: 0.1\n  rate: 0.2\n")
    with pytest.raises(InputError, match=r"both.yaml:3: optimizer.rate: .*optimizer.lr"):
        load_recipe(path)


def test_a_wrong_value_under_an_earlier_name_is_found_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("optimizer:\n  rate: -1.0\n")
    with pytest.raises(InputError, match=r"wrong.yaml:2: optimizer.rate: .*-1.0"):
        load_recipe(path)


def test_a_group_is_not_set_at_once() -> None:
    with pytest.raises(InputError, match=r"--set ema: this is a group .*: ema.decay, ema.ramp_steps"):
        load_recipe("small-data", {"ema": 3})


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"small-data.*did you mean small-data"):
        load_recipe("smal-data")


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))])
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "no character": ('name: "\\UFFFFFFFF"\n', "not readable as YAML"),
    "a version of 5000 digits": ("%YAML " + "9" * 5000 + ".1\n---\nname: x\n", "not readable as YAML"),
    "a number of 5000 digits": ("epochs: " + "9" * 5000 + "\n", "r.yaml:1: "),
    "alias bomb": (f"{BOMB}\n", "r.yaml:2: the alias \\*a0 repeats a collection"),
    "deep nesting": ("epochs: " + "[" * 50_000, "nested deeper than 16"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(900)), "nested deeper than 16"),
    "no text": (b"name: \xff\xfe\n", "r.yaml:1: not UTF-8 text"),
    "duplicate keys": ("epochs: 3\nbatch: 2\nepochs: 4\n", "r.yaml:3: the key 'epochs' stands twice"),
    "duplicate keys within": ("loss:\n  box_gain: 1\n  box_gain: 2\n", "r.yaml:3: the key 'box_gain' stands twice"),
    "a list as key": ("? [a, b]\n: 1\n", "r.yaml:1: a key must be a plain word"),
    "a number as key": ("1: 2\n", "r.yaml:1: 1: no such recipe field"),
    "no date": ("name: 2001-99-99\n", "r.yaml:1: '2001-99-99' is no timestamp"),
    "no bool": ("epochs: !!bool maybe\n", "r.yaml:1: 'maybe' is no bool"),
    "no number": ("epochs: !!int ''\n", "r.yaml:1: '' is no int"),
    "a scalar called a list": ("epochs: !!seq x\n", "r.yaml:1: 'x' is no seq"),
    "a set": ("epochs: !!set {1, 2}\n", "r.yaml:1: the tag .* is not read"),
    "a new object": ("name: !!python/object/new:os.system ['touch pwned']\n", "r.yaml:1: the tag .* is not read"),
    "a long value": ("epochs: " + "x" * 100_000 + "\n", "r.yaml:1: epochs: must be a valid integer"),
    "a long key": ("x" * 900 + ": 1\n", "no such recipe field"),
    "many keys": ("".join(f"key_{number}: 1\n" for number in range(5_000)), "and 4980 more"),
    "two documents": ("epochs: 3\n---\nepochs: 4\n", "not valid YAML"),
}


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_recipe_is_refused_with_its_line_in_a_short_message(
    content: str | bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=reason) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 20 * (300 + len(str(path)))
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    assert not (tmp_path / "pwned").exists()


def test_a_recipe_of_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.touch()
    os.truncate(path, 100_000_000)
    with pytest.raises(InputError, match=r"r\.yaml: 100\.0 MB, more than the 1 MB"):
        load_recipe(path)


@pytest.mark.parametrize("value", ['"\\UFFFFFFFF"', "[" * 5_000, "&a [*a]", "!!python/name:os.system", "9" * 5_000])
def test_a_hostile_setting_is_refused_in_a_short_message(value: str) -> None:
    with pytest.raises(InputError, match=r"^--set epochs") as caught:
        parse_setting(f"epochs={value}")
    assert len(str(caught.value)) < 400


def test_a_mark_before_the_text_and_windows_lines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfepochs: 3\r\nbatch: 2\r\n")
    assert (load_recipe(path).epochs, load_recipe(path).batch) == (3, 2)
