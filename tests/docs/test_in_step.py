"""The Chinese pages and notebooks against the English ones, and the check itself against pages that are out of step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.translations import PAIRS, RECORD, differences, main, sections, stale

ROOT = Path(__file__).resolve().parents[2]

ENGLISH = """# Title

English | [Chinese](page.zh-CN.md). See [other](other.md#part) and ![a curve](curve.png).

| what | `where` |
|---|---|
| 3.5 minutes | `a.b` |

## One

```python
# ## no heading
x = 1
```

Text with `code` and 12 cells.

## Two

```sh
run
```
"""
CHINESE = """# 标题

[English](page.md) | 中文。见 ![曲线](curve.png) 与 [另一页](other.zh-CN.md#部分)。

| 内容 | `where` |
|---|---|
| 3.5 分钟 | `a.b` |

## 一

```python
# ## no heading
x = 1
```

共 12 个单元格与 `code`。

## 二

```sh
run
```
"""


def written(folder: Path, english: str = ENGLISH, chinese: str = CHINESE) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    for name, text in (("page.md", english), ("page.zh-CN.md", chinese), ("other.md", ""), ("other.zh-CN.md", "")):
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "page.md", folder / "page.zh-CN.md"


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_the_translation_is_in_step(english: str, chinese: str) -> None:
    assert differences(ROOT / english, ROOT / chinese) == []


def test_english_text_is_that_which_was_translated() -> None:
    assert stale(ROOT) == []


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_each_language_is_linked_at_the_top_of_the_other(english: str, chinese: str) -> None:
    for page, other in ((english, chinese), (chinese, english)):
        first = sections(ROOT / page)[1]
        assert f"]({Path(other).name})" in first.text, f"{page} should lead to {other} under its title"


def test_a_page_in_step_passes(tmp_path: Path) -> None:
    assert differences(*written(tmp_path)) == []


MUTATIONS = {
    "heading gone": ("## 二\n", "", "heading 3 is missing, in page.md it is '## Two'"),
    "heading too many": ("共 12", "### 多\n\n共 12", "heading 3 is '### 多', in page.md it is '## Two'"),
    "heading of another level": ("## 一", "### 一", "heading 2 is '### 一', in page.md it is '## One'"),
    "code": ("x = 1\n", "x = 2\n", "'一' ('One' in page.md): code block 1 differs at its line 3: 'x = 2'"),
    "space in code": ("x = 1\n", "x = 1 \n", "code block 1 differs at its line 3"),
    "kind of code": ("```sh", "```bash", "'二' ('Two' in page.md): code block 1 differs at its line 1"),
    "code gone": ("```sh\nrun\n```\n", "", "'二' ('Two' in page.md): code block 1 is missing"),
    "code too much": ("## 二\n", "```sh\n```\n\n## 二\n", "code block 2 is not in the English text"),
    "picture": ("curve.png", "other.png", "pictures differ: missing 'curve.png', not in the English text 'other.png'"),
    "link": (
        "other.zh-CN.md#",
        "others.md#",
        "links differ: missing 'other.md#', not in the English text 'others.md#'",
    ),
    "link out of the language": ("other.zh-CN.md", "other.md", "other.md#部分 has a translation, other.zh-CN.md"),
    "link gone": ("[另一页](other.zh-CN.md#部分)", "另一页", "links differ: missing 'other.md#'"),
    "row of a table": ("| 3.5 分钟 | `a.b` |\n", "3.5 `a.b`\n", "rows of tables differ: missing '2 columns'"),
    "column of a table": ("|---|---|", "|---|", "rows of tables differ: missing '2 columns'"),
    "code words": ("`a.b`", "`a.c`", "code words differ: missing 'a.b', not in the English text 'a.c'"),
    "number": ("3.5", "3.6", "'标题' ('Title' in page.md): numbers differ: missing '3.5'"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_page_out_of_step_is_told_with_its_heading(name: str, tmp_path: Path) -> None:
    before, after, expected = MUTATIONS[name]
    assert CHINESE.count(before) == 1
    messages = differences(*written(tmp_path, chinese=CHINESE.replace(before, after)))
    assert any(expected in message and message.startswith("page.zh-CN.md") for message in messages), messages


Cells = list[dict[str, Any]]


def cell(name: str, source: str, kind: str = "code") -> dict[str, Any]:
    outputs = {"outputs": [{"output_type": "stream", "text": ["1\n"]}]} if kind == "code" else {}
    return {"id": name, "cell_type": kind, "source": source.splitlines(keepends=True), **outputs}


def notebook(folder: Path, name: str, cells: Cells) -> Path:
    path = folder / name
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def change_code(cells: Cells) -> None:
    cells[1]["source"][1] = "print(x)"


def change_output(cells: Cells) -> None:
    cells[3]["outputs"][0]["text"] = ["2\n"]


def drop_cell(cells: Cells) -> None:
    del cells[3]


def swap_cells(cells: Cells) -> None:
    cells[2], cells[3] = cells[3], cells[2]


def merge_text(cells: Cells) -> None:
    cells[2]["source"] = ["no heading"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_code, "cell 2 (first): the code differs at its line 2: 'print(x)' instead of 'print(x + 1)'"),
        (change_code, "section 'T' ('T' in n.ipynb): code block 1 differs at its line 2"),
        (change_output, "cell 4 (second): the stored output differs"),
        (drop_cell, "cell 4 is missing"),
        (swap_cells, "cell 3 (more): is a code cell 'second', in English a markdown cell"),
        (merge_text, "heading 2 is missing, in n.ipynb it is '## U'"),
    ],
)
def test_a_notebook_out_of_step_is_told_with_its_cell(
    change: Callable[[Cells], None], expected: str, tmp_path: Path
) -> None:
    def cells() -> Cells:
        first, second = cell("first", "x = 1\nprint(x + 1)"), cell("second", "print(1)")
        return [cell("title", "# T\n", "markdown"), first, cell("more", "## U\n\nText.", "markdown"), second]

    changed = cells()
    english = notebook(tmp_path, "n.ipynb", cells())
    assert differences(english, notebook(tmp_path, "n.zh-CN.ipynb", changed)) == []
    change(changed)
    messages = differences(english, notebook(tmp_path, "n.zh-CN.ipynb", changed))
    assert any(expected in message for message in messages), messages


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of small pages, all translated and recorded."""
    for english, chinese in PAIRS:
        for name in (english, chinese):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            cells = [{"id": "a", "cell_type": "markdown", "source": ["# T\n", "\n", "Some text.\n", "## U\n"]}]
            path.write_text(json.dumps({"cells": cells}) if path.suffix == ".ipynb" else "".join(cells[0]["source"]))
    assert main(["--update"], tmp_path) == 0
    assert main([], tmp_path) == 0
    return tmp_path


@pytest.mark.parametrize("page", [english for english, _ in PAIRS])
def test_changed_english_text_asks_for_a_look_at_its_translation(
    page: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / page
    path.write_text(path.read_text().replace("Some text.", "Another text."))
    assert main([], root) == 1
    assert f"{page}, section 'T': changed since it was translated" in capsys.readouterr().out
    assert len(stale(root)) == 1
    assert main(["--update"], root) == 0
    assert main([], root) == 0


def test_other_line_breaks_are_no_change_of_the_text(root: Path) -> None:
    (root / "README.md").write_text("# T\n\nSome\ntext.\n\n## U\n")
    assert stale(root) == []


def test_a_section_that_was_never_translated_is_told(root: Path) -> None:
    for page in PAIRS[0]:
        (root / page).write_text("# T\n\nSome text.\n## U\n## U\n")
    (message,) = stale(root)
    assert "section 'U (2)'" in message


def test_pages_out_of_step_are_not_recorded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (root / RECORD).read_bytes()
    (root / "README.md").write_text("# T\n\nSome new text with `code`.\n## U\n")
    assert main(["--update"], root) == 1
    assert "code words differ: missing 'code'" in capsys.readouterr().out
    assert (root / RECORD).read_bytes() == before
