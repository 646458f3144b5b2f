"""The notebooks: what is stored is what running them gives, and their asserts hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tools.notebooks import FOLDER, executed, read

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ENGLISH = [path for path in NOTEBOOKS if not path.stem.endswith(".zh-CN")]
NUMBER = re.compile(r"-?\d+(?:\.(\d+))?")


def texts(cell: NotebookNode) -> list[str]:
    """What a code cell printed and showed as text."""
    outputs = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", [])]
    return ["".join(output) for output in outputs]


def pictures(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def same(stored: str, now: str) -> bool:
    """Whether two outputs agree in their words, and in each number to one unit of its last printed digit."""
    # Without blanks, because a minus before a zero moves what stands behind it.
    if "".join(NUMBER.sub("0", stored).split()) != "".join(NUMBER.sub("0", now).split()):
        return False
    pairs = zip(NUMBER.finditer(stored), NUMBER.finditer(now), strict=True)
    # Whole numbers are counts and indices: those are exact.
    return all(
        abs(float(one[0]) - float(other[0])) <= (1.01 * 10 ** -len(one[1]) if one[1] else 0) for one, other in pairs
    )


@pytest.mark.parametrize(
    ("stored", "now", "agree"),
    [
        ("box 0.123, 7 places", "box 0.124, 7 places", True),
        ("box 0.123, 7 places", "box 0.125, 7 places", False),
        ("box 0.123, 7 places", "box 0.123, 8 places", False),
        ("box 0.123", "boxes 0.123", False),
        ("[ 0.000,  1]", "[-0.000,  1]", True),
        ("1.20 2.30", "1.20", False),
    ],
)
def test_outputs_are_compared_to_the_last_printed_digit(stored: str, now: str, agree: bool) -> None:
    assert same(stored, now) is agree


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_as_it_was_run(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(texts(cell) or pictures(cell) for cell in code[1:]), "a cell shows nothing"
    assert not any(output.get("name") == "stderr" for cell in code for output in cell.outputs)
    assert sum(map(pictures, code)) >= 5
    assert sum("assert" in cell.source for cell in code) >= 8
    assert path.stat().st_size < 1.5e6


@pytest.mark.slow
@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.name)
def test_running_a_notebook_gives_what_is_stored(path: Path) -> None:
    stored = read(path)
    now = executed(stored)
    for number, (one, other) in enumerate(zip(stored.cells, now.cells, strict=True), start=1):
        if one.cell_type != "code":
            continue
        where = f"cell {number} ({one.id}) of {path.name}"
        assert pictures(one) == pictures(other), where
        for before, after in zip(texts(one), texts(other), strict=True):
            assert same(before, after), f"{where} stores\n{before}\nand gives\n{after}"


@pytest.mark.slow
def test_the_kernel_is_this_interpreter() -> None:
    source = "import sys\nprint(sys.prefix)"
    notebook = executed(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]))
    assert texts(notebook.cells[0]) == [sys.prefix + "\n"]


@pytest.mark.slow
def test_a_failing_cell_fails_the_run() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(CellExecutionError, match="AssertionError"):
        executed(notebook)
