"""The page of the suspects: everything escaped, small, and its filters and keys in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from anchorite.data import DatasetIndex
from anchorite.report.suspects import KINDS, Ranking, Suspect, suspects_page
from tests.report.suspects_samples import EVIL, NAMES, right_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    return right_dataset(tmp_path_factory.mktemp("data"))


def ranking(data: DatasetIndex, count: int = 12) -> Ranking:
    """Suspects of all kinds in turn, of both splits."""
    places = [(split, record) for split, records in data.splits.items() for record in records]
    suspects = []
    for number in range(count):
        split, record = places[number % len(places)]
        kind = list(KINDS)[number % len(KINDS)]
        box = tuple(record.boxes_xyxy[0].tolist())
        is_missing = kind == "missing"
        suspects.append(
            Suspect(
                kind=kind,
                score=0.9 - number / 1000,
                split=split,
                image=record.path,
                origin="" if is_missing else record.origins[0],
                class_id=None if is_missing else number % 3,
                seen_class=(number + 1) % 3,
                seen_score=0.9,
                iou=0.5,
                label_xyxy=None if is_missing else box,
                seen_xyxy=None if kind == "spurious" else box,
                reason=f"labelled {EVIL}, number {number}",
                rank=number + 1,
                kind_rank=number // len(KINDS) + 1,
            )
        )
    return Ranking(tuple(suspects), 12, 36)


def page_of(data: DatasetIndex, ranked: Ranking, top: int = 100) -> str:
    return suspects_page(ranked, NAMES, data.root, f"data {EVIL}", "best.safetensors", top)


def test_texts_are_escaped_and_nothing_may_run_but_the_named_script(data: DatasetIndex) -> None:
    page = page_of(data, ranking(data))
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert") >= 13
    assert page.count("<script>") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "script-src &#39;sha256-" in policy[1]
    assert "unsafe" not in policy[1]
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count('class="card"') == 12
    assert "labels/00.txt:1" in page
    assert str(data.root) not in page


def test_no_more_than_asked_for_and_never_above_the_limit(data: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(data, ranking(data), top=5)
    assert page.count('class="card"') == 5
    assert "Shown: 5 of 12" in page
    monkeypatch.setattr("anchorite.report.suspects.MAX_PAGE_BYTES", 40_000)
    many = page_of(data, ranking(data, 60))
    assert len(many.encode()) <= 40_000
    count = many.count('class="card"')
    assert count < 60
    assert f"Shown: {count} of 60" in many


def test_nothing_suspect_is_said(data: DatasetIndex) -> None:
    page = page_of(data, Ranking((), 12, 36))
    assert "Nothing is suspect" in page
    assert 'class="card"' not in page


@pytest.mark.browser
def test_filters_and_keys_work_in_a_browser(data: DatasetIndex, browser: object, tmp_path: Path) -> None:
    from tests.pages import opened

    path = tmp_path / "suspects.html"
    path.write_text(page_of(data, ranking(data)), encoding="utf-8")
    with opened(browser, path) as page:  # type: ignore[arg-type]
        shown = page.locator(".card:visible")
        assert shown.count() == 12
        page.click('button[data-kind="missing"]')
        assert shown.count() == 2
        assert page.inner_text("#meaning") == KINDS["missing"]
        assert {card.get_attribute("data-kind") for card in shown.all()} == {"missing"}
        page.select_option("#split", "val")
        assert shown.count() == 1
        page.select_option("#class", label=EVIL)
        assert shown.count() == 0
        assert page.is_visible("#none")
        page.click('button[data-kind=""]')
        expected = sum(1 for number in range(6, 12) if (number + 1) % 3 == 0 or (number % 3 == 0 and number % 6 != 1))
        assert shown.count() == expected
        page.select_option("#split", "")
        page.select_option("#class", "")
        assert page.inner_text("#place") == "12 shown"
        page.keyboard.press("Escape")
        page.locator("h1").click()
        page.keyboard.press("j")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#place") == "2 of 12"
        assert page.evaluate("document.activeElement.querySelector('.rank').textContent") == "#2"
        page.keyboard.press("k")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#place") == "1 of 12"
        page.click("#next")
        assert page.inner_text("#place") == "2 of 12"
        page.click('button[data-kind="class"]')
        assert page.inner_text("#place") == "2 shown"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_width_makes_the_page_scroll_sideways(
    data: DatasetIndex, browser: object, tmp_path: Path, width: int
) -> None:
    from tests.pages import opened

    ranked = ranking(data)
    long = replace(ranked, suspects=tuple(replace(one, origin="a" * 200 + ":1") for one in ranked.suspects))
    path = tmp_path / "suspects.html"
    path.write_text(page_of(data, long), encoding="utf-8")
    with opened(browser, path, width=width) as page:  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
