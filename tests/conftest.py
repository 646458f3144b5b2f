"""Settings of all tests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from tempfile import mkdtemp

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.once import FOLDER_VARIABLE

# A busy machine must not fail a property: speed is not what these tests are about.
settings.register_profile("anchorite", deadline=None)
settings.load_profile("anchorite")

# A shell starts background jobs with interrupts ignored, and nohup ignores hang-ups; so would the processes that tests
# start and send these signals to.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests import onnxruntime themselves

# In tests, every call of the heart's rooms is held to the shapes and types that its signature states. A whole number
# passes for a float (is_pep484_tower), as it does for type checkers.
CHECKED_ROOMS = ("anchorite.boxes", "anchorite.anchors", "anchorite.loss")
assert not any(room in sys.modules for room in CHECKED_ROOMS), "imported too early to be checked"
install_import_hook(CHECKED_ROOMS, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of `tests.once`, in the process that starts the others."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[FOLDER_VARIABLE] = folder = mkdtemp(prefix="anchorite-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


# pages.py imports playwright, which a run without tests of pages need not have.
@pytest.fixture(scope="module")  # while it is open no other event loop can run in this thread
def browser() -> Iterator[object]:
    """Chromium without a window; see tests/pages.py for the pages it opens."""
    from tests.pages import launched

    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """`tests.small.small_networks` for a module."""
    from tests.small import small_networks

    with small_networks():
        yield
