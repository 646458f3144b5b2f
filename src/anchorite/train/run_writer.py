"""Writing the files of a run: weights, checkpoints, metrics, skipped steps, post-mortems and the summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from anchorite.data import Record
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import DivergedError
from anchorite.evaluate import ValidationResult
from anchorite.files import write_bytes_atomically, write_text_atomically
from anchorite.model import Detector, WeightsInfo, save_weights
from anchorite.train.checkpoint import Progress, save_checkpoint
from anchorite.train.events import RunFinished
from anchorite.train.loss_meter import AsyncLossMeter, Skipped
from anchorite.train.run_folder import RunFolder, format_row
from anchorite.train.step import TrainState


def facts_of(skipped: Skipped, records: Sequence[Record], world: World = SINGLE_PROCESS) -> dict[str, Any]:
    """A skipped step in plain types: where, what was non-finite, and its images on all ranks (the first tile of each).
    All ranks must call this.
    """
    box, objectness, classification = (str(term) for term in skipped.terms)
    indices = [index for batch in skipped.batches for index in batch.indices.tolist()]
    return {
        "epoch": skipped.epoch,
        "batch": skipped.batch,
        "not_finite": skipped.fault,
        "losses": {"box": box, "objectness": objectness, "classification": classification},
        "in_a_row": skipped.in_a_row,
        "images": [path for paths in world.all_gather([str(records[i].path) for i in indices]) for path in paths],
    }


def post_mortem_path(folder: Path, skipped: Skipped) -> Path:
    """Where the facts of a divergence are written; the batch lies beside them."""
    return folder / f"post-mortem-epoch-{skipped.epoch:04d}-batch-{skipped.batch:05d}.json"


def write_post_mortem(path: Path, skipped: Skipped, facts: dict[str, Any]) -> None:
    """Write the last batch as safetensors (images uint8, targets as rows), and the facts beside it as JSON in `path`.

    With several ranks the batch is rank 0's part. Raises StorageError when the folder cannot be written.
    """
    last = skipped.batches[-1]
    content = save(
        {
            "images": last.images.cpu().contiguous(),
            "targets": last.targets.compact().rows.cpu().contiguous(),
            "indices": last.indices.cpu(),
        }
    )
    write_bytes_atomically(path.with_suffix(".safetensors"), content)
    write_text_atomically(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


class RunWriter:
    """Writes a run's files, on rank 0 only; on the others the same calls do nothing."""

    def __init__(self, folder: RunFolder, train_state: TrainState, info: WeightsInfo, writes: bool) -> None:
        self.folder, self.train_state, self.info, self.writes = folder, train_state, info, writes

    def save(self, progress: Progress) -> None:
        """A checkpoint at this point of progress."""
        if self.writes:
            save_checkpoint(self.folder.checkpoints, self.train_state, progress)

    def save_within_epoch(self, progress: Progress, losses: AsyncLossMeter) -> None:
        """A checkpoint between two batches of an epoch; at its beginning there is one already."""
        losses.flush()
        box, objectness, classification = losses.sums.tolist()
        partial = replace(
            progress.partial,
            loss_sums=(box, objectness, classification),
            finite_batches=losses.num_finite,
            skipped=losses.num_skipped,
        )
        if partial.batches:
            self.save(replace(progress, partial=partial, skipped_in_a_row=losses.in_a_row))

    def write_epoch(self, row: dict[str, float], model: Detector | None, improved: bool) -> None:
        """The weights and metrics of an epoch. improved: the weights are the best so far."""
        if not self.writes:
            return
        assert model is not None
        if improved:
            save_weights(self.folder.best, model, self.info)
        save_weights(self.folder.last, model, self.info)
        self.folder.write_rows([*self.folder.read_rows(), format_row(row)])

    def remove_rows_after(self, epoch: int) -> None:
        """Take rows of metrics away that a resumed run will write again."""
        if self.writes:
            rows = [row for row in self.folder.read_rows() if int(row["epoch"]) <= epoch]
            if rows or self.folder.metrics.is_file():
                self.folder.write_rows(rows)

    def log_skipped(self, facts: dict[str, Any]) -> None:
        """Log a step that was not taken."""
        if self.writes:
            self.folder.append_skipped(facts)

    def diverged(self, skipped: Skipped, facts: dict[str, Any]) -> DivergedError:
        """The error that ends a run with too many skipped steps; writes its post-mortem."""
        path = post_mortem_path(self.folder.path, skipped)
        if self.writes:
            write_post_mortem(path, skipped, facts)
        return DivergedError(
            f"training diverged: epoch {skipped.epoch}, batch {skipped.batch}: {skipped.fault} is not finite, and "
            f"{skipped.in_a_row} steps in a row were skipped. The batch is in {path.with_suffix('')}.*\n"
            + self.after_divergence()
        )

    def after_divergence(self) -> str:
        """The advice after a divergence."""
        unchanged = f"what was saved before in {self.folder.path} is unchanged"
        return f"{unchanged}. Start a new run with a lower optimizer.lr or a longer optimizer.warmup_epochs"

    def write_summary(
        self, finished: RunFinished, validation: ValidationResult | None, decisions: Sequence[str]
    ) -> None:
        """summary.json, which says that the run is complete."""
        summary = {
            "reason": finished.reason,
            "best_epoch": finished.best_epoch,
            "best_map": finished.best_map if finished.best_epoch is not None else None,
            "seconds": round(finished.seconds, 1),
            "decisions": list(decisions),
            "last_validation": None if validation is None else validation.to_json(),
        }
        if self.writes:
            write_text_atomically(self.folder.summary, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
