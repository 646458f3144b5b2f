from __future__ import annotations

from pathlib import Path

import pytest

from anchorite.errors import InputError
from anchorite.predict.sources import expand_sources, open_sources, passed_over_text


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


def test_files_that_are_no_images_are_told_of_folders_only(tree):
    (tree / "sub" / "phone.HEIC").touch()
    (tree / "sub" / "film.mp4").touch()
    passed_over: list[Path] = []
    expand_sources([tree, "sub", "raw.dat", "*.jpg"], passed_over=passed_over)
    assert names(passed_over, tree) == ["notes.txt", "raw.dat", "sub/film.mp4", "sub/phone.HEIC"]
    text = passed_over_text(passed_over)
    assert text.startswith("4 files are no images and were passed over: notes.txt, raw.dat, film.mp4, phone.HEIC")
    assert "HEIC images are not read: convert them" in text
    assert passed_over_text([Path("a.txt")]) == "1 file is no image and was passed over: a.txt"
    assert open_sources([str(tree)]).passed_over == [tree / "notes.txt", tree / "raw.dat"]
    assert open_sources(["b.jpg"]).passed_over == []
