"""The training loop: epochs of steps, each followed by validation and a checkpoint."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.data import DatasetIndex
from anchorite.errors import InputError
from anchorite.evaluate import ValidationResult
from anchorite.files import write_text_atomically
from anchorite.model import WeightsInfo, default_anchors, save_weights
from anchorite.train.checkpoint import Progress, has_checkpoint, load_latest, save_checkpoint
from anchorite.train.events import EpochDone, Listener, RunFinished, RunStarted, StepDone, ignore
from anchorite.train.loss_watch import LossWatch
from anchorite.train.preparation import Prepared, prepare
from anchorite.train.recipe import Recipe
from anchorite.train.run_folder import RunFolder, format_row
from anchorite.train.schedule import settings_at
from anchorite.train.step import TrainingStep


def train(recipe: Recipe, dataset: DatasetIndex, out: Path, listener: Listener = ignore) -> RunFinished:
    """Train a detector in a new folder `out`; events go to the listener.

    Leaves best.safetensors (by mAP of the val split), last.safetensors, metrics.csv, recipe.yaml, summary.json and
    checkpoints. Raises InputError (exit 2), StorageError (4) or DivergedError (3).
    """
    prepared = prepare(recipe, dataset, listener=listener)
    anchors = prepared.trainee.detector.anchors
    facts = {
        "data": str(dataset.root.resolve()),
        "format": dataset.format,
        "skip_bad": any(adjustment.kind == "skipped-bad" for adjustment in dataset.adjustments),
        "allow_outside": dataset.allow_outside,
        "class_names": list(dataset.class_names),
        "anchors": anchors.to_rows(),
    }
    folder = RunFolder.create(out, recipe, facts)
    with prepared.loader:
        return _Run(recipe, dataset, folder, prepared, listener).go(Progress())


def resume(out: Path, dataset: DatasetIndex, listener: Listener = ignore) -> RunFinished:
    """Continue the run in `out` from its newest whole checkpoint, bit for bit as if it had never stopped.

    A run that was stopped within its first epoch, before there was a checkpoint, starts over.
    Raises InputError when the folder is no run or the data set has other classes.
    """
    folder = RunFolder.open(out)
    recipe, facts = folder.read_recipe(), folder.read_facts()
    if list(dataset.class_names) != facts["class_names"]:
        raise InputError(
            f"--resume {out}: the data set's classes are {list(dataset.class_names)}, "
            f"the run's are {facts['class_names']}; resume with the run's data"
        )
    anchors = AnchorSet.from_rows(facts["anchors"], default_anchors(recipe.model).strides)
    prepared = prepare(recipe, dataset, anchors, listener)
    if len(folder.read_rows()) <= 1 and not has_checkpoint(folder.checkpoints):
        progress, said = Progress(), ["stopped before its first checkpoint: starts over"]
    else:
        progress, damaged = load_latest(folder.checkpoints, prepared.trainee)
        said = [*damaged, f"resumed after epoch {progress.epoch} of {recipe.epochs}"]
    prepared = replace(prepared, decisions=(*said, *prepared.decisions))
    with prepared.loader:
        return _Run(recipe, dataset, folder, prepared, listener).go(progress)


class _Run:
    """One run in progress; `go` takes it from a point of progress to its end."""

    def __init__(
        self, recipe: Recipe, dataset: DatasetIndex, folder: RunFolder, prepared: Prepared, listener: Listener
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.prepared = prepared
        self.listener = listener
        self.step = TrainingStep(
            prepared.trainee, prepared.precision, recipe.optimizer.clip_norm, prepared.device, prepared.compiled
        )
        self.watch = LossWatch(
            prepared.device,
            f"the last good state is in {folder.checkpoints}. "
            "Lower optimizer.rate, or lengthen optimizer.warmup_epochs",
        )
        self.info = WeightsInfo(recipe.model, dataset.class_names, prepared.trainee.detector.anchors, recipe.image_size)
        self.accumulation = recipe.optimizer.accumulation(recipe.batch)
        self.steps_per_epoch = math.ceil(len(prepared.loader) / self.accumulation)
        self.started = time.perf_counter()

    def go(self, progress: Progress) -> RunFinished:
        """Train, validate and save, epoch by epoch, to the last one or until patience runs out."""
        recipe, prepared = self.recipe, self.prepared
        self._forget_rows_after(progress.epoch)
        self.listener(
            RunStarted(self.folder.path, prepared.decisions, progress.epoch, recipe.epochs, len(prepared.loader))
        )
        reason = "complete"
        validation: ValidationResult | None = None
        first = progress.epoch
        for epoch in range(first, recipe.epochs):
            row = self._train_epoch(epoch, first, progress)
            progress = replace(
                progress, epoch=epoch + 1, optimizer_steps=progress.optimizer_steps + self.steps_per_epoch
            )
            if prepared.validator is not None:
                validation = self._validate()
                row |= dict(validation.rows())
            progress = self._conclude_epoch(row, validation, progress)
            if self._should_stop(progress):
                reason = f"no better mAP for {recipe.patience} epochs"
                break
        seconds = time.perf_counter() - self.started
        finished = RunFinished(self.folder.path, reason, progress.best_epoch, progress.best_map, seconds)
        self._write_summary(finished, validation)
        self.listener(finished)
        return finished

    def _train_epoch(self, epoch: int, first: int, progress: Progress) -> dict[str, float]:
        """One pass over the training images; the epoch's row of metrics so far."""
        self.prepared.trainee.detector.train()
        loader, recipe = self.prepared.loader, self.recipe
        loader.set_epoch(epoch)
        self.watch.start(epoch)
        started, images, waited = time.perf_counter(), 0, 0.0
        num_batches = len(loader)
        step_number = progress.optimizer_steps
        rate = 0.0
        asked = time.perf_counter()
        for number, batch in enumerate(loader, 1):
            waited += time.perf_counter() - asked
            self.watch.take(self.step.accumulate(batch))
            if number % self.accumulation == 0 or number == num_batches:
                total_steps = self.steps_per_epoch * recipe.epochs
                settings = settings_at(step_number, total_steps, self.steps_per_epoch, recipe.optimizer)
                self.step.apply(settings)
                rate = settings.rate
                step_number += 1
            images += len(batch.indices)
            spent = time.perf_counter() - started
            self._tell_step(epoch, number, self.watch.means, images / spent, first)
            asked = time.perf_counter()
        box, objectness, classification = self.watch.finish().tolist()
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1,
            "train/box": box,
            "train/objectness": objectness,
            "train/classification": classification,
            "rate": rate,
            "images_per_second": images / seconds,
            "seconds/train": seconds,
            "seconds/data_wait": waited,
        }

    def _tell_step(self, epoch: int, number: int, means: Tensor, speed: float, first: int) -> None:
        per_epoch = len(self.prepared.loader)
        done = (epoch - first) * per_epoch + number
        left = (self.recipe.epochs - first) * per_epoch - done
        seconds_left = (time.perf_counter() - self.started) / done * left
        box, objectness, classification = means.tolist()
        self.listener(StepDone(epoch + 1, number, box, objectness, classification, speed, seconds_left))

    def _validate(self) -> ValidationResult:
        assert self.prepared.validator is not None
        return self.prepared.validator.run(
            self.prepared.trainee.average.model,
            self.recipe.validation,
            self.prepared.device,
            autocast_dtype=self.prepared.precision.dtype,
        )

    def _conclude_epoch(
        self, row: dict[str, float], validation: ValidationResult | None, progress: Progress
    ) -> Progress:
        """Save weights, checkpoint and metrics of an epoch; the progress with the best so far."""
        averaged = self.prepared.trainee.average.model
        score = validation.metrics.map if validation is not None else math.nan
        # Without a score, be it that the val split is missing or has no labels, the newest weights count as the best.
        improved = progress.best_epoch is None or score > progress.best_map
        if improved:
            if not math.isnan(score):
                progress = replace(progress, best_map=score, best_epoch=progress.epoch)
            save_weights(self.folder.best, averaged, self.info)
        save_weights(self.folder.last, averaged, self.info)
        self.folder.write_rows([*self.folder.read_rows(), format_row(row)])
        save_checkpoint(self.folder.checkpoints, self.prepared.trainee, progress)
        self.listener(EpochDone(progress.epoch, row, validation, improved))
        return progress

    def _should_stop(self, progress: Progress) -> bool:
        patience = self.recipe.patience
        return bool(patience) and progress.best_epoch is not None and progress.epoch - progress.best_epoch >= patience

    def _forget_rows_after(self, epoch: int) -> None:
        rows = [row for row in self.folder.read_rows() if int(row["epoch"]) <= epoch]
        if rows or self.folder.metrics.is_file():
            self.folder.write_rows(rows)

    def _write_summary(self, finished: RunFinished, validation: ValidationResult | None) -> None:
        summary = {
            "reason": finished.reason,
            "best_epoch": finished.best_epoch,
            "best_map": finished.best_map if finished.best_epoch is not None else None,
            "seconds": round(finished.seconds, 1),
            "decisions": list(self.prepared.decisions),
            "last_validation": None if validation is None else validation.to_json(),
        }
        write_text_atomically(self.folder.summary, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
