"""kill -9 at any moment of a run and inside a save: rows 4 and 5 of the faults to be survived.

The environment variable ANCHORITE_KILLS says how often each: 20 times for a quick answer, 200 for a thorough one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anchorite.data.scenes import write_scenes
from anchorite.train import RunFolder
from anchorite.train.checkpoint import (
    PartialEpoch,
    Progress,
    found_checkpoints,
    leftovers,
    load_latest,
    save_checkpoint,
)
from tests.faults.killed import BATCHES, EPOCHS, NUM_IMAGES, SAVED_WIDTH, started
from tests.train.runs import tiny_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]  # small: more kills in the time


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing that it wrote to a file system, whichever
    that is, and flushing to a disk is most of what a small run takes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        yield Path(place)


NUM_KILLS = int(os.environ.get("ANCHORITE_KILLS", "20"))
DETERMINED = ("epoch", "train/box", "train/objectness", "train/classification", "train/skipped_steps", "lr")


def outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """The bits of all tensors at the end, of the best weights, and the metrics that a run determines."""
    tensors = load_file(run / "checkpoints" / f"epoch-{EPOCHS:04d}.safetensors")
    bits = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    bits["best"] = (run / "best.safetensors").read_bytes()
    rows = RunFolder(run).read_rows()
    names = [name for name in rows[-1] if name in DETERMINED or name.startswith("val/")]
    timed = ("second", "images_per")
    return bits, [{name: row[name] for name in names if not any(word in name for word in timed)} for row in rows]


def point_of(run: Path) -> int:
    """Batches done, as the newest checkpoint says; each found one has to be whole."""
    found = list(found_checkpoints(run / "checkpoints")) if run.exists() else []
    assert [one.fault for one in found if one.fault is not None] == []
    if not found or found[0].progress is None:
        return 0
    return found[0].progress.epoch * BATCHES + found[0].progress.partial.batches


def kill_and_go_on(folder: Path, data: Path, moments: random.Random, longest_s: float) -> bool:
    """Run until killed at a random moment; whether the run came to its end before."""
    process = started("run_to_the_end", folder, data)
    time.sleep(moments.uniform(0, longest_s))
    process.kill()
    code = process.wait()
    assert code in (0, -signal.SIGKILL), "a resume failed"
    done = (folder / "done").read_text().split() if (folder / "done").exists() else []
    # Checkpoints are taken after every batch, so that no batch told of is ever done again.
    assert point_of(folder / "run") >= int(done[-1] if done else 0)
    return code == 0


def test_a_run_killed_at_random_moments_ends_as_if_it_never_had_been(tmp_path: Path) -> None:
    moments = random.Random(0)
    data = write_scenes(tmp_path / "scenes", NUM_IMAGES, 2, 2, seed=5, size_px=64)
    for folder in (tmp_path / "warm", tmp_path / "straight"):  # the first run takes longer
        folder.mkdir()
        begun = time.monotonic()
        assert started("run_to_the_end", folder, data).wait() == 0
    longest_s = time.monotonic() - begun
    expected = outcome(tmp_path / "straight" / "run")
    kills = runs = 0
    points: set[int] = set()
    while kills < NUM_KILLS:
        folder = tmp_path / f"killed-{runs}"
        folder.mkdir()
        while kills < NUM_KILLS and not kill_and_go_on(folder, data, moments, longest_s):
            kills += 1
            points.add(point_of(folder / "run"))
        assert started("run_to_the_end", folder, data).wait() == 0
        assert outcome(folder / "run") == expected
        assert leftovers(folder / "run" / "checkpoints") == []
        assert list(folder.rglob("*.tmp")) == []
        shutil.rmtree(folder)  # memory is dearer than disks
        runs += 1
    assert len(points) > EPOCHS * BATCHES / 2, "the kills should fall all over the run"


def test_no_kill_inside_a_save_leaves_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    moments = random.Random(1)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    told_path = folder / "told"
    inside = 0
    for kills in range(NUM_KILLS + 1):
        told_path.unlink(missing_ok=True)
        process = started("save_for_ever", folder)
        while not told_path.exists():
            time.sleep(0.001)
        if kills == 0:  # how long two saves take on this machine, as busy as it is
            begun = time.monotonic()
            while told_path.read_text().count("done") < 2:
                time.sleep(0.001)
            longest_s = time.monotonic() - begun
        else:
            time.sleep(moments.uniform(0, longest_s))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        told = told_path.read_text().split("\n")[:-1]
        inside += told[-1].startswith("begun")
        finished = [int(line.split()[1]) for line in told if line.startswith("done")]
        found = list(found_checkpoints(folder))
        assert [one.fault for one in found if one.fault] == []
        newest = found[0].progress.partial.batches if found and found[0].progress else 0
        assert newest >= max(finished, default=0)
    assert inside > NUM_KILLS / 2, "most kills should fall inside a save"
    train_state = tiny_state(SAVED_WIDTH)
    progress, _ = load_latest(folder, train_state)
    save_checkpoint(folder, train_state, Progress(partial=PartialEpoch(batches=progress.partial.batches + 1)))
    assert len(list(found_checkpoints(folder))) == 2
