"""docs/security.md names tests that exist, and requirements.lock the versions that are tested."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def promises() -> dict[str, list[str]]:
    """The rows of the table: promise and its tests."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {promise: tests.split(", ") for promise, tests in rows if promise != "promise"}


def test_every_promise_has_tests_that_exist() -> None:
    table = promises()
    assert len(table) >= 14
    for promise, tests in table.items():
        assert tests, promise
        for name in tests:
            file, _, function = name.partition("::")
            assert (ROOT / file).is_file(), f"{promise}: no file {file}"
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function.startswith("test_"), name
            assert function in found, f"{promise}: no test {name}"


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_has_every_dependency_at_the_tested_version() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^ +]+)(\+\w+)? --hash=sha256:[0-9a-f]{64}", line)
        assert match is not None, line
        locked[plain(match[1])] = match[2]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for name, version in pinned.items():
        assert locked.get(plain(name), version) == version, f"{name}: run make lock"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert plain(re.split(r"[<>=~!\[ ]", requirement)[0]) in locked, f"{requirement}: run make lock"
