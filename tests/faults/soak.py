"""A soak: small runs killed, interrupted and damaged at random, and gone on with, for as long as asked for.

`python -m tests.faults.soak --minutes 30 --seed 0` ends with a line of JSON: what was done, and what was lost.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from anchorite.data.scenes import write_scenes
from anchorite.train.checkpoint import found_checkpoints
from tests.faults.killed import BATCHES, NUM_IMAGES, started
from tests.faults.test_kill import outcome

LONGEST_S = 2.5


def damage(run: Path, moments: random.Random, spoiled: set[str]) -> str | None:
    """Spoil the newest checkpoint, if one before it is left, and note it; what was done to it."""
    found = list(found_checkpoints(run / "checkpoints")) if run.exists() else []
    if len([one for one in found if one.fault is None]) < 2:
        return None
    path = found[0].path if moments.random() < 0.5 else found[0].path.with_suffix(".json")
    spoiled.add(path.stem)
    content = bytearray(path.read_bytes())
    if moments.random() < 0.5:
        path.write_bytes(content[: moments.randrange(len(content))])
        return "checkpoint cut short"
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    path.write_bytes(content)
    return "bit flipped"


def point_of(run: Path) -> int:
    """Batches done by the newest whole checkpoint."""
    for one in found_checkpoints(run / "checkpoints") if run.exists() else ():
        if one.progress is not None:
            return one.progress.epoch * BATCHES + one.progress.partial.batches
    return 0


def disturb(folder: Path, data: Path, moments: random.Random, counts: Counter[str], spoiled: set[str]) -> bool:
    """One attempt to finish the run in a folder, with a fault; whether it was finished before the fault came."""
    fault = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    before = point_of(folder / "run")
    process = started("run_to_the_end", folder, data)
    time.sleep(moments.uniform(0, LONGEST_S))
    process.send_signal(fault)
    code = process.wait()
    counts["attempts"] += 1
    if code not in (0, -signal.SIGKILL, -signal.SIGTERM, 130):
        counts["failed resumes"] += 1
    if code != 0:
        counts[fault.name] += 1
    checkpoints = folder / "run" / "checkpoints"
    bad = {one.path.stem for one in found_checkpoints(checkpoints) if one.fault is not None}
    spoiled &= bad  # the others have been written anew
    counts["unreadable checkpoints"] += len(bad - spoiled)
    counts["batches lost"] += max(0, before - point_of(folder / "run"))
    if code != 0 and moments.random() < 0.1:
        done = damage(folder / "run", moments, spoiled)
        if done is not None:
            counts[done] += 1
            counts["damage not noticed"] += all(one.fault is None for one in found_checkpoints(checkpoints))
    return code == 0


def soak(minutes: float, seed: int) -> dict[str, object]:
    """Disturb run after run until the time is over; counts of what was injected and what was lost."""
    moments, counts, begun = random.Random(seed), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        data = write_scenes(Path(place) / "scenes", NUM_IMAGES, 2, 2, seed=5, size_px=64)
        (Path(place) / "straight").mkdir()
        assert started("run_to_the_end", Path(place) / "straight", data).wait() == 0
        expected = outcome(Path(place) / "straight" / "run")
        while time.monotonic() - begun < minutes * 60:
            folder = Path(place) / "disturbed"
            folder.mkdir()
            spoiled: set[str] = set()
            while not disturb(folder, data, moments, counts, spoiled):
                pass
            counts["runs finished"] += 1
            counts["runs that differ"] += outcome(folder / "run") != expected
            shutil.rmtree(folder)
    return {"minutes": round((time.monotonic() - begun) / 60, 1), "seed": seed, **counts}


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(soak(arguments.minutes, arguments.seed)))


if __name__ == "__main__":
    main()
