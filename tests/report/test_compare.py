"""Runs side by side: only what differs, the best marked, names that tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchorite.cli import run
from anchorite.errors import InputError
from anchorite.report.compare import comparison_page
from tests.report.fake_run import EVIL, make_full_run
from tests.report.test_run_report import Page


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first, second = make_full_run(tmp_path / "a" / "run"), make_full_run(tmp_path / "b" / "run", num_epochs=4)
    text = (second / "recipe.yaml").read_text()
    (second / "recipe.yaml").write_text(text.replace("seed: 0", "seed: 7"))
    for run_folder in (first, second):
        facts = (run_folder / "run.json").read_text()
        (run_folder / "run.json").write_text(facts.replace('"boxes": 5', '"boxes": 5, "fingerprint": "v"'))
    return [first, second]


def row_after(texts: list[str], name: str, count: int) -> list[str]:
    start = texts.index(name)
    return texts[start : start + count]


def test_only_settings_that_differ_are_shown(runs: list[Path], tmp_path: Path) -> None:
    texts = Page(comparison_page(runs)).texts
    start, end = texts.index("Settings that differ"), texts.index("Results")
    shown = texts[start:end]
    assert row_after(shown, "seed", 3) == ["seed", "0", "7"]
    assert row_after(shown, "epochs", 3) == ["epochs", "6", "4"]
    assert row_after(shown, "optimizer steps", 3) == ["optimizer steps", "24", "16"]
    assert "batch" not in shown
    assert "class gain" not in shown
    assert "None: the recipes are the same." in Page(comparison_page([runs[0], make_full_run(tmp_path / "c")])).texts


def test_labels_that_differ_are_counted_and_runs_without_counts_stand(runs: list[Path]) -> None:
    assert "Labels that differ" not in Page(comparison_page(runs)).texts
    old = {"split": "train", "images": 9, "boxes": 20, "ignored": 0}
    for run_folder, row in zip(runs, (old, {**old, "boxes": 13, "ignored": 7, "weighted": 4}), strict=True):
        facts = json.loads((run_folder / "run.json").read_text())
        (run_folder / "run.json").write_text(json.dumps({**facts, "checks": {"splits": [row], "findings": []}}))
    texts = Page(comparison_page(runs)).texts
    assert row_after(texts, "train: objects", 3) == ["train: objects", "20", "13"]
    assert row_after(texts, "train: weighted", 3) == ["train: weighted", "0", "4"]
    assert row_after(texts, "train: regions ignored", 3) == ["train: regions ignored", "0", "7"]
    assert "train: images" not in texts


def test_the_best_of_each_result_is_marked_unless_all_are_equal(runs: list[Path], tmp_path: Path) -> None:
    texts = Page(comparison_page(runs)).texts
    results = texts[texts.index("Results") :]
    assert row_after(results, "mAP", 4) == ["mAP", "0.6000", "(best)", "0.4000"]
    assert row_after(results, "time", 4) == ["time", "1:18", "52 s", "(best)"]
    classes = results[results.index("AP of each class") :]
    assert row_after(classes, "disc", 3) == ["disc", "1.0000", "1.0000"]


def test_scores_on_other_images_do_not_compare(runs: list[Path], tmp_path: Path) -> None:
    text = (runs[1] / "run.json").read_text()
    (runs[1] / "run.json").write_text(text.replace('"fingerprint": "v"', '"fingerprint": "w"'))
    texts = Page(comparison_page(runs)).texts
    assert "These runs were not measured on the same images: their scores do not compare." in texts
    assert "(best)" not in texts


def test_runs_of_one_name_are_told_apart_and_markup_is_text(runs: list[Path], tmp_path: Path) -> None:
    evil = runs[0].parent.rename(tmp_path / "<img src=x onerror=alert(1)>") / "run"
    page = Page(comparison_page([evil, runs[1]]))
    assert {"<img src=x onerror=alert(1)>/run", "b/run", EVIL} <= set(page.texts)
    assert page.all("img") == []
    assert page.source.count("<script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_runs_that_have_just_begun_compare_too(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("seed: 7\n")
    assert "No epoch has been completed yet." in comparison_page([tmp_path / "a", tmp_path / "b"])


def test_too_many_and_twice_the_same_are_refused(runs: list[Path]) -> None:
    with pytest.raises(InputError, match="named twice"):
        comparison_page([runs[0], runs[1], runs[0].parent / ".." / "a" / "run"])
    with pytest.raises(InputError, match="at most 16"):
        comparison_page(runs * 9)


def test_the_command_announces_a_page_that_is_never_an_old_one(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(folder) for folder in runs]
    for name in ("comparison.html", "comparison-2.html"):
        assert run(["report", *words]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: 2 runs")
        assert (tmp_path / name).is_file()
    assert run(["report", *words, "--out", "comparison.html"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["report", words[0], "--out", "page.htm"]) == 0
    assert (tmp_path / "page.htm").is_file()
    assert not (runs[0] / "report.html").exists()
    for wrong in (["--out", "x.txt"], ["--port", "80"], ["--serve", "--out", "y.html"], ["--serve", words[1]]):
        assert run(["report", words[0], *wrong]) == 2
        assert "anchorite: " in capsys.readouterr().err
