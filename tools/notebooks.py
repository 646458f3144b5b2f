"""Run the notebooks, and bring their Chinese versions up to them: code and outputs of the English one, their own text.

`python tools/notebooks.py` after a change to an English notebook. Cells are told apart by their ids, so a text cell
that is new in English has to be added to the Chinese notebook, with the same id, first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
_TIMEOUT_S = 120
# Nothing that names the machine: a notebook that was run elsewhere must not differ.
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path) -> NotebookNode:
    """The notebook of a file, in the newest format."""
    return nbformat.read(path, as_version=4)


def executed(notebook: NotebookNode) -> NotebookNode:
    """The notebook as a fresh kernel of this interpreter leaves it; raises CellExecutionError where a cell fails."""
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # What a cell prints arrives in parts that depend on the moment; coalesced, it is stored the same every time.
    client = NotebookClient(
        copy,
        timeout=_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": FOLDER}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    copy.metadata = nbformat.from_dict(_METADATA)
    return copy


def with_text_of(english: NotebookNode, translation: NotebookNode) -> NotebookNode:
    """The English notebook with the translation's text cells; raises KeyError for a cell that has no translation."""
    text = {cell.id: cell.source for cell in translation.cells if cell.cell_type == "markdown"}
    copy = nbformat.from_dict(english)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = text[cell.id]
    return copy


def main() -> int:
    """Run every English notebook and rewrite it and its translation."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem.endswith(".zh-CN"):
            continue
        chinese_path = path.with_suffix(".zh-CN.ipynb")
        english = executed(read(path))
        try:
            chinese = with_text_of(english, read(chinese_path))
        except KeyError as error:
            print(f"{chinese_path}: no text cell with the id {error}; translate that cell of {path.name} there")
            return 2
        nbformat.write(english, path)
        nbformat.write(chinese, chinese_path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
