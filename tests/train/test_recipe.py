"""Recipes: round trip, overrides, and what a user who types wrong things is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.errors import InputError
from anchorite.train import built_in_recipes, load_recipe, parse_setting


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
    assert parse_setting("optimizer.rate=1e-3") == ("optimizer.rate", 0.001)
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
        ("epochs: 3\noptimizer:\n  rat: 0.1\n", ["r.yaml:3: optimizer.rat", "did you mean optimizer.rate"]),
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


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"small-data.*did you mean small-data"):
        load_recipe("smal-data")
