"""Help is quick, because it imports no command, and complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import anchorite
from anchorite import report, train
from anchorite.cli import build_app

COMMANDS = [name for name in build_app() if not name.startswith("-")]

_SCRIPT = """
import sys
from anchorite.cli import run
for words in sys.argv[1:]:
    print("==", words)
    assert run(words.split()) == 0
    print("loaded:", *sorted({"torch", "matplotlib", "cv2", "numpy"} & set(sys.modules)))
"""


def outputs_of(*commands: str) -> dict[str, str]:
    """What each command prints, one after the other in a fresh process; none may load torch, help nothing heavy."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT, *commands], capture_output=True, text=True, check=True)
    parts = [part.partition("\n") for part in done.stdout.split("== ")[1:]]
    for words, _, output in parts:
        loaded = output.splitlines()[-1]
        assert loaded == "loaded:" if words.endswith("--help") else "torch" not in loaded, words
    return {words: output for words, _, output in parts}


def test_help_and_what_only_reads_text_do_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n", encoding="utf-8")
    helps = [f"{name} --help" for name in COMMANDS]
    outputs = outputs_of("--help", *helps, "recipes", "recipes small-data", f"report {tmp_path}")
    assert all(name in outputs["--help"] for name in COMMANDS)
    for name in COMMANDS:
        collection = build_app()[name].assemble_argument_collection()
        flags = {argument.name for argument in collection if argument.show and argument.name.startswith("--")}
        assert [flag for flag in flags if flag not in outputs[f"{name} --help"]] == [], name
    assert len(outputs["recipes small-data"].splitlines()) > 3


def test_every_name_of_a_room_is_there() -> None:
    for room in (anchorite, report, train):
        assert [name for name in room.__all__ if getattr(room, name, None) is None] == []
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            room.nothing  # noqa: B018
