"""README and docs against the code: every recipe field, flag and name they speak of, and none that is not there."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from anchorite.cli import build_app
from anchorite.data.dataset import Adjustment, AdjustmentKind
from anchorite.recipe_names import built_in_recipes
from anchorite.train import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = tuple(sorted(name for name in build_app() if not name.startswith("-")))
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def recipe_fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every single value of a recipe."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from recipe_fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def allowed(field: FieldInfo) -> str:
    """The values that a field takes, as its model states them; empty where anything of its type goes."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "true, false"
    limits = [(sign, getattr(limit, key)) for key, sign in BOUNDS for limit in field.metadata if hasattr(limit, key)]
    return ", ".join(f"{sign} {value:g}" for sign, value in limits)


def test_every_kind_of_adjustment_is_explained() -> None:
    page = read("docs/data.md")
    for kind in get_args(AdjustmentKind):
        assert f'"{kind}"' in str(Adjustment.__doc__)
        assert f"| {kind} |" in page or f"`{kind}`" in page


def test_sections_that_the_code_cites_exist() -> None:
    cited: set[tuple[str, str]] = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        cited |= set(re.findall(r"\b(docs/[\w-]+\.md)(?:, section (\d+))?", path.read_text(encoding="utf-8")))
    assert ("docs/objective.md", "3") in cited
    assert [page for page, _ in cited if not (ROOT / page).is_file()] == []
    assert [(page, number) for page, number in cited if number and f"\n## {number}. " not in read(page)] == []


def table_rows() -> dict[str, str]:
    """By field, how its row of the table in docs/recipes.md begins."""
    return {
        name: f"| `{name}` | `{json.dumps(field.default)}` | {allowed(field)} |".replace("|  |", "| |")
        for name, field in recipe_fields()
    }


def test_the_recipe_table_has_each_field_with_default_limits_and_meaning() -> None:
    section = read("docs/recipes.md").partition("## Every field")[2]
    lines = {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}
    expected = table_rows()
    assert sorted(lines) == sorted(expected)
    for name, beginning in expected.items():
        assert lines[name].startswith(beginning), f"docs/recipes.md says {lines[name]}, expected {beginning} ..."
        assert len(lines[name].removeprefix(beginning).strip(" |")) > 3, f"{name} has no meaning"


def test_each_built_in_recipe_is_described() -> None:
    text = read("docs/recipes.md")
    assert [name for name in built_in_recipes() if f"`{name}`" not in text] == []


def flags_of(command: str, *, hidden: bool = True) -> set[str]:
    """Every flag that a command takes, with or without those that its help leaves out."""
    app = build_app()
    arguments = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    shown = [argument for argument in arguments if hidden or argument.show]
    return {name for argument in shown for name in argument.names if name.startswith("--")}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_section_of_a_command_has_its_flags_and_no_other(command: str) -> None:
    _, _, rest = read("docs/command-line.md").partition(f"\n## {command}\n")
    section = rest.partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `--")]
    assert {flag for cell in cells for flag in re.findall(r"`(--[\w-]+)`", cell)} == flags_of(command, hidden=False)


def test_each_command_has_a_section() -> None:
    assert len(COMMANDS) > 10
    assert set(COMMANDS) == set(re.findall(r"^## (\w+)$", read("docs/command-line.md"), re.MULTILINE))


def resolves(dotted: str) -> bool:
    """Whether `anchorite.a.b.C.d` can be reached by importing and looking up."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_exist(page: Path) -> None:
    names = set(re.findall(r"`(anchorite(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text(encoding="utf-8")))
    assert sorted(name for name in names if not resolves(name)) == []


def test_recipe_fields_beside_those_of_others_exist() -> None:
    groups = "|".join(name for name, field in Recipe.model_fields.items() if isinstance(field.default, BaseModel))
    named = set(re.findall(rf"`((?:{groups})\.\w+)`", read("docs/other-trainers.md")))
    assert len(named) > 30
    assert named <= dict(recipe_fields()).keys()


def test_the_tree_in_the_readme_is_that_of_the_package() -> None:
    tree = read("README.md").partition("```text\nsrc/anchorite/\n")[2].partition("```")[0]
    room, rooms = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        is_of_room = line.startswith("    ")
        if name.endswith("/") and not is_of_room:
            room = name
            rooms.add(name)
        else:
            assert (ROOT / "src/anchorite" / (room if is_of_room else "") / name).exists(), line
    existing = {f"{path.parent.name}/" for path in (ROOT / "src/anchorite").glob("*/__init__.py")}
    assert rooms == existing


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_imports_of_the_readme_exist() -> None:
    blocks = python_blocks(read("README.md"))
    assert len(blocks) == 2
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_loss_of_the_readme_runs() -> None:
    names: dict[str, Any] = {}
    exec(python_blocks(read("README.md"))[1], names)
    assert names["terms"].total.isfinite()
    assert all(level.grad is not None and level.grad.isfinite().all() for level in names["logits"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
