"""Help is quick, because it imports no command, and complete."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import anchorite
from anchorite import report, train
from anchorite.cli import build_app

COMMANDS = sorted(name for name in build_app() if not name.startswith("-"))

_SCRIPT = """
import sys
from anchorite.cli import run
assert run(sys.argv[1:]) == 0
print("loaded:", *sorted({"torch", "matplotlib", "cv2", "numpy"} & set(sys.modules)))
"""


def _fresh(*words: str) -> tuple[str, float]:
    """What a fresh process prints, and its user and system seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", _SCRIPT, *words], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_loads_nothing_heavy(command: str) -> None:
    output, seconds = _fresh(*command.split(), "--help")
    assert output.splitlines()[-1] == "loaded:"
    assert seconds < 0.6


@pytest.mark.parametrize("words", ["recipes", "recipes small-data", "report RUN"])
def test_what_only_reads_and_writes_text_does_not_wait_for_torch(words: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n", encoding="utf-8")
    output, _ = _fresh(*words.replace("RUN", str(tmp_path)).split())
    assert len(output.splitlines()) > 1
    assert "torch" not in output.splitlines()[-1]


def test_every_name_of_a_room_is_there() -> None:
    for room in (anchorite, report, train):
        assert [name for name in room.__all__ if getattr(room, name, None) is None] == []
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            room.nothing  # noqa: B018


def test_the_overview_names_every_command_and_how_to_begin() -> None:
    output, _ = _fresh("--help")
    for word in (
        "demo",
        "train",
        "validate",
        "predict",
        "report",
        "import",
        "recipes",
        "anchorite train DATA",
        "--debug",
    ):
        assert word in output


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", "--recipe --out --resume --set --format --skip-bad --allow-outside --model --image-size --epochs"),
        (
            "validate",
            "--split --image-size --batch --device --precision --out --json --format --skip-bad --allow-outside",
        ),
        ("predict", "--confidence --iou-threshold --max-detections --out --recursive --without --image-size --device"),
    ],
)
def test_a_commands_help_explains_its_flags(command: str, flags: str) -> None:
    output, _ = _fresh(command, "--help")
    for flag in flags.split():
        assert flag in output
