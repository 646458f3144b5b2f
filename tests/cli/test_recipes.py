"""`anchorite recipes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.recipe_names import built_in_recipes
from anchorite.train import load_recipe


def test_the_list_holds_every_recipe_with_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    output = capsys.readouterr().out
    for name, text in built_in_recipes().items():
        assert f"\n{name}\n" in f"\n{output}"
        assert text.splitlines()[0].lstrip("# ") in output


def test_a_printed_recipe_can_be_used_as_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["recipes", "from-scratch"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(path) == load_recipe("from-scratch")
