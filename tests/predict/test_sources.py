from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.errors import InputError
from anchorite.predict.sources import expand_sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [
        "b.jpg",
        "a.PNG",
        "notes.txt",
        ".hidden.jpg",
        "sub/c.jpeg",
        "sub/.cache/d.jpg",
        "odd[1].jpg",
        "raw.dat",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths: list[Path], tree: Path) -> list[str]:
    return [str(path.resolve().relative_to(tree.resolve())) for path in paths]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["b.jpg"], ["b.jpg"]),
        (["raw.dat"], ["raw.dat"]),
        ([".hidden.jpg"], [".hidden.jpg"]),
        (["."], ["a.PNG", "b.jpg", "odd[1].jpg"]),
        (["*.jpg"], ["b.jpg", "odd[1].jpg"]),
        (["*"], ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.jpeg"]),
        (["**"], ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.jpeg"]),
        (["**/*.jp*g"], ["b.jpg", "odd[1].jpg", "sub/c.jpeg"]),
        (["odd[1].jpg"], ["odd[1].jpg"]),
        (["sub", "b.jpg"], ["sub/c.jpeg", "b.jpg"]),
        (["b.jpg", "./b.jpg", "."], ["b.jpg", "a.PNG", "odd[1].jpg"]),
    ],
)
def test_what_sources_stand_for(tree, sources, expected):
    assert names(expand_sources(sources), tree) == expected


def test_absolute_patterns_and_paths(tree):
    assert names(expand_sources([str(tree / "*.PNG"), tree / "sub"]), tree) == ["a.PNG", "sub/c.jpeg"]


def test_recursive_enters_subfolders_but_no_hidden_ones(tree):
    assert names(expand_sources([tree], recursive=True), tree) == ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.jpeg"]


def test_nothing_found_names_every_source_and_where_it_was_looked_for(tree):
    with pytest.raises(InputError) as error:
        expand_sources(["b.jpg", "missing.jpg", "empty", "*.webp"])
    missing, empty, pattern = str(error.value).splitlines()
    assert missing.startswith("missing.jpg: no such file or folder")
    assert str(tree) in missing
    assert empty.startswith("empty: no image in this folder")
    assert "--recursive" in empty
    assert "jpeg" in empty
    assert pattern.startswith("*.webp: no image matches this pattern")


def test_no_source_at_all_is_an_error():
    with pytest.raises(InputError, match="no source given"):
        expand_sources([])
