"""What a run folder says of its run, read without changing anything in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from anchorite.train.checkpoint import FoundCheckpoint, found_checkpoints, has_checkpoint, leftovers
from anchorite.train.run_folder import RunFolder


@dataclass(frozen=True)
class RunState:
    """A run as it lies there.

    num_epochs: planned; epochs: done, by metrics.csv; best_epoch, best_map: of them, None without any mAP; reason: why
    it ended, None while it has not; in_use: another process is training in it; checkpoints: newest first, verified;
    leftovers: files that a crash left, which a resume removes; num_skipped: steps that were not taken; post_mortems:
    files that a divergence left; data: the place of its data set.
    """

    path: Path
    model: str
    data: str
    num_epochs: int
    epochs: int
    best_epoch: int | None
    best_map: float | None
    reason: str | None
    in_use: bool
    checkpoints: tuple[FoundCheckpoint, ...]
    leftovers: tuple[Path, ...]
    num_skipped: int
    post_mortems: tuple[Path, ...]

    def would_resume(self) -> str:
        """What `anchorite train --resume` would do, a sentence."""
        if self.in_use:
            return "nothing: another process is training in this folder"
        if self.reason is not None:
            return f"nothing: the run has ended ({self.reason})"
        good = next((one for one in self.checkpoints if one.progress is not None), None)
        if good is None or good.progress is None:
            if self.checkpoints or self.epochs > 1:
                return "nothing: no checkpoint is whole; it would end with exit code 4"
            return "start over: the run was stopped before its first checkpoint"
        passed = sum(one.fault is not None for one in self.checkpoints[: self.checkpoints.index(good)])
        over = f", passing over {passed} damaged" if passed else ""
        return f"go on after {good.progress.describe()} of {self.num_epochs}, from {good.path.name}{over}"


def read_run_state(path: Path) -> RunState:
    """The state of the run in a folder; every checkpoint is read whole and its hashes compared.

    Raises InputError when it is no run folder, StorageError when its files cannot be read.
    """
    folder = RunFolder.open(path, "runs")
    recipe, facts, rows = folder.read_recipe(), folder.read_facts(), folder.read_rows()
    scored = [(float(row["val/map"]), int(row["epoch"])) for row in rows if row.get("val/map", "nan") != "nan"]
    best_map, best_epoch = max(scored, key=lambda pair: (pair[0], -pair[1])) if scored else (None, None)
    summary = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else {}
    skipped = folder.skipped.read_text(encoding="utf-8").splitlines() if folder.skipped.is_file() else []
    return RunState(
        path=path,
        model=recipe.model,
        data=facts["data"],
        num_epochs=recipe.epochs,
        epochs=len(rows),
        best_epoch=best_epoch,
        best_map=best_map,
        reason=summary.get("reason"),
        in_use=folder.is_held(),
        checkpoints=tuple(found_checkpoints(folder.checkpoints)) if has_checkpoint(folder.checkpoints) else (),
        leftovers=tuple(leftovers(folder.checkpoints)),
        num_skipped=len(skipped),
        post_mortems=tuple(sorted(path.glob("post-mortem-*.json"))),
    )
