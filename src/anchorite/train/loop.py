"""The training loop: epochs of steps, each followed by validation and a checkpoint; and the losses of an epoch."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anchorite.data import Batch
from anchorite.devices import deterministic_algorithms
from anchorite.errors import DivergedError, NoMemoryError, is_out_of_memory
from anchorite.evaluate import ValidationResult
from anchorite.interrupts import HeldInterrupts
from anchorite.loss import LossTerms
from anchorite.model import Detector, WeightsInfo, save_weights
from anchorite.train.checkpoint import PartialEpoch, Progress, save_checkpoint
from anchorite.train.events import EpochDone, Listener, RunFinished, StepDone, StepSkipped, ValidationProgress
from anchorite.train.memory import memory_facts
from anchorite.train.optim import Settings, settings_at
from anchorite.train.recipe import Recipe
from anchorite.train.run_folder import RunFolder
from anchorite.train.setup import Prepared, run_started
from anchorite.train.step import TrainingStep

# Steps in a row that may be skipped; more with a gradient scaler, which finds its scale by trying.
_MAX_SKIPPED, _MAX_SKIPPED_SCALED = 5, 25


class AsyncLossMeter:
    """Sums the terms of an epoch's batches on the host, and passes each skipped step to `on_skip`.

    on_skip gets the facts for the log (epoch and batch, from 1, the last of the step; what was not finite; that batch's
    losses; how many steps in a row were skipped) and all batches of the step.

    `lag` batches may be on their way to the host: their terms are copied without waiting, and read that many batches
    later, when the device has long passed them. On the CPU nothing has to be waited for, and lag is 0.
    """

    def __init__(self, device: torch.device, on_skip: Callable[[dict[str, Any], tuple[Batch, ...]], None]) -> None:
        self.lag = 0 if device.type == "cpu" else 2
        self.on_skip = on_skip
        self.in_a_row = 0
        self.start(epoch=0)

    def start(self, epoch: int, partial: PartialEpoch | None = None) -> None:
        """Begin an epoch (0-based), or continue within it."""
        partial = partial or PartialEpoch()
        self.epoch = epoch
        self.num_batches, self.num_finite, self.num_skipped = partial.batches, partial.finite_batches, partial.skipped
        self.sums = torch.tensor(partial.loss_sums, dtype=torch.float64)
        # Values on their way, their arrival (None: they are there), and a fault of the step or the batch of the terms.
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, str | None, Batch | None]] = deque()
        self._of_step: list[Batch] = []
        self._last_terms: tuple[float, ...] = ()

    def update(self, terms: LossTerms, batch: Batch) -> None:
        """Note the terms of the next batch."""
        self._send(torch.stack(terms[1:]), None, batch)

    def update_step(self, norm: Tensor, fault: str | None = None) -> None:
        """Note that a step was made of the batches since the last, or not: its norm; what was wrong, where known."""
        self._send(norm[None], fault, None)

    def flush(self) -> Tensor:
        """Read everything, waiting for it; the means then."""
        while self._pending:
            self._read(*self._pending.popleft())
        return self.means

    @property
    def means(self) -> Tensor:
        """Means (3,) float64 of box, objectness and class loss over the finite ones of the batches read so far; zeros
        before the first."""
        return self.sums / max(1, self.num_finite)

    def _send(self, values: Tensor, fault: str | None, batch: Batch | None) -> None:
        values, arrived = values.detach(), None
        if values.device.type == "cuda":
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            values = values.cpu().clone()
        self._pending.append((values, arrived, fault, batch))
        if self.lag == 0:
            self.flush()
        while sum(batch is not None for *_, batch in self._pending) > self.lag:
            self._read(*self._pending.popleft())

    def _read(self, values: Tensor, arrived: torch.cuda.Event | None, fault: str | None, batch: Batch | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        is_finite = bool(values.isfinite().all())
        if batch is not None:
            self.num_batches += 1
            self._of_step.append(batch)
            self._last_terms = tuple(values.tolist())
            if is_finite:
                self.num_finite += 1
                self.sums += values.double()
            return
        batches, self._of_step = tuple(self._of_step), []
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if not is_finite:
            self.num_skipped += 1
            facts = {
                "epoch": self.epoch + 1,
                "batch": self.num_batches,
                "not_finite": fault or "a loss, a gradient or a statistic",
                "losses": dict(zip(LossTerms._fields[1:], map(str, self._last_terms), strict=True)),
                "in_a_row": self.in_a_row,
            }
            self.on_skip(facts, batches)


class Run:
    """One run; `run` takes it from a point of progress to its end.

    In distributed training all ranks go through the same batches, each with its part, and take the same decisions; rank
    0 writes the files. A signal to any rank ends all after the same optimizer step. While rank 0 computes the metrics
    of an epoch, the next epoch trains; the files are the same as without this overlap.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, prepared: Prepared, listener: Listener) -> None:
        self.recipe, self.folder, self.prepared, self.listener = recipe, folder, prepared, listener
        self.world, self.loader, train_state = prepared.world, prepared.loader, prepared.train_state
        self.step = TrainingStep(
            train_state,
            prepared.precision,
            recipe.optimizer.clip_norm,
            prepared.device,
            compiled_for=self.loader.num_in(0) if prepared.compiled else None,
        )
        self.losses = AsyncLossMeter(prepared.device, self._handle_skipped)
        detector, names = train_state.detector, prepared.dataset.class_names
        self.info = WeightsInfo(recipe.model, names, detector.anchors, recipe.image_size, detector.backbone_config)
        self.accumulation = recipe.optimizer.accumulation(recipe.batch_size)
        self.steps_per_epoch = math.ceil(len(self.loader) / self.accumulation)
        self.progress = Progress()
        self.is_between_batches = True  # the train state is that of `progress`
        self.started = self.saved_at = time.perf_counter()
        # torchrun may pass on a Ctrl-C that has reached this process already: within a second it is the same one.
        self.interrupts = HeldInterrupts(off=not self.world.is_distributed, repeat_s=1.0)
        # The epoch before, while its metrics are computed: its row so far, the progress at its end, on rank 0 a copy
        # of the weights that are measured, and the metrics to come.
        self.overlapped: tuple[dict[str, float], Progress, Detector | None, Future[ValidationResult] | None] | None
        self.overlapped = None
        self.last_validation: ValidationResult | None = None

    def run(self, progress: Progress) -> RunFinished:
        """Train, validate and save, epoch by epoch, to the last one or until patience runs out."""
        ran_out: str | None = None
        with self.interrupts, deterministic_algorithms(self.recipe.deterministic):
            self.progress = progress
            self.losses.in_a_row = progress.skipped_in_a_row
            if self.world.is_main:
                self.folder.remove_rows_after(progress.epoch)
            self.listener(run_started(self.folder.path, self.recipe, self.prepared, progress))
            self.first_batch = progress.epoch * len(self.loader) + progress.partial.batches
            try:
                while self.progress.epoch < self.recipe.epochs and not self._should_stop():
                    row = self.train_epoch()
                    if not self._should_stop():  # the overlapped metrics of the epoch before may have ended the run
                        self._end_epoch(row)
            except (MemoryError, RuntimeError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                ran_out = memory_facts(error, self.prepared.device)
            if ran_out is not None:  # here, where the error does not hold what took the memory any more
                raise self._without_memory(ran_out)
            stopped_early = self.progress.epoch < self.recipe.epochs or self._should_stop()
            reason = f"no better mAP for {self.recipe.patience} epochs" if stopped_early else "complete"
            seconds = time.perf_counter() - self.started
            finished = RunFinished(self.folder.path, reason, self.progress.best_epoch, self.progress.best_map, seconds)
            if self.world.is_main:
                self.folder.write_summary(finished, self.last_validation, self.prepared.decisions)
            self.listener(finished)
            return finished

    def train_epoch(self) -> dict[str, float]:
        """Train on the images of the epoch, or on the rest of it after a resume; its row of metrics so far.

        A signal takes effect between two batches, after a checkpoint of all that was done.
        """
        self.prepared.train_state.detector.train()
        begun = self.progress.partial
        self.loader.set_epoch(self.progress.epoch, begun.batches)
        self.losses.start(self.progress.epoch, begun)
        started = requested = time.perf_counter()
        num_images, waited = begun.images, begun.waited
        batches = iter(self.loader)
        try:
            for number, batch in enumerate(batches, begun.batches + 1):
                waited += time.perf_counter() - requested
                with HeldInterrupts():
                    self._train_batch(batch, number)
                    num_images += self.loader.num_in(number - 1)
                    seconds = begun.seconds + time.perf_counter() - started
                    partial = PartialEpoch(number, num_images, seconds=seconds, waited=waited)
                    self.progress = replace(self.progress, partial=partial)
                    if self._checkpoint_is_due(number):
                        self._save_checkpoint()
                if self.world.is_distributed and self._ends_step(number):
                    self._synchronize_ranks()
                if self._should_stop():
                    break
                self._report_step(number, num_images / seconds)
                requested = time.perf_counter()
        except KeyboardInterrupt:
            if not self.world.is_distributed:  # else `_synchronize_ranks` has saved already
                self._save_checkpoint()
            raise
        finally:
            batches.close()  # ends its thread before the interpreter may shut down
        box, objectness, classification = self.losses.flush().tolist()
        seconds = begun.seconds + time.perf_counter() - started
        return {
            "epoch": self.progress.epoch + 1,
            "train/box": box,
            "train/objectness": objectness,
            "train/classification": classification,
            "train/skipped_steps": self.losses.num_skipped,
            "lr": self._optimizer_settings(self.progress.optimizer_steps - 1).lr,
            "images_per_second": num_images / seconds,
            "seconds/train": seconds,
            "seconds/data_wait": waited,
        }

    def _train_batch(self, batch: Batch, number: int) -> None:
        """Add the gradients of batch `number` (from 1) of the epoch; an optimizer step after the last of a step."""
        ends_step, self.is_between_batches = self._ends_step(number), False
        try:
            terms = self.step.accumulate(batch, self.loader.num_in(number - 1), ends_step)
        except (MemoryError, RuntimeError, OSError) as error:
            if is_out_of_memory(error) and (number == 1 or self._ends_step(number - 1)):
                self.step.undo()
                self.is_between_batches = True
            raise
        self.losses.update(terms, batch)
        if ends_step:
            norm = self.step.apply(self._optimizer_settings(self.progress.optimizer_steps))
            self.progress = replace(self.progress, optimizer_steps=self.progress.optimizer_steps + 1)
            self.losses.update_step(norm, self.step.fault)
        self.is_between_batches = True

    def _ends_step(self, number: int) -> bool:
        """Whether an optimizer step follows batch `number` (from 1)."""
        return number % self.accumulation == 0 or number == len(self.loader)

    def _optimizer_settings(self, step: int) -> Settings:
        """Those of an optimizer step of the run (0-based); of the first one where there was none yet."""
        num_steps = self.steps_per_epoch * self.recipe.epochs
        return settings_at(max(0, step), num_steps, self.steps_per_epoch, self.recipe.optimizer)

    def _checkpoint_is_due(self, number: int) -> bool:
        if self.world.is_distributed and not self._ends_step(number):
            return False  # each rank has gradients of its own, and a checkpoint holds those of rank 0
        if self.overlapped is not None:
            return False  # a checkpoint of this epoch implies that the one before has its metrics
        minutes = self.recipe.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self.saved_at >= minutes * 60

    def _save_checkpoint(self) -> None:
        """A checkpoint between two batches of an epoch; at its beginning there is one already."""
        self.losses.flush()
        partial = replace(
            self.progress.partial,
            loss_sums=self.losses.sums.tolist(),
            finite_batches=self.losses.num_finite,
            skipped=self.losses.num_skipped,
        )
        if partial.batches and self.world.is_main:
            progress = replace(self.progress, partial=partial, skipped_in_a_row=self.losses.in_a_row)
            save_checkpoint(self.folder.checkpoints, self.prepared.train_state, progress)
        self.saved_at = time.perf_counter()

    def _synchronize_ranks(self) -> None:
        """Between two steps: finish the epoch before if its metrics are computed; end all ranks if one has a signal."""
        metrics = self.overlapped[-1] if self.overlapped else None
        is_ready = metrics is not None and metrics.done()
        own = torch.tensor([float(self.interrupts.pending is not None), float(is_ready)])
        any_interrupted, any_ready = (self.world.all_reduce(own) > 0).tolist()
        if any_ready or any_interrupted:
            self._finish_overlapped()
        if any_interrupted:
            self._save_checkpoint()
            self.world.barrier()  # torchrun must not see a rank end before rank 0 has saved
            self.interrupts.take_effect()
            raise KeyboardInterrupt

    def _handle_skipped(self, facts: dict[str, Any], batches: tuple[Batch, ...]) -> None:
        """Report and log a step that was skipped; DivergedError, with a post-mortem, after too many in a row."""
        records, epoch, batch = self.prepared.dataset.splits["train"], facts["epoch"], facts["batch"]
        indices = [index for one in batches for index in one.indices.tolist()]
        images = self.world.all_gather([str(records[index].path) for index in indices])  # the first tile of each
        facts["images"] = [path for of_rank in images for path in of_rank]
        if self.world.is_main:
            self.folder.append_skipped(facts)
        self.listener(StepSkipped(facts))
        scaled = self.prepared.train_state.scaler.is_enabled()
        if facts["in_a_row"] >= (_MAX_SKIPPED_SCALED if scaled else _MAX_SKIPPED):
            path = self.folder.path / f"post-mortem-epoch-{epoch:04d}-batch-{batch:05d}.json"
            if self.world.is_main:
                self.folder.write_post_mortem(path, facts, batches[-1])
            raise self._diverged(
                f"epoch {epoch}, batch {batch}: {facts['not_finite']} is not finite, and {facts['in_a_row']} steps in "
                f"a row were skipped. The batch is in {path.with_suffix('')}.*"
            )

    def _without_memory(self, facts: str) -> NoMemoryError:
        """The error to raise, after a checkpoint where this is possible. facts: what was asked for, and what was free.

        Of several ranks none may wait for another here, which still computes.
        """
        recipe, done = self.recipe, self.progress.describe(len(self.loader))
        if self.is_between_batches and self.overlapped is None:
            with suppress(MemoryError, RuntimeError):
                self._save_checkpoint()
        smaller = max(1, recipe.batch_size // 2)
        remedy = (
            f"set a smaller batch ({smaller}) in {self.folder.recipe} and resume with --allow recipe, or free memory"
            if recipe.batch_size > 1
            else "free memory, or start a new run with a smaller --image-size or --model"
        )
        return NoMemoryError(
            f"memory ran out after {done}: batch {recipe.batch_size}, {recipe.image_size} px; {facts}\n"
            f"nothing in {self.folder.path} is lost: a resume goes on from its newest checkpoint; {remedy}"
        )

    def _diverged(self, what: str) -> DivergedError:
        unchanged = f"what was saved before in {self.folder.path} is unchanged"
        advice = "Start a new run with a lower optimizer.lr or a longer optimizer.warmup_epochs"
        return DivergedError(f"training diverged: {what}\n{unchanged}. {advice}")

    def _report_step(self, number: int, images_per_second: float) -> None:
        step = self.progress.epoch * len(self.loader) + number
        seconds_per_batch = (time.perf_counter() - self.started) / (step - self.first_batch)
        left = (self.recipe.epochs * len(self.loader) - step) * seconds_per_batch
        box, objectness, classification = self.losses.means.tolist()
        settings = self._optimizer_settings(self.progress.optimizer_steps - 1)
        self.listener(
            StepDone(
                self.progress.epoch + 1, number, box, objectness, classification, images_per_second, left,
                step=step, lr=settings.lr, bias_lr=settings.bias_lr,
                images=self.progress.partial.images, num_images=self.loader.batches.sizes.num_samples,
            )
        )  # fmt: skip

    def _end_epoch(self, row: dict[str, float]) -> None:
        """Validate and finish an epoch, or compute its metrics in a thread while the next one trains."""
        self._finish_overlapped()
        if self._should_stop():
            return
        compute = None if self.prepared.validator is None else self._validate()
        epoch, in_a_row = self.progress.epoch + 1, self.losses.in_a_row
        progress = replace(self.progress, epoch=epoch, partial=PartialEpoch(), skipped_in_a_row=in_a_row)
        ema_model = self.prepared.train_state.ema.model
        with HeldInterrupts():
            if self.world.is_distributed and self.prepared.validator is not None and epoch < self.recipe.epochs:
                self._save_checkpoint()  # of the epoch with all its batches: a resume begins with the validation
                copied, metrics = None, None
                if compute is not None:
                    copied, pool = copy.deepcopy(ema_model), ThreadPoolExecutor(1, "anchorite-metrics")
                    metrics = pool.submit(compute)
                    pool.shutdown(wait=False)
                self.overlapped = row, progress, copied, metrics
                self.progress = progress
            else:
                self._finish_epoch(row, progress, ema_model, None if compute is None else compute())
                if self.world.is_main:
                    save_checkpoint(self.folder.checkpoints, self.prepared.train_state, self.progress)
            self.saved_at = time.perf_counter()

    def _validate(self) -> Callable[[], ValidationResult] | None:
        """Detect in the val split by the EMA weights; on rank 0 the function that computes the metrics, else None."""
        validator, ema_model = self.prepared.validator, self.prepared.train_state.ema.model
        assert validator is not None
        if self.world.is_distributed:  # all ranks must measure one network: rank 0's statistics of normalisation
            of_rank_0 = self.world.broadcast_tensors({name: one.cpu() for name, one in ema_model.named_buffers()})
            for name, buffer in ema_model.named_buffers():
                buffer.copy_(of_rank_0[name])
        try:
            runtime = validator.runtime(ema_model, self.prepared.device, self.prepared.precision.dtype)
            epoch = self.progress.epoch + 1
            return validator.run_shared(
                runtime,
                self.recipe.validation,
                progress=lambda done, total: self.listener(ValidationProgress(epoch, done, total)),
            )
        except DivergedError as error:
            raise self._diverged(f"epoch {self.progress.epoch + 1}, in validation: {error}") from error
        except KeyboardInterrupt:  # of a single process; several ranks only record it
            self._save_checkpoint()  # of the epoch with all its batches: a resume begins with the validation
            raise

    def _finish_overlapped(self) -> None:
        """Finish the epoch before, waiting for its metrics."""
        if self.overlapped is not None:
            (row, progress, model, metrics), self.overlapped = self.overlapped, None
            with HeldInterrupts():
                self._finish_epoch(row, progress, model, None if metrics is None else metrics.result())

    def _finish_epoch(
        self, row: dict[str, float], progress: Progress, model: Detector | None, validation: ValidationResult | None
    ) -> None:
        """Write weights and metrics of an epoch. progress: at its end, which may be behind the current one."""
        row |= {} if validation is None else dict(validation.rows())
        score = self.world.broadcast(math.nan if validation is None else validation.metrics.map)
        # Without a score, because the val split is missing or has no labels, the newest weights count as the best.
        improved = progress.best_epoch is None or score > progress.best_map
        current = self.progress if self.progress.epoch == progress.epoch else progress
        if improved and not math.isnan(score):
            current = replace(current, best_map=score, best_epoch=progress.epoch)
        if self.world.is_main:
            assert model is not None
            for path in (self.folder.best, self.folder.last) if improved else (self.folder.last,):
                save_weights(path, model, self.info)
            self.folder.add_row(row)
        self.progress, self.last_validation = current, validation
        self.listener(EpochDone(progress.epoch, row, validation, improved))

    def _should_stop(self) -> bool:
        """Whether patience has run out, by the epochs whose metrics are known."""
        patience, progress = self.recipe.patience, self.progress
        num_known = progress.epoch - (self.overlapped is not None)
        return bool(patience) and progress.best_epoch is not None and num_known - progress.best_epoch >= patience
