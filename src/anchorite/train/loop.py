"""The training loop: epochs of steps, each followed by validation and a checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from anchorite.anchors import AnchorSet
from anchorite.data import Batch, DatasetIndex
from anchorite.errors import DivergedError
from anchorite.evaluate import ValidationResult
from anchorite.files import write_text_atomically
from anchorite.interrupts import HeldInterrupts
from anchorite.model import WeightsInfo, default_anchors, save_weights
from anchorite.train.checkpoint import has_checkpoint, leftovers, load_latest, save_checkpoint
from anchorite.train.differences import Change, noted_facts, refuse_changes
from anchorite.train.events import EpochDone, Listener, RunFinished, RunStarted, StepDone, StepSkipped, ignore
from anchorite.train.loss_watch import LossWatch, Skipped
from anchorite.train.post_mortem import facts_of, write_post_mortem
from anchorite.train.preparation import Prepared, prepare
from anchorite.train.progress import PartialEpoch, Progress
from anchorite.train.recipe import Recipe
from anchorite.train.run_folder import RunFolder, format_row, noted_left_out
from anchorite.train.schedule import Settings, settings_at
from anchorite.train.step import TrainingStep

# Steps in a row that may be skipped; more with a gradient scaler, which finds its scale by trying.
_MOST_SKIPPED, _MOST_SKIPPED_SCALED = 5, 25


def train(recipe: Recipe, dataset: DatasetIndex, out: Path, listener: Listener = ignore) -> RunFinished:
    """Train a detector in a new folder `out`; events go to the listener.

    Leaves best.safetensors (by mAP of the val split), last.safetensors, metrics.csv, recipe.yaml, summary.json and
    checkpoints. Raises InputError (exit 2), StorageError (4) or DivergedError (3).
    """
    opened, prepared = dataset, prepare(recipe, dataset, listener=listener)
    dataset, anchors = prepared.dataset, prepared.trainee.detector.anchors
    facts = {
        "data": str(dataset.root.resolve()),
        "format": dataset.format,
        "skip_bad": dataset.skip_bad,
        "allow_outside": dataset.allow_outside,
        "anchors": anchors.to_rows(),
        "left_out": noted_left_out(opened, dataset),
        **noted_facts(recipe, dataset),
    }
    with prepared.loader:
        folder = RunFolder.create(out, recipe, facts)
        with folder.held():
            return _Run(recipe, folder, prepared, listener).go(Progress())


def resume(
    out: Path, dataset: DatasetIndex, listener: Listener = ignore, allow: Collection[Change] = ()
) -> RunFinished:
    """Continue the run in `out` from its newest whole checkpoint, bit for bit as if it had never stopped.

    A run that was stopped before there was a checkpoint starts over. allow: which changes since the start to go on
    with. Raises InputError when the folder is no run, another process trains in it, or data or recipe have changed.
    """
    folder = RunFolder.open(out)
    recipe, facts = folder.read_recipe(), folder.read_facts()
    # Which images of a data set with bad ones are trained on is known only when they have been decoded.
    changes = refuse_changes(facts, recipe, dataset, {*allow, "data"} if dataset.skip_bad else allow)
    with folder.held():
        anchors = AnchorSet.from_rows(facts["anchors"], default_anchors(recipe.model).strides)
        prepared = prepare(recipe, dataset, anchors, listener)
        with prepared.loader:
            if dataset.skip_bad:
                changes = refuse_changes(facts, recipe, prepared.dataset, allow)
            progress, said = _load_progress(folder, recipe, prepared)
            prepared = replace(prepared, decisions=(*changes, *said, *prepared.decisions))
            return _Run(recipe, folder, prepared, listener).go(progress)


def _load_progress(folder: RunFolder, recipe: Recipe, prepared: Prepared) -> tuple[Progress, list[str]]:
    """Restore the newest whole checkpoint; how far it is, and what to say of it. Crashes' leftovers are removed."""
    if len(folder.read_rows()) <= 1 and not has_checkpoint(folder.checkpoints):
        progress, said = Progress(), ["stopped before its first checkpoint: starts over"]
    else:
        progress, said = load_latest(folder.checkpoints, prepared.trainee)
        said.append(f"resumed after {progress.describe(len(prepared.loader))} of {recipe.epochs}")
    for stray in (*leftovers(folder.checkpoints), *folder.path.glob(".*.tmp")):
        stray.unlink(missing_ok=True)
        said.append(f"{stray}: left by a crash, removed")
    return progress, said


class _Run:
    """One run in progress; `go` takes it from a point of progress to its end."""

    def __init__(self, recipe: Recipe, folder: RunFolder, prepared: Prepared, listener: Listener) -> None:
        self.recipe = recipe
        self.folder = folder
        self.prepared = prepared
        self.listener = listener
        self.step = TrainingStep(
            prepared.trainee, prepared.precision, recipe.optimizer.clip_norm, prepared.device, prepared.compiled
        )
        self.watch = LossWatch(prepared.device, self._skipped)
        self.records = prepared.dataset.splits["train"]
        self.progress = Progress()
        self.saved_at = time.perf_counter()
        self.info = WeightsInfo(
            recipe.model, prepared.dataset.class_names, prepared.trainee.detector.anchors, recipe.image_size
        )
        self.accumulation = recipe.optimizer.accumulation(recipe.batch)
        self.steps_per_epoch = math.ceil(len(prepared.loader) / self.accumulation)
        self.started = time.perf_counter()

    def go(self, progress: Progress) -> RunFinished:
        """Train, validate and save, epoch by epoch, to the last one or until patience runs out."""
        recipe, prepared = self.recipe, self.prepared
        self.progress = progress
        self.watch.in_a_row = progress.skipped_in_a_row
        self._forget_rows_after(progress.epoch)
        self.listener(
            RunStarted(self.folder.path, prepared.decisions, progress.epoch, recipe.epochs, len(prepared.loader))
        )
        reason = "complete"
        validation: ValidationResult | None = None
        self.first_batch = progress.epoch * len(prepared.loader) + progress.partial.batches
        while self.progress.epoch < recipe.epochs:
            row = self._train_epoch()
            if prepared.validator is not None:
                validation = self._validate()
                row |= dict(validation.rows())
            with HeldInterrupts():
                self._conclude_epoch(row, validation)
            if self._should_stop():
                reason = f"no better mAP for {recipe.patience} epochs"
                break
        seconds = time.perf_counter() - self.started
        finished = RunFinished(self.folder.path, reason, self.progress.best_epoch, self.progress.best_map, seconds)
        self._write_summary(finished, validation)
        self.listener(finished)
        return finished

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training images, or what is left of it; the epoch's row of metrics so far.

        Whatever interrupts it does so between two batches, and finds a checkpoint of all that was done.
        """
        self.prepared.trainee.detector.train()
        loader, begun = self.prepared.loader, self.progress.partial
        loader.set_epoch(self.progress.epoch, begun.batches)
        self.watch.start(self.progress.epoch, begun)
        started = asked = time.perf_counter()
        images, waited = begun.images, begun.waited
        batches = iter(loader)
        try:
            for number, batch in enumerate(batches, begun.batches + 1):
                waited += time.perf_counter() - asked
                with HeldInterrupts():
                    self._take(batch, number)
                    images += len(batch.indices)
                    seconds = begun.seconds + time.perf_counter() - started
                    self._note(PartialEpoch(number, images, seconds=seconds, waited=waited))
                    if self._save_is_due():
                        self._save()
                self._tell_step(number, images / seconds)
                asked = time.perf_counter()
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            batches.close()  # its thread, too, before Python may end and tear the thread out of what it calls
        box, objectness, classification = self.watch.finish().tolist()
        seconds = begun.seconds + time.perf_counter() - started
        return {
            "epoch": self.progress.epoch + 1,
            "train/box": box,
            "train/objectness": objectness,
            "train/classification": classification,
            "train/skipped_steps": self.watch.num_skipped,
            "rate": self._settings(self.progress.optimizer_steps - 1).rate,
            "images_per_second": images / seconds,
            "seconds/train": seconds,
            "seconds/data_wait": waited,
        }

    def _take(self, batch: Batch, number: int) -> None:
        """Learn from batch `number` (from 1) of the epoch; a step, where it is the last of one."""
        self.watch.take(self.step.accumulate(batch), batch)
        if number % self.accumulation == 0 or number == len(self.prepared.loader):
            norm = self.step.apply(self._settings(self.progress.optimizer_steps))
            self.progress = replace(self.progress, optimizer_steps=self.progress.optimizer_steps + 1)
            self.watch.take_step(norm, self.step.fault)

    def _settings(self, step_number: int) -> Settings:
        total = self.steps_per_epoch * self.recipe.epochs
        return settings_at(step_number, total, self.steps_per_epoch, self.recipe.optimizer)

    def _note(self, partial: PartialEpoch) -> None:
        """Keep how far the epoch is; what the watch knows is filled in when it is saved."""
        self.progress = replace(self.progress, partial=partial)

    def _save_is_due(self) -> bool:
        minutes = self.recipe.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self.saved_at >= minutes * 60

    def _save(self) -> None:
        """A checkpoint of this moment, between two batches of an epoch; at its beginning there is one already."""
        self.watch.flush()
        box, objectness, classification = self.watch.sums.tolist()
        partial = replace(
            self.progress.partial,
            loss_sums=(box, objectness, classification),
            finite_batches=self.watch.num_finite,
            skipped=self.watch.num_skipped,
        )
        if partial.batches:
            progress = replace(self.progress, partial=partial, skipped_in_a_row=self.watch.in_a_row)
            save_checkpoint(self.folder.checkpoints, self.prepared.trainee, progress)
        self.saved_at = time.perf_counter()

    def _skipped(self, skipped: Skipped) -> None:
        """Tell and log a step that was not taken; DivergedError, with a post-mortem, when there are too many."""
        facts = facts_of(skipped, self.records)
        self.folder.append_skipped(facts)
        self.listener(StepSkipped(facts))
        scaled = self.prepared.trainee.scaler.is_enabled()
        if skipped.in_a_row >= (_MOST_SKIPPED_SCALED if scaled else _MOST_SKIPPED):
            path = write_post_mortem(self.folder.path, skipped, facts)
            raise DivergedError(
                f"training diverged: epoch {skipped.epoch}, batch {skipped.batch}: {skipped.fault} is not finite, and "
                f"no step could be taken {skipped.in_a_row} times in a row. The batch is in {path.with_suffix('')}.*\n"
                + self._after_divergence()
            )

    def _after_divergence(self) -> str:
        kept = f"what was saved before in {self.folder.path} is as it was"
        return f"{kept}. Start a new run with a lower optimizer.rate or a longer optimizer.warmup_epochs"

    def _tell_step(self, number: int, speed: float) -> None:
        per_epoch = len(self.prepared.loader)
        at = self.progress.epoch * per_epoch + number
        seconds_a_batch = (time.perf_counter() - self.started) / (at - self.first_batch)
        left = (self.recipe.epochs * per_epoch - at) * seconds_a_batch
        box, objectness, classification = self.watch.means.tolist()
        self.listener(StepDone(self.progress.epoch + 1, number, box, objectness, classification, speed, left))

    def _validate(self) -> ValidationResult:
        assert self.prepared.validator is not None
        try:
            return self.prepared.validator.run(
                self.prepared.trainee.average.model,
                self.recipe.validation,
                self.prepared.device,
                autocast_dtype=self.prepared.precision.dtype,
            )
        except DivergedError as error:
            where = f"epoch {self.progress.epoch + 1}, in validation"
            raise DivergedError(f"training diverged: {where}: {error}\n{self._after_divergence()}") from error
        except KeyboardInterrupt:
            self._save()  # of the epoch with all its batches: a resume begins with the validation
            raise

    def _conclude_epoch(self, row: dict[str, float], validation: ValidationResult | None) -> None:
        """Save weights, metrics and the checkpoint of an epoch."""
        epoch, in_a_row = self.progress.epoch + 1, self.watch.in_a_row
        progress = replace(self.progress, epoch=epoch, partial=PartialEpoch(), skipped_in_a_row=in_a_row)
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
        self.progress, self.saved_at = progress, time.perf_counter()
        self.listener(EpochDone(progress.epoch, row, validation, improved))

    def _should_stop(self) -> bool:
        patience, progress = self.recipe.patience, self.progress
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
