"""Files of the original family's hyperparameters as recipes: every name of theirs, and what the user is told of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.errors import InputError
from anchorite.recipe_names import other_names
from anchorite.train import Recipe, load_recipe, read_recipe
from tests.cli.commands import data_folder

TAKEN: dict[str, tuple[str, float]] = {
    "lr0": ("optimizer.lr", 0.012),
    "lrf": ("optimizer.lr_final", 0.2),
    "momentum": ("optimizer.momentum", 0.91),
    "weight_decay": ("optimizer.weight_decay", 0.0004),
    "warmup_epochs": ("optimizer.warmup_epochs", 2.5),
    "warmup_momentum": ("optimizer.warmup_momentum", 0.7),
    "warmup_bias_lr": ("optimizer.warmup_bias_lr", 0.15),
    "box": ("loss.box_gain", 0.06),
    "cls": ("loss.class_gain", 0.3),
    "cls_pw": ("loss.class_pos_weight", 0.9),
    "obj": ("loss.objectness_gain", 0.7),
    "obj_pw": ("loss.objectness_pos_weight", 1.1),
    "anchor_t": ("loss.ratio_limit", 3.5),
    "fl_gamma": ("loss.focal_gamma", 1.5),
    "label_smoothing": ("loss.label_smoothing", 0.1),
    "hsv_h": ("augment.hue", 0.01),
    "hsv_s": ("augment.saturation", 0.6),
    "hsv_v": ("augment.value", 0.3),
    "degrees": ("augment.rotation", 5.0),
    "translate": ("augment.translation", 0.2),
    "scale": ("augment.scale", 0.4),
    "shear": ("augment.shear", 2.0),
    "flipud": ("augment.flip_vertical", 0.1),
    "fliplr": ("augment.flip_horizontal", 0.4),
    "mosaic": ("augment.mosaic", 0.8),
    "mixup": ("augment.mixup", 0.15),
}
WITHOUT = ("iou_t", "perspective", "copy_paste", "paste_in", "loss_ota")


def value_at(recipe: Recipe, dotted: str) -> object:
    found: object = recipe
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def written(folder: Path, text: str) -> Path:
    path = folder / "hyp.low.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_name_of_the_family_sets_its_field_and_is_told(tmp_path: Path) -> None:
    text = "# of another trainer\n" + "".join(f"{name}: {value}  # theirs\n" for name, (_, value) in TAKEN.items())
    recipe, notes = read_recipe(written(tmp_path, text))
    for name, (field, value) in TAKEN.items():
        assert value_at(recipe, field) == value, name
        (note,) = [note for note in notes if note.startswith(f"{name} {value:g} -> ")]
        assert note.split(" -> ")[1].split(" (")[0] == field
    assert len(notes) == 1 + len(TAKEN)
    assert "hyperparameters of another trainer, 26 names" in notes[0]
    assert recipe.name == "hyp.low"
    # What the file leaves open has the default of the table, not the value of a built-in recipe.
    untold = Recipe().model_dump(exclude={"name", "loss", "augment", "optimizer"})
    assert recipe.model_dump(exclude={"name", "loss", "augment", "optimizer"}) == untold
    assert recipe.optimizer.nominal_batch == 64
    assert load_recipe(tmp_path / "hyp.low.yaml") == recipe


def test_no_name_is_forgotten() -> None:
    assert {*TAKEN, *WITHOUT, "anchors"} == {name for name, other in other_names().items() if other.is_hyperparameter}
    assert all(other_names()[name].field == field for name, (field, _) in TAKEN.items())
    assert all(not other_names()[name].field for name in WITHOUT)


@pytest.mark.parametrize("name", WITHOUT)
def test_what_there_is_no_field_for_is_told_and_a_warning_where_it_is_on(name: str, tmp_path: Path) -> None:
    _, notes = read_recipe(written(tmp_path, f"lr0: 0.01\n{name}: 0.0\n"))
    assert notes[2] == f"{name} 0: there is no such thing here, and off it is there, too"
    recipe, notes = read_recipe(written(tmp_path, f"lr0: 0.01\n{name}: 0.25\n"))
    assert notes[2] == f"warning: {name} 0.25 is ignored: {other_names()[name].note}"
    assert recipe.model_copy(update={"name": "default"}) == Recipe()


@pytest.mark.parametrize(
    ("value", "rows", "said"),
    [
        ("3", None, "anchors 3: so many a level have the default tables, 3"),
        ("3.2", None, "anchors 3.2: so many a level have the default tables, 3"),
        ("0", None, "anchors 0: the default tables"),
        ("5", None, "anchors 5: warning: ignored, for a number alone is no table"),
        (
            "\n  - [10, 13, 16, 30]\n  - [30, 61, 62, 45]\n  - [116, 90, 156, 198]",
            ((10, 13, 16, 30), (30, 61, 62, 45), (116, 90, 156, 198)),
            "anchors (a table of 3 rows) -> anchors.rows (never refitted)",
        ),
    ],
)
def test_anchors_are_a_number_or_a_table(value: str, rows: object, said: str, tmp_path: Path) -> None:
    recipe, notes = read_recipe(written(tmp_path, f"anchors: {value}\nlr0: 0.01\n"))
    assert recipe.anchors.rows == rows
    assert notes[1].startswith(said)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("lr0: 0.01\nhsv_s: 1.5\n", [":2: hsv_s: must be less than 1 (got 1.5)"]),
        ("lr0: 0.01\n\nlrf: fast\n", [":3: lrf: must be a valid number (got 'fast')"]),
        ("lr0: 0.01\nanchor_t: 1.0\nmosaic: 2\n", [":2: anchor_t: must be greater than 1", ":3: mosaic: must be less"]),
        ("lr0: 0.01\nhsv_x: 1\n", [":2: hsv_x: no such recipe field"]),
        ("lr0: 0.01\nanchors: [[1, 2]]\n", [":2: anchors: "]),
    ],
)
def test_values_that_cannot_be_are_refused_with_their_line(text: str, messages: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    for message in messages:
        assert f"{path}{message}" in str(caught.value)


@pytest.mark.parametrize("ours", ["epochs: 3", "loss:\n  box_gain: 0.1", "anchors:\n  refit: false"])
def test_a_file_of_both_is_refused_naming_both(ours: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"lr0: 0.01\n{ours}\nhsv_h: 0.1\n")
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    lines = str(caught.value).splitlines()
    assert f"{path}:1: lr0: no such recipe field; did you mean optimizer.lr?" in lines
    assert any(
        re.fullmatch(rf"{path}:\d: hsv_h: no such recipe field; did you mean augment.hue\?", line) for line in lines
    )
    name = ours.partition(":")[0]
    assert (
        f"{path}: names of another trainer's hyperparameters (lr0, hsv_h) beside fields of a recipe ({name})"
        in lines[-1]
    )


def test_what_is_set_beside_the_file_wins_and_is_told(tmp_path: Path) -> None:
    recipe, notes = read_recipe(written(tmp_path, "lr0: 0.01\nlrf: 0.1\n"), {"optimizer.lr": 0.5, "epochs": 2})
    assert (recipe.optimizer.lr, recipe.optimizer.lr_final, recipe.epochs) == (0.5, 0.1, 2)
    assert notes[1] == "lr0 0.01 -> optimizer.lr; overruled by what was set beside the file"
    assert "overruled" not in notes[2]


def test_a_recipe_of_ours_has_no_notes(tmp_path: Path) -> None:
    assert read_recipe()[1] == ()
    assert read_recipe(written(tmp_path, "epochs: 2\n"))[1] == ()


@pytest.mark.slow
def test_a_run_by_such_a_file_says_how_it_was_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path, "lr0: 0.01\nperspective: 0.001\n")
    words = ["train", str(data_folder()), "--recipe", str(path), "--image-size", "64", "--epochs", "1", "--batch", "4"]
    assert run([*words, "--out", str(tmp_path / "a")]) == 0
    said = [
        (
            f"recipe {path}: hyperparameters of another trainer, 2 names; what they leave open has the defaults of "
            "docs/recipes.md. They are taken so:"
        ),
        "lr0 0.01 -> optimizer.lr",
        f"warning: perspective 0.001 is ignored: {other_names()['perspective'].note}",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in said] == said
    assert json.loads((tmp_path / "a" / "run.json").read_text())["notes"] == said
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["decisions"][:3] == said
    assert "hyperparameters" not in (tmp_path / "a" / "recipe.yaml").read_text()
    assert run([*words, "--quiet", "--out", str(tmp_path / "b")]) == 0
    assert not set(capsys.readouterr().out.splitlines()) & set(said)
