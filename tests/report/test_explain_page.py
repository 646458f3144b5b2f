"""The explain page in Chromium: its rule agrees with Python's, and mouse, keys, touch and sliders do what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.loss import assign
from anchorite.loss.assign import ignored_cells
from tests.loss.cases import random_case
from tests.pages import opened
from tests.report.explained import EVIL, dataset_in, explained_val, partly_known, setting_of, targets_of
from tests.unchecked import unchecked_shapes

pytestmark = pytest.mark.browser

NUM_CASES = 250


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The page of four images without weights, and their facts."""
    return written(tmp_path_factory.mktemp("plain"), costs=False)


@pytest.fixture(scope="module")
def costly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The same with weights."""
    return written(tmp_path_factory.mktemp("costly"), costs=True)


def written(folder: Path, *, costs: bool) -> tuple[Path, list[dict[str, Any]]]:
    dataset = dataset_in(folder / "data", f"['{EVIL}', dog]")
    html, facts = explained_val(dataset, setting_of(dataset, costs=costs), "lost", "crash", "many", "empty")
    path = folder / "explain.html"
    path.write_text(html, encoding="utf-8")
    return path, facts["images"]


@pytest.fixture
def page(browser: Browser, plain: tuple[Path, list[dict[str, Any]]]) -> Iterator[Page]:
    with opened(browser, plain[0]) as page:
        yield page


def rows_of(level: Any) -> list[list[float]]:
    """Candidates of a level as anchor, target, column, row and box target."""
    whole = torch.stack([level.anchor, level.target, level.column, level.row], dim=1).double()
    return torch.cat([whole, level.box.double()], dim=1).tolist()


def random_tasks() -> list[dict[str, Any]]:
    """Levels of generated cases: borders and middles of cells, edges, sides at the limit, grids of any shape."""
    tasks = []
    for seed in range(NUM_CASES):
        case = random_case(seed)
        rows = case.rows if seed % 2 else case.rows.astype(np.float32).astype(np.float64)
        targets = Targets.from_rows(torch.from_numpy(rows.copy()))
        found = assign(targets, case.anchors, case.grids, case.settings.ratio_limit)
        for number, (level, (height, width)) in enumerate(zip(found, case.grids, strict=True)):
            tasks.append(
                {
                    "boxes": rows[:, 2:].tolist(),
                    "anchors": [list(pair) for pair in case.anchors.sizes_px[number]],
                    "stride": case.anchors.strides[number],
                    "rows": height,
                    "columns": width,
                    "limit": case.settings.ratio_limit,
                    "wanted": rows_of(level),
                }
            )
    return tasks


_CANDIDATES = """tasks => tasks.map((one) =>
  assignLevel(one.boxes, anchorsInCells(one.anchors, one.stride), one.rows, one.columns, one.limit)
    .map((place) => [place.anchor, place.target, place.column, place.row, ...place.box]))"""


def test_the_rule_in_the_page_agrees_with_pythons(page: Page) -> None:
    with unchecked_shapes():
        tasks = random_tasks()
    found = page.evaluate(_CANDIDATES, [{**task, "wanted": None} for task in tasks])
    for task, places in zip(tasks, found, strict=True):
        assert places == task["wanted"], task
    assert sum(len(task["boxes"]) for task in tasks) > 1500
    assert sum(len(task["wanted"]) for task in tasks) > 1500
    assert any(task["rows"] != task["columns"] for task in tasks)


_IGNORED = """tasks => tasks.map((one) => ignoredLevel(one.boxes, anchorsInCells(one.anchors, one.stride), one.rows,
  one.columns, one.limit).map((cell) => [cell.row, cell.column, cell.anchor]))"""


def test_the_rule_of_ignored_places_agrees_with_pythons(page: Page) -> None:
    with unchecked_shapes():
        tasks = random_tasks()[::2]
    found = page.evaluate(_IGNORED, [{**task, "wanted": None} for task in tasks])
    sizes = set()
    for task, cells in zip(tasks, found, strict=True):
        regions = torch.tensor([[0, *box] for box in task["boxes"]], dtype=torch.float64).view(-1, 5)
        anchors = torch.tensor(task["anchors"], dtype=torch.float64) / task["stride"]
        shape = (1, task["rows"], task["columns"], len(anchors))
        wanted = ignored_cells(regions, anchors, shape, task["limit"])[0].nonzero().tolist()
        assert sorted(map(list, {tuple(cell) for cell in cells})) == wanted, task
        sizes.add(len(wanted))
    assert len(sizes) > 30


def test_a_region_says_what_it_ignores_and_why(browser: Browser, tmp_path: Path) -> None:
    dataset = partly_known(dataset_in(tmp_path / "data"))
    html, facts = explained_val(dataset, setting_of(dataset, costs=True), "many", "empty")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    image = facts["images"][0]
    with opened(browser, tmp_path / "page.html") as page:
        assert value(page, "Ignored regions") == 2
        assert value(page, "Weighted") == 1
        expect(page.locator("#image-note")).to_contain_text("(cats) do not cover dog")
        expect(page.locator("#image-note")).to_contain_text("counts 0.5")
        expect(page.locator("#boxes thead")).to_contain_text("Weight")
        expect(page.locator("#background-costs")).not_to_contain_text("missing label?")
        for number in range(3):
            cells = page.evaluate(f"new Set(ignoredNow()[{number}].map(cellKey)).size")
            assert cells == image["costs"]["levels"][number]["not_counted"]
        page.get_by_role("button", name="R2 of any class").click()
        expect(page.locator("#object")).to_contain_text("ignored class")
        expect(page.locator("#object table")).to_contain_text("P3")
        page.get_by_role("button", name="P3").click()
        assert page.locator("#stage .ignored path").first.get_attribute("d")
        page.locator("#boxes button").first.click()  # an object takes the region's place
        expect(page.locator("#object")).not_to_contain_text("ignored class")
        assert page.evaluate("state.region") is None
        page.locator("#stage").press("ArrowRight")
        expect(page.locator("#regions")).to_be_hidden()
        assert page.locator("#stage .ignored path").count() == 0


def test_what_the_page_shows_first_is_pythons_assignment(page: Page, plain: tuple[Path, list[dict[str, Any]]]) -> None:
    shown = page.evaluate(
        "found.map((image) => image.levels.map((level) => "
        "level.map((one) => [one.anchor, one.target, one.column, one.row, ...one.box])))"
    )
    for image, levels in zip(plain[1], shown, strict=True):
        sizes = [(image["height"] // stride, image["width"] // stride) for stride in (8, 16, 32)]
        assert levels == [rows_of(level) for level in assign(targets_of(image), AnchorSet.coco_p5(), sizes)]


def value(page: Page, label: str) -> int:
    return int(page.locator(f'#summary li[data-label="{label}"] .value').inner_text())


def python_counts(images: list[dict[str, Any]], anchors: AnchorSet, limit: float) -> dict[str, int]:
    counts = {"Anchor cells on P3": 0, "Anchor cells on P4": 0, "Anchor cells on P5": 0, "Unmatched": 0}
    for image in images:
        sizes = [(image["height"] // stride, image["width"] // stride) for stride in (8, 16, 32)]
        levels = assign(targets_of(image), anchors, sizes, limit)
        for name, level in zip(counts, levels, strict=False):
            counts[name] += len(level.target)
        matched = {target for level in levels for target in level.target.tolist()}
        counts["Unmatched"] += len(image["targets"]) - len(matched)
    return counts


def test_the_limit_and_the_anchors_assign_anew_and_come_back(
    page: Page, plain: tuple[Path, list[dict[str, Any]]]
) -> None:
    images = plain[1]
    default = AnchorSet.coco_p5()
    start = {label: value(page, label) for label in python_counts(images, default, 4)}
    assert start == python_counts(images, default, 4)
    assert start["Unmatched"] == 1
    expect(page.locator("#moved")).to_be_hidden()
    page.locator("#limit-number").fill("2")
    assert {label: value(page, label) for label in start} == python_counts(images, default, 2) != start
    expect(page.locator("#moved")).to_be_visible()
    page.locator("#limit").focus()
    page.keyboard.press("End")
    assert {label: value(page, label) for label in start} == python_counts(images, default, 8)
    page.locator(".controls > .reset").click()
    page.locator(".anchors summary").click()
    page.get_by_label("P3 anchor 1, width in pixels", exact=True).fill("3")
    page.get_by_label("P3 anchor 1, height in pixels", exact=True).fill("2.5")
    moved = AnchorSet.from_rows([[3, 2.5, *default.to_rows()[0][2:]], *default.to_rows()[1:]], default.strides)
    assert {label: value(page, label) for label in start} == python_counts(images, moved, 4)
    assert value(page, "Unmatched") == 0
    page.get_by_label("P3 anchor 1, width in pixels, slider").focus()
    page.keyboard.press("Home")  # an eighth of the stride
    assert page.get_by_label("P3 anchor 1, width in pixels", exact=True).input_value() == "1"
    page.locator("#limit-number").fill("")  # half typed
    page.locator("#moved .reset").click()
    assert {label: value(page, label) for label in start} == start
    assert page.locator("#limit-number").input_value() == "4"
    expect(page.locator("#moved")).to_be_hidden()


def test_an_unmatched_box_says_what_would_match_it_and_does(page: Page) -> None:
    # 2 x 2 px, to float32; the nearest of all is the anchor of 10 x 13 px: 13 / 2 = 6.5.
    panel = page.locator("#object")
    listed = panel.get_by_role("table", name="Boxes that no anchor matches").locator("tbody tr")
    assert listed.locator("td").all_inner_texts() == [f"#1 {EVIL}", "2 x 2", "P3 1", "6.5"]
    listed.get_by_role("button").click()
    expect(panel).to_contain_text("No anchor matches this box")
    expect(panel).to_contain_text("anchor 1 of P3 (10 x 13 px): its height is 1/6.50 of the anchor's")
    expect(panel).to_contain_text("a ratio limit above 6.500")
    page.get_by_role("button", name=re.compile(r"Try limit 6\.51?$")).click()
    expect(panel).to_contain_text("on P3")
    page.locator(".controls > .reset").click()
    page.get_by_role("button", name="Try anchor 7.8 x 7.8").click()
    expect(panel).to_contain_text("on P3")
    assert value(page, "Unmatched") == 0


def test_the_shape_test_and_the_neighbours_in_numbers(page: Page) -> None:
    # The second box is 38.4 x 38.4 px around (70.4, 49.92): against 33 x 23, 1.16 and 1.67; on P3 x = 8.8, y = 6.24.
    page.locator("#boxes button", has_text="#2").click()
    page.locator('#levels [data-level="0"]').click()
    row = page.locator("#object .shapes tbody tr").nth(2)
    assert row.locator("td").all_inner_texts()[1:5] == ["3 cells", "33 x 23", "1.16", "1.67"]
    expect(page.locator("#object .shapes tbody tr").first).to_contain_text("3 cells")  # 3.84 < 4
    figure = page.locator("#object .neighbours figure")
    expect(figure).to_contain_text("P3: cell (8, 6)")
    expect(figure).to_contain_text("x = 8.80: 0.80 > 0.5, so the cell right")
    expect(figure).to_contain_text("y = 6.24: 0.24 < 0.5, so the cell up")
    assert figure.locator("rect.taken").count() == 3
    drawn = page.locator("#stage .cells rect").evaluate_all(
        "all => all.map((cell) => [cell.getAttribute('x'), cell.getAttribute('y')].map(Number))"
    )
    cells = {(int(x // 8), int(y // 8)) for x, y in drawn}
    assert cells == {(8, 6), (9, 6), (8, 5)}
    assert page.locator("#stage .grid path").count() == 1
    page.locator('#levels [data-level="null"]').click()
    assert page.locator("#stage .grid path").count() == 0


def test_hovering_shows_a_box_and_a_click_keeps_it(page: Page) -> None:
    box = page.locator('#stage .box[data-number="1"]')
    panel = page.locator("#object h2")
    expect(panel).to_have_text("No box selected")
    box.locator(".edge").hover()
    expect(panel).to_have_text("#2 dog")
    page.mouse.move(5, 5)
    expect(panel).to_have_text("No box selected")
    box.locator(".edge").click()
    page.mouse.move(5, 5)
    expect(panel).to_have_text("#2 dog")
    page.keyboard.press("Escape")
    expect(panel).to_have_text("No box selected")


def test_keys_go_through_images_and_boxes(page: Page) -> None:
    page.locator("#stage").focus()
    heading, panel = page.locator("#image-name"), page.locator("#object h2")
    expect(heading).to_have_text("lost.png")
    page.keyboard.press("ArrowDown")
    expect(panel).to_have_text(f"#1 {EVIL}")
    page.keyboard.press("ArrowDown")
    expect(panel).to_have_text("#2 dog")
    page.keyboard.press("ArrowRight")
    expect(heading).to_have_text("crash.png")
    expect(panel).to_have_text("No box selected")
    expect(page.locator('#images button[aria-current="true"]')).to_contain_text("crash.png")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(heading).to_have_text("empty.png")
    page.keyboard.press("ArrowDown")  # no box to go to
    expect(panel).to_have_text("No box selected")
    expect(page.locator("#boxes")).to_contain_text("This image has no boxes")
    page.locator("#limit").focus()
    page.keyboard.press("ArrowRight")  # the slider's own key
    expect(heading).to_have_text("empty.png")


def test_collisions_are_listed_and_lead_to_their_boxes(page: Page) -> None:
    page.locator("#images button", has_text="crash.png").click()
    line = page.locator("#collisions tbody tr")
    assert line.count() == 1
    expect(line).to_contain_text(f"#1 dog, #2 {EVIL}")
    line.get_by_role("button", name="#2").click()
    expect(page.locator("#object h2")).to_have_text(f"#2 {EVIL}")


def test_a_tap_selects_on_a_phone_and_nothing_is_wider_than_it(
    browser: Browser, costly: tuple[Path, list[dict[str, Any]]]
) -> None:
    with opened(browser, costly[0], width=390, height=800, scheme="dark", touch=True) as page:
        page.locator('#stage .box[data-number="1"] .edge').tap()
        expect(page.locator("#object h2")).to_have_text("#2 dog")
        page.locator("#background-costs button").first.tap()
        assert page.locator("#stage .predicted .edge").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_costs_are_shown_and_marked_when_the_setting_moves(
    browser: Browser, costly: tuple[Path, list[dict[str, Any]]]
) -> None:
    path, images = costly
    costs = images[0]["costs"]
    with opened(browser, path) as page:
        expect(page.locator("#level-costs tbody tr")).to_have_count(3)
        expect(page.locator("#background-costs tbody tr")).to_have_count(len(costs["background"]))
        page.locator("#boxes button", has_text="#2").click()
        places = [place for place in costs["anchor_cells"] if place[4] == 1]
        expect(page.locator("#cell-costs tbody tr")).to_have_count(len(places))
        expect(page.locator("#cell-costs tbody tr").first).to_contain_text(f"{places[0][5]:.3f}")
        share = 100 * sum(sum(place[9:12]) for place in places) / costs["terms"]["total"]
        expect(page.locator('#boxes tr[data-number="1"]')).to_contain_text(f"{share:.1f} %")
        page.locator("#cell-costs tbody tr").first.hover()
        edge = page.locator("#stage .predicted .edge")
        assert float(edge.get_attribute("width") or 0) == pytest.approx(places[0][15])
        stale = page.locator(".stale")
        assert not any(note.is_visible() for note in stale.all())
        page.locator("#limit-number").fill("3")
        assert all(note.is_visible() for note in stale.all())
        assert stale.count() == 4
