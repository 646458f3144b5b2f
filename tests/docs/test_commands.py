"""What the pages tell the reader to type exists: commands, flags, recipe fields, targets of make, imports, links."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from anchorite.cli import build_app
from tests.train.test_docs import ROOT, flags_of, recipe_fields

PAGES = sorted([ROOT / "README.md", *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)])
GLOBAL_FLAGS = {"--help", "--version", "--debug"}


@cache
def commands() -> set[str]:
    return {name for name in build_app() if not name.startswith("-")}


@cache
def flags(command: str) -> set[str]:
    return flags_of(command) | GLOBAL_FLAGS


def typed(page: Path) -> list[str]:
    """Command lines of anchorite on a page, in blocks and within the text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = [line.replace("\n", " ") for line in re.findall(r"(?<!`)`(anchorite [^`]+)`(?!`)", text)]
    return [line for line in [*lines, *inline] if re.match(r"(source \S+ && )?anchorite ", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_can_be_typed(page: Path) -> None:
    fields = dict(recipe_fields())
    for line in typed(page):
        words = shlex.split(line.partition(" anchorite ")[2] or line.removeprefix("anchorite "), comments=True)
        command, rest = words[0], words[1:]
        if command.startswith("--"):
            assert command in GLOBAL_FLAGS, line
            continue
        assert command == "COMMAND" or command in commands(), f"{page.name}: {line}"
        for word, following in itertools.pairwise([*rest, ""]):
            if command in commands() and word.startswith("--"):
                assert word.partition("=")[0] in flags(command), f"{page.name}: {line}"
            if word == "--set" and following:
                assert following.partition("=")[0] in fields, f"{page.name}: {line}"


def test_command_lines_are_found_at_all() -> None:
    assert sum(len(typed(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_parses_and_its_imports_exist(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named <= targets
