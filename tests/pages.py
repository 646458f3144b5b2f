"""Pages in a real browser: opened from disk, nothing else reachable, every complaint of the console an error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium as the system has it; skips the test where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened(
    browser: Browser,
    path: Path,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    touch: bool = False,
) -> Iterator[Page]:
    """The page in the file `path`; fails when it asks for anything else or its console says anything."""
    complaints: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, offline=True
    )
    page = context.new_page()
    url = path.resolve().as_uri()

    def note_request(request: Request) -> None:
        if request.url.partition("#")[0] != url and not request.url.startswith(("data:", "blob:")):
            complaints.append(f"asked for {request.url}")

    page.on("request", note_request)
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert not complaints, complaints
