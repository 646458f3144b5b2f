"""`anchorite.load`: weights and exports behind one function, and an import that stays light."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anchorite
from anchorite.errors import InputError, UnsafeFileError
from tests.export.exports import plain_file, weights
from tests.small import short_networks


@pytest.fixture(autouse=True)
def _short_networks() -> Iterator[None]:
    with short_networks():
        yield


def test_weights_and_exports_are_loaded_by_their_suffix() -> None:
    assert anchorite.load(weights(), device="cpu").runtime.name == "cpu float32"
    assert anchorite.load(str(weights()), "cpu", "bf16").runtime.name == "cpu bfloat16"
    assert anchorite.load(str(plain_file())).runtime.name.startswith("onnxruntime")
    with pytest.raises(InputError, match="--precision fp16"):
        anchorite.load(plain_file(), precision="fp16")


def test_a_program_stays_unread(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"")
    with pytest.raises(UnsafeFileError, match="so it is not read"):
        anchorite.load(tmp_path / "a.pt2")
    with pytest.raises(InputError):
        anchorite.load(tmp_path / "missing.xml")


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, anchorite; anchorite.load; print([n for n in ('torch', 'numpy', 'cv2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
