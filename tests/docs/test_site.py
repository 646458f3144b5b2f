"""The site of `make docs`: built without a warning, and opened from disk with nothing asked of anywhere else."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request

from tests.processes import ForkedProcess

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(
    path.stem for path in (ROOT / "docs" / "reference").glob("*.md") if path.stem not in ("index", "package")
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as the Makefile builds it."""
    folder = tmp_path_factory.mktemp("site")
    options = re.search(r"-m sphinx (.*) docs docs/_build", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert options is not None
    assert "-W" in options[1]
    words = [*options[1].split(), str(ROOT / "docs"), str(folder)]
    building = ForkedProcess("sphinx.cmd.build:main", words, cwd=ROOT)
    said = building.communicate(timeout=120)
    assert building.returncode == 0, said
    return folder


@contextmanager
def opened(browser: Browser, site: Path, page: str, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """A page of the site; fails when it asks for anything outside of the site, or its console says anything."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    sheet = context.new_page()
    inside = site.resolve().as_uri() + "/"

    def note(request: Request) -> None:
        if not request.url.startswith((inside, "data:")):
            complaints.append(f"asked for {request.url}")

    sheet.on("request", note)
    sheet.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    sheet.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    sheet.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    sheet.goto(inside + page)
    try:
        yield sheet
    finally:
        context.close()
    assert not complaints, complaints


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "objective.html", "tutorial.html", "reference/loss.html"])
def test_pages_open_from_disk_and_ask_for_nothing_else(browser: Browser, site: Path, page: str) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        with opened(browser, site, page, width, scheme) as sheet:
            assert sheet.evaluate("document.documentElement.scrollWidth") <= width, "wider than the screen"
            shown = sheet.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
            assert all(shown)
            assert len(shown) >= (8 if page == "objective.html" else 0)


@pytest.mark.slow
@pytest.mark.browser
def test_the_search_works_from_disk(browser: Browser, site: Path) -> None:
    with opened(browser, site, "search.html?q=objectness") as sheet:
        # Results are added one after the other.
        sheet.locator("ul.search li a", has_text="The objective, and where each formula stands").wait_for()


@pytest.mark.slow
def test_no_page_names_a_resource_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]+\"")
    assert {page.name: found for page in pages if (found := loaded.findall(page.read_text(encoding="utf-8")))} == {}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not any(re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style) for style in styles)


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(site: Path, room: str) -> None:
    """Constants and aliases of types have no docstring and no entry; classes and functions have one."""

    def is_defined(thing: object) -> bool:
        return inspect.isclass(thing) or inspect.isfunction(thing)

    module = importlib.import_module(f"anchorite.{room}")
    page = (site / "reference" / f"{room}.html").read_text(encoding="utf-8")
    called = [name for name in module.__all__ if is_defined(getattr(module, name))]
    assert [name for name in called if f'id="anchorite.{room}.{name}"' not in page] == []
    assert "jaxtyping." not in page
    assert ":class:" not in page
