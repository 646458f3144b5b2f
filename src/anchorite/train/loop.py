"""The training loop: epochs of steps, each followed by validation and a checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from anchorite.data import Batch
from anchorite.errors import DivergedError
from anchorite.evaluate import ValidationResult
from anchorite.interrupts import HeldInterrupts, NotedInterrupts
from anchorite.model import Detector, WeightsInfo
from anchorite.train.checkpoint import PartialEpoch, Progress
from anchorite.train.events import EpochDone, Listener, RunFinished, StepDone, StepSkipped
from anchorite.train.loss_meter import AsyncLossMeter, Skipped
from anchorite.train.optim import Settings, settings_at
from anchorite.train.recipe import Recipe
from anchorite.train.run_folder import RunFolder
from anchorite.train.run_writer import RunWriter, facts_of
from anchorite.train.setup import Prepared, run_started
from anchorite.train.step import TrainingStep


class OverlappedValidation:
    """An epoch whose detections are made but whose metrics are not computed yet. row: its metrics so far; progress: the
    run's, at its end.

    finish: computes the metrics, in a thread; None on ranks other than the first, which have no metrics and no copy of
    the EMA weights.
    """

    def __init__(
        self,
        row: dict[str, float],
        progress: Progress,
        averaged: Detector,
        finish: Callable[[], ValidationResult] | None,
    ) -> None:
        self.row, self.progress = row, progress
        self.averaged: Detector | None = None
        self._future: Future[ValidationResult] | None = None
        if finish is not None:
            self.averaged = copy.deepcopy(averaged)
            pool = ThreadPoolExecutor(1, thread_name_prefix="anchorite-metrics")
            self._future = pool.submit(finish)
            pool.shutdown(wait=False)

    @property
    def are_ready(self) -> bool:
        """Whether the metrics are ready; never on ranks other than 0."""
        return self._future is not None and self._future.done()

    def result(self) -> ValidationResult | None:
        """The metrics (waits for them); None on ranks other than 0."""
        return None if self._future is None else self._future.result()


# Steps in a row that may be skipped; more with a gradient scaler, which skips steps to find its scale.
_MOST_SKIPPED, _MOST_SKIPPED_SCALED = 5, 25


class Run:
    """One run in progress; `go` runs it from its current progress to its end.

    All ranks go through the same batches, each with its part, and make the same decisions; rank 0 writes. A signal to
    any of them ends all after the same optimizer step. While rank 0 computes the metrics of an epoch, the next one
    trains; the files of the run are the same as without this overlap.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, prepared: Prepared, listener: Listener) -> None:
        self.recipe = recipe
        self.folder = folder
        self.prepared = prepared
        self.listener = listener
        self.world = prepared.world
        self.step = TrainingStep(
            prepared.train_state, prepared.precision, recipe.optimizer.clip_norm, prepared.device, prepared.compiled
        )
        self.watch = AsyncLossMeter(prepared.device, self._skipped)
        self.records = prepared.dataset.splits["train"]
        self.progress = Progress()
        self.saved_at = time.perf_counter()
        anchors = prepared.train_state.detector.anchors
        backbone = prepared.train_state.detector.backbone_config
        info = WeightsInfo(recipe.model, prepared.dataset.class_names, anchors, recipe.image_size, backbone)
        self.run_writer = RunWriter(folder, prepared.train_state, info, writes=self.world.is_main)
        self.accumulation = recipe.optimizer.accumulation(recipe.batch)
        self.steps_per_epoch = math.ceil(len(prepared.loader) / self.accumulation)
        self.started = time.perf_counter()
        self.interrupts = NotedInterrupts(off=not self.world.is_distributed)
        self.late: OverlappedValidation | None = None
        self.last_validation: ValidationResult | None = None

    def go(self, progress: Progress) -> RunFinished:
        """Train, validate and save, epoch by epoch, to the last one or until patience runs out."""
        with self.interrupts:
            return self._go(progress)

    def _go(self, progress: Progress) -> RunFinished:
        recipe, prepared = self.recipe, self.prepared
        self.progress = progress
        self.watch.in_a_row = progress.skipped_in_a_row
        self.run_writer.forget_rows_after(progress.epoch)
        self.listener(run_started(self.folder.path, recipe, prepared, progress))
        self.first_batch = progress.epoch * len(prepared.loader) + progress.partial.batches
        while self.progress.epoch < recipe.epochs and not self._should_stop():
            row = self._train_epoch()
            if not self._should_stop():  # known only now if metrics were late
                self._end_epoch(row)
        patience_ran_out = self.progress.epoch < recipe.epochs or self._should_stop()
        reason = f"no better mAP for {recipe.patience} epochs" if patience_ran_out else "complete"
        seconds = time.perf_counter() - self.started
        finished = RunFinished(self.folder.path, reason, self.progress.best_epoch, self.progress.best_map, seconds)
        self.run_writer.write_summary(finished, self.last_validation, prepared.decisions)
        self.listener(finished)
        return finished

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training images, or what is left of it; the epoch's row of metrics so far.

        An interruption takes effect between two batches, after a checkpoint.
        """
        self.prepared.train_state.detector.train()
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
                    images += loader.num_in(number - 1)
                    seconds = begun.seconds + time.perf_counter() - started
                    self._note(PartialEpoch(number, images, seconds=seconds, waited=waited))
                    if self._save_is_due(number):
                        self._save()
                self._agree(number)
                if self._should_stop():
                    break
                self._tell_step(number, images / seconds)
                asked = time.perf_counter()
        except KeyboardInterrupt:
            if not self.world.is_distributed:  # else all ranks have saved together
                self._save()
            raise
        finally:
            batches.close()  # its thread too, which must not run on when Python ends
        box, objectness, classification = self.watch.finish().tolist()
        seconds = begun.seconds + time.perf_counter() - started
        return {
            "epoch": self.progress.epoch + 1,
            "train/box": box,
            "train/objectness": objectness,
            "train/classification": classification,
            "train/skipped_steps": self.watch.num_skipped,
            "lr": self._settings(self.progress.optimizer_steps - 1).lr,
            "images_per_second": images / seconds,
            "seconds/train": seconds,
            "seconds/data_wait": waited,
        }

    def _take(self, batch: Batch, number: int) -> None:
        """Train on batch `number` (from 1) of the epoch, with an optimizer step if one is due."""
        is_last = self._ends_step(number)
        self.watch.take(self.step.accumulate(batch, self.prepared.loader.num_in(number - 1), is_last), batch)
        if is_last:
            norm = self.step.apply(self._settings(self.progress.optimizer_steps))
            self.progress = replace(self.progress, optimizer_steps=self.progress.optimizer_steps + 1)
            self.watch.take_step(norm, self.step.fault)

    def _ends_step(self, number: int) -> bool:
        """Whether an optimizer step comes after batch `number` (from 1)."""
        return number % self.accumulation == 0 or number == len(self.prepared.loader)

    def _settings(self, step_number: int) -> Settings:
        total = self.steps_per_epoch * self.recipe.epochs
        return settings_at(step_number, total, self.steps_per_epoch, self.recipe.optimizer)

    def _note(self, partial: PartialEpoch) -> None:
        """Record the progress of the epoch; the loss sums are filled in when it is saved."""
        self.progress = replace(self.progress, partial=partial)

    def _save_is_due(self, number: int) -> bool:
        if self.world.is_distributed and not self._ends_step(number):
            return False  # each rank has its own gradients, and a checkpoint holds those of rank 0
        if self.late is not None:
            return False  # a checkpoint of this epoch implies that the one before is complete
        minutes = self.recipe.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self.saved_at >= minutes * 60

    def _save(self) -> None:
        """A checkpoint of this moment, between two batches of an epoch."""
        self.run_writer.save_within(self.progress, self.watch)
        self.saved_at = time.perf_counter()

    def _agree(self, number: int) -> None:
        """Between two steps: conclude the previous epoch if its metrics are ready; end all ranks if one has a
        signal.
        """
        if not (self.world.is_distributed and self._ends_step(number)):
            return
        noted, ready = self.interrupts.noted is not None, self.late is not None and self.late.are_ready
        someone_noted, are_ready = (self.world.all_reduce(torch.tensor([float(noted), float(ready)])) > 0).tolist()
        if are_ready or someone_noted:
            self._conclude_late()
        if someone_noted:
            self._save()
            self.world.barrier()  # for rank 0's checkpoint, before torchrun sees a rank end
            self.interrupts.take_effect()
            raise KeyboardInterrupt

    def _skipped(self, skipped: Skipped) -> None:
        """Report and log a skipped step; DivergedError, with a post-mortem, when there are too many."""
        facts = facts_of(skipped, self.records, self.world)
        self.run_writer.note_skipped(facts)
        self.listener(StepSkipped(facts))
        scaled = self.prepared.train_state.scaler.is_enabled()
        if skipped.in_a_row >= (_MOST_SKIPPED_SCALED if scaled else _MOST_SKIPPED):
            raise self.run_writer.diverged(skipped, facts)

    def _tell_step(self, number: int, speed: float) -> None:
        per_epoch = len(self.prepared.loader)
        at = self.progress.epoch * per_epoch + number
        seconds_a_batch = (time.perf_counter() - self.started) / (at - self.first_batch)
        left = (self.recipe.epochs * per_epoch - at) * seconds_a_batch
        box, objectness, classification = self.watch.means.tolist()
        told = StepDone(self.progress.epoch + 1, number, box, objectness, classification, speed, left)
        settings = self._settings(max(0, self.progress.optimizer_steps - 1))
        self.listener(replace(told, step=at, lr=settings.lr, bias_lr=settings.bias_lr))

    def _end_epoch(self, row: dict[str, float]) -> None:
        """Validate and conclude an epoch, or compute its metrics in a thread while the next one trains."""
        self._conclude_late()
        if self._should_stop():
            return
        finish = None if self.prepared.validator is None else self._validate()
        epoch, in_a_row = self.progress.epoch + 1, self.watch.in_a_row
        progress = replace(self.progress, epoch=epoch, partial=PartialEpoch(), skipped_in_a_row=in_a_row)
        averaged = self.prepared.train_state.ema.model
        with HeldInterrupts():
            if self.world.is_distributed and self.prepared.validator is not None and epoch < self.recipe.epochs:
                self._save()  # of the epoch with all its batches: a resume begins with the validation
                self.late = OverlappedValidation(row, progress, averaged, finish)
                self.progress = progress
            else:
                self._conclude(row, progress, averaged, None if finish is None else finish())
                self.run_writer.save(self.progress)
            self.saved_at = time.perf_counter()

    def _validate(self) -> Callable[[], ValidationResult] | None:
        """The metrics of the EMA weights, still to be computed; None on ranks other than 0."""
        assert self.prepared.validator is not None
        self._share_statistics()
        try:
            return self.prepared.validator.run_shared(
                self.prepared.train_state.ema.model,
                self.recipe.validation,
                self.prepared.device,
                autocast_dtype=self.prepared.precision.dtype,
            )
        except DivergedError as error:
            where = f"epoch {self.progress.epoch + 1}, in validation"
            raise DivergedError(f"training diverged: {where}: {error}\n{self.run_writer.after_divergence()}") from error
        except KeyboardInterrupt:  # of a single process; several ranks only record it
            self._save()  # of the epoch with all its batches: a resume begins with the validation
            raise

    def _share_statistics(self) -> None:
        """Broadcast rank 0's EMA statistics of batch normalisation, so that all ranks measure the same network."""
        if self.world.is_distributed:
            averaged = dict(self.prepared.train_state.ema.model.named_buffers())
            of_first = self.world.broadcast_tensors({name: buffer.cpu() for name, buffer in averaged.items()})
            for name, buffer in averaged.items():
                buffer.copy_(of_first[name])

    def _conclude_late(self) -> None:
        """Wait for the metrics of the previous epoch and conclude it."""
        if self.late is not None:
            late, self.late = self.late, None
            with HeldInterrupts():
                self._conclude(late.row, late.progress, late.averaged, late.result())

    def _conclude(
        self,
        row: dict[str, float],
        at_end: Progress,
        averaged: Detector | None,
        validation: ValidationResult | None,
    ) -> None:
        """Write weights and metrics of an epoch. at_end: the progress at its end, which may be behind the current
        one.
        """
        row |= {} if validation is None else dict(validation.rows())
        score = self.world.broadcast(math.nan if validation is None else validation.metrics.map)
        # Without a score (val split missing or without labels) the newest weights count as the best.
        improved = at_end.best_epoch is None or score > at_end.best_map
        now = self.progress if self.progress.epoch == at_end.epoch else at_end
        if improved and not math.isnan(score):
            now = replace(now, best_map=score, best_epoch=at_end.epoch)
        self.run_writer.conclude(row, averaged, improved)
        self.progress, self.last_validation = now, validation
        self.listener(EpochDone(at_end.epoch, row, validation, improved))

    def _should_stop(self) -> bool:
        """Whether patience has run out, as far as is known."""
        patience, progress = self.recipe.patience, self.progress
        num_known = progress.epoch - (self.late is not None)
        return bool(patience) and progress.best_epoch is not None and num_known - progress.best_epoch >= patience
