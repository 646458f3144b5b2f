"""The page of a run: everything shown, everything escaped, nothing fetched, small, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anchorite.errors import InputError
from anchorite.report import write_run_report
from anchorite.report.run_data import flatten
from tests.report.fake_run import EVIL, make_run, write_metrics, write_pictures


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page outside its style sheet and script."""

    def __init__(self, page: Path | str) -> None:
        super().__init__()
        self.source = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip() and self.tags[-1][0] not in ("style", "script"):
            self.texts.append(data.strip())

    def charts(self) -> list[dict[str, str | None]]:
        return [attributes for attributes in self.all("svg") if attributes.get("class") == "chart"]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "first")


def test_the_page_shows_what_the_run_left(run_folder: Path) -> None:
    path = write_run_report(run_folder)
    assert path == run_folder / "report.html"
    page = Page(path)
    shown = set(page.texts)
    assert {
        "first",
        "Training losses",
        "Validation scores",
        "Pace",
        "Decisions",
        "Dataset",
        "Validation",
        "Recipe",
    } <= shown
    assert {"box", "objectness", "classification", "map", "map50", "lr", "images_per_second", "seconds"} <= shown
    assert "epoch" not in shown
    assert {"train.rate", "0.01", "train.compile", "no", "model.anchors.1", "16, 30"} <= shown
    assert {"train.boxes", "1981", "torch", "2.13.0", "0.9123", "0.8123", "0.8765"} <= shown
    assert "precision: float32, because the CPU has no bfloat16 arithmetic" in shown
    assert len(page.charts()) == 8
    assert all("NaN" not in str(attributes.get("d")) for attributes in page.all("path"))
    assert len(page.all("img")) == 2 + 6
    assert {"confusion.png", "scene_05.jpg"} <= shown


def test_unknown_parts_of_a_summary_are_shown_too(run_folder: Path) -> None:
    per_class = [{"name": "disc", "map": 0.25, "note": None}, {"name": "ring", "found": 3}]
    summary = {"reason": "patience ran out", "best_map": 0.75, "last_validation": {"map": 0.5, "classes": per_class}}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    page = Page(write_run_report(run_folder))
    texts = page.texts
    assert texts[texts.index("Result") :][:5] == ["Result", "reason", "patience ran out", "best_map", "0.75"]
    start = texts.index("Last validation")
    assert texts[start : start + 7] == ["Last validation", "map", "0.5", "name", "map", "note", "found"]
    assert texts[start + 7 : start + 15] == ["disc", "0.25", "-", "-", "ring", "-", "-", "3"]
    assert [one["aria-label"] for one in page.all("table")] == ["COCO numbers", "classes"]


def test_the_best_score_and_its_epoch_come_first(run_folder: Path) -> None:
    rows = ["epoch,val/map50,images_per_second", "1,0.2,10", "2,0.61,30", "3,nan,20", "4,0.5,20"]
    (run_folder / "metrics.csv").write_text("\n".join(rows))
    texts = Page(write_run_report(run_folder)).texts
    position = texts.index("Best val/map50")
    assert texts[position : position + 3] == ["Best val/map50", "0.61", "at epoch 2"]
    assert texts[texts.index("Epochs") + 1] == "4"
    assert texts[texts.index("Images a second") + 1] == "20"
    assert "best 0.61 at epoch 2, 1 without a number" in texts


def test_markup_in_names_is_text_and_nothing_else(run_folder: Path) -> None:
    renamed = run_folder.rename(run_folder.with_name("<img src=x onerror=alert(1)>"))
    metrics = (renamed / "metrics.csv").read_text().replace("train/box", 'train/"><b onclick=x>')
    (renamed / "metrics.csv").write_text(metrics)
    (renamed / "plots" / "confusion.png").rename(renamed / "plots" / "'\"><script>.png")
    page = Page(write_run_report(renamed))
    assert page.all("script") == [{}]
    assert page.source.count("<script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img") if attributes["src"])
    assert len(page.all("img")) == 8
    shown = " ".join(page.texts)
    assert shown.count(EVIL) >= 3  # table, decisions, recipe, dataset
    assert '"><b onclick=x>' in shown
    assert "<img src=x onerror=alert(1)>" in shown


def test_nothing_is_fetched_and_the_policy_allows_the_page_itself_only(run_folder: Path) -> None:
    page = Page(write_run_report(run_folder))
    assert page.all("link") == page.all("iframe") == page.all("a") == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(", page.source)
    policies = [
        meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    style = page.source.split("<style>")[1].split("</style>")[0]
    script = page.source.split("<script>")[1].split("</script>")[0]
    of_style, of_script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    allowed = f"img-src data:; style-src 'sha256-{of_style}'; script-src 'sha256-{of_script}'"
    assert policies == [f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"]
    assert not any("style" in attributes for _, attributes in page.tags)  # the policy would block them
    first_tags = [tag for tag, _ in page.tags]
    assert first_tags.index("style") > first_tags.index("meta")
    assert "prefers-color-scheme: dark" in style


def test_the_page_stays_small_whatever_the_run_left(run_folder: Path) -> None:
    write_metrics(run_folder, 5000)
    write_pictures(run_folder, num_predictions=20, side=900)  # noise, which JPEG cannot compress: > 800 kB each
    path = write_run_report(run_folder)
    assert path.stat().st_size <= 3_000_000
    page = Page(path)
    left_out = next(text for text in page.texts if text.startswith("Left out:"))
    shown = [text for text in page.texts if text.startswith("scene_")]
    assert 4 <= len(shown) <= 16
    assert len(shown) + left_out.count("scene_") == 20


def test_at_most_sixteen_predictions_are_shown_and_the_others_named(run_folder: Path) -> None:
    write_pictures(run_folder, num_predictions=18, side=40)
    page = Page(write_run_report(run_folder))
    assert len(page.all("img")) == 2 + 16
    assert "Left out: scene_16.jpg (only 16 are shown), scene_17.jpg (only 16 are shown)." in page.texts


def test_a_page_of_a_thousand_columns_and_classes_stays_small(run_folder: Path) -> None:
    names = [f"val/map_{i}" for i in range(1000)]
    rows = [",".join([str(epoch), *(f"{(epoch * i) % 97 / 97:.5f}" for i in range(1000))]) for epoch in range(60)]
    (run_folder / "metrics.csv").write_text("\n".join([",".join(["epoch", *names]), *rows]))
    table = [{"class": f"class {i}", "map": i / 1000} for i in range(1500)]
    (run_folder / "summary.json").write_text(json.dumps({"validation": {"rows": table}}))
    path = write_run_report(run_folder)
    page = Page(path)
    assert path.stat().st_size <= 3_000_000
    assert len(page.all("figure")) >= 1000
    assert "500 more rows are left out." in page.texts


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 7\n")
    texts = Page(write_run_report(tmp_path)).texts
    assert "No epoch has been completed yet." in texts
    assert {"seed", "7"} <= set(texts)
    (tmp_path / "metrics.csv").write_text("epoch,train/box\n")
    assert "no epoch yet" in Page(write_run_report(tmp_path)).texts


def test_a_last_line_cut_short_is_a_gap_not_an_error(run_folder: Path) -> None:
    (run_folder / "metrics.csv").write_text("epoch,train/box,val/map\n1,0.5,0.1\n2,0.4,0.2\n3,0.3")
    texts = Page(write_run_report(run_folder)).texts
    assert "0.3" in texts
    assert "best 0.2 at epoch 2, 1 without a number" in texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", "a: 1\nb: [1, 2\nc: 3\n", r"recipe\.yaml:3: not valid YAML"),
        (
            "recipe.yaml",
            "a: !!python/object/apply:os.system [id]\n",
            r"recipe\.yaml:1: the tag .*os\.system' is not read",
        ),
        ("recipe.yaml", "- 1\n", r"recipe\.yaml: must be a mapping"),
        ("summary.json", '{"a": 1,\n"b": }\n', r"summary\.json:2:6: not valid JSON"),
        ("summary.json", "[1]", r"summary\.json:1:1: a JSON object .* is wanted, not list"),
        ("summary.json", "[" * 100_000, r"summary\.json: not readable as JSON"),
        ("metrics.csv", "epoch,a\n1," + "9" * 200_000, r"metrics\.csv: not valid CSV"),
    ],
)
def test_malformed_files_are_named_with_their_line(run_folder: Path, name: str, content: str, message: str) -> None:
    before = write_run_report(run_folder).read_bytes()
    (run_folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_run_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == before


def test_an_alias_bomb_in_the_recipe_is_refused(run_folder: Path) -> None:
    levels = ["l0: &l0 {x: 1}"] + [f"l{i}: &l{i} [" + ", ".join([f"*l{i - 1}"] * 9) + "]" for i in range(1, 12)]
    (run_folder / "recipe.yaml").write_text("\n".join(levels))
    with pytest.raises(InputError, match=r"recipe\.yaml:2: the alias \*l0 repeats a collection"):
        write_run_report(run_folder)


def test_more_settings_than_anyone_reads_are_cut_off() -> None:
    rows = flatten({f"v{number}": 1 for number in range(6000)})
    assert len(rows) == 5001
    assert rows[-1] == ("...", "only the first 5000 are shown")


@pytest.mark.parametrize(
    "odd", [{"validation": 3, "decisions": "one", "dataset": "here"}, {"validation": {"rows": [1, 2]}}, {}]
)
def test_a_summary_of_another_shape_is_shown_as_far_as_possible(run_folder: Path, odd: dict[str, object]) -> None:
    (run_folder / "summary.json").write_text(json.dumps(odd))
    texts = Page(write_run_report(run_folder)).texts
    assert {str(value) for value in odd.values() if not isinstance(value, dict)} <= set(texts)


def test_a_lone_surrogate_does_not_stop_the_page(run_folder: Path) -> None:
    (run_folder / "summary.json").write_text('{"decisions": ["before \\ud800 after"]}')
    assert "before ? after" in Page(write_run_report(run_folder)).texts


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"not the folder of a run.*runs/NAME"):
            write_run_report(folder)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_none_are_left_out_by_name(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "plots" / "a.png").write_text("<svg onload=alert(1)>")
    (run_folder / "plots" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 200_000)
    shutil.copy(run_folder / "plots" / "confusion.png", tmp_path / "outside.png")
    (run_folder / "plots" / "c.png").symlink_to(tmp_path / "outside.png")
    page = Page(write_run_report(run_folder))
    left_out = next(text for text in page.texts if text.startswith("Left out:"))
    assert all(f"{name}.png (not a readable PNG or JPEG)" in left_out for name in "abc")
    assert len(page.all("img")) == 8
