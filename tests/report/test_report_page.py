"""The pages in a real browser: values on hovering, lines and boxes that can be hidden, and a live page that follows."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from anchorite.report import write_run_report
from anchorite.report.compare import comparison_page
from anchorite.report.serve import RunServer
from tests.pages import opened
from tests.report.fake_run import EVIL, make_full_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_hovering_and_the_keyboard_show_values(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, write_run_report(make_full_run(tmp_path / "run"))) as page:
        chart = page.locator("figure", has_text="map50").locator("svg.chart").first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 308 / 320, box["y"] + 60)
        assert page.locator("#tip").inner_text().split() == ["epoch", "6", "map50", "0.75"]
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        chart.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert page.locator("#tip").inner_text().split() == ["epoch", "2", "map50", "0.25"]
        assert chart.locator(".cursor .dot").count() == 1


def test_cells_boxes_and_lines_answer(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, write_run_report(make_full_run(tmp_path / "run"))) as page:
        page.locator(".cell rect").nth(5).hover()
        assert page.locator("#tip").inner_text() == f"{EVIL}: 1 of 1 missed"
        labels = page.locator(".example g.label")
        assert labels.first.is_visible()
        page.locator("[data-hides=label]").click()
        assert not labels.first.is_visible()
        assert page.locator(".example g.found").first.is_visible()
        button = page.locator(".legend button").first
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert "off" in (page.locator("#validation svg.chart path.line").first.get_attribute("class") or "")


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_their_window(browser: Browser, tmp_path: Path, width: int) -> None:
    runs = [make_full_run(tmp_path / name) for name in ("one", "two")]
    comparison = tmp_path / "page.html"
    comparison.write_text(comparison_page(runs), encoding="utf-8")
    for path in (write_run_report(runs[0]), comparison):
        with opened(browser, path, width=width, touch=width == 390) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_live_page_follows_the_run_and_keeps_what_is_open(browser: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("epochs: 6\nnested: {" + ", ".join(f"k{i}: {i}" for i in range(40)) + "}\n")
    complaints: list[str] = []
    with RunServer(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda request: complaints.extend([request.url] * (not request.url.startswith(server.address)))
        )
        page.clock.install()
        page.goto(server.address)
        assert page.get_by_text("No epoch has been completed yet.").is_visible()
        page.locator("#recipe summary").click()
        page.evaluate("document.querySelector('#recipe').marked = true")
        make_full_run(run, num_epochs=6)
        (run / "recipe.yaml").write_text("epochs: 6\nnested: {" + ", ".join(f"k{i}: {i}" for i in range(40)) + "}\n")
        page.clock.run_for(2500)
        page.get_by_text("Finished (complete)").wait_for()
        page.locator("figure", has_text="map50").first.wait_for()
        assert page.title() == "6/6 finished - run"
        assert page.get_by_text(EVIL).first.is_visible()
        assert page.evaluate("document.querySelector('#recipe').marked")
        assert page.locator("#recipe details").get_attribute("open") is not None
        server.shutdown()
        thread.join()
        page.close()
    assert complaints == []
