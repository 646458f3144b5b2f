"""`TensorBoard`: a logger that writes what a run tells as TensorBoard shows it; needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anchorite.boxes import Detections
from anchorite.data import decode_image
from anchorite.errors import AnchoriteError
from anchorite.evaluate import ValidationResult
from anchorite.jpeg import encode_jpeg, shrunk
from anchorite.metrics import Predictions
from anchorite.predict import draw
from anchorite.reading import printable
from anchorite.train.event_file import EventFile, need_tensorboard
from anchorite.train.events import EpochDone, Event, RunFinished, RunStarted, StepDone

EVENTS_FOLDER, STEPS_FOLDER = "events", "steps"
_POINTS_PER_EPOCH = 100  # of the curves by step
_NUM_PICTURES = 4
_LEAST_SCORE = 0.25  # of a box that is drawn
_LONGEST_PX, _JPEG_QUALITY = 640, 85


class TensorBoard:
    """Writes RUN/events: each column of metrics.csv by epoch, settings, decisions, and validation images with what was
    found in them; and RUN/events/steps: losses, rates and speed by step, at most 100 points an epoch.

    A run that is gone on with takes back the points after the place where it goes on. Starts no thread; all that was
    told is on disk. As a context manager it closes its files however the run ends; `RunFinished` closes them, too.
    Raises InputError where the package tensorboard is missing.
    """

    def __init__(self) -> None:
        need_tensorboard()
        self._epochs: EventFile | None = None
        self._steps: EventFile | None = None
        self._started: RunStarted | None = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, RunFinished):
            self.close()

    def close(self) -> None:
        """Close the files; nothing where there are none."""
        for file in (self._epochs, self._steps):
            if file is not None:
                file.close()
        self._epochs = self._steps = None

    def _start(self, event: RunStarted) -> None:
        folder = event.folder / EVENTS_FOLDER
        self.close()
        is_new = not folder.exists()
        self._started = event
        self._epochs = EventFile(folder, event.first_epoch + 1)
        self._steps = EventFile(folder / STEPS_FOLDER, event.first_step + 1)
        if is_new:
            for summary in _facts(event):
                self._epochs.add(summary, 0)

    def _step(self, event: StepDone) -> None:
        assert self._steps is not None
        assert self._started is not None
        every = -(-self._started.num_batches // _POINTS_PER_EPOCH)
        if event.step % every == 0:
            self._steps.add_scalars(
                {
                    "step/box": event.box,
                    "step/objectness": event.objectness,
                    "step/classification": event.classification,
                    "step/lr": event.lr,
                    "step/bias_lr": event.bias_lr,
                    "step/images_per_second": event.images_per_second,
                },
                event.step,
            )

    def _epoch(self, event: EpochDone) -> None:
        assert self._epochs is not None
        assert self._started is not None
        self._epochs.add_scalars({name: value for name, value in event.row.items() if name != "epoch"}, event.epoch)
        if event.improved and event.validation is not None:
            for name, picture in _pictures(self._started.val_images, event.validation):
                height, width = picture.shape[:2]
                self._epochs.add_jpeg(name, encode_jpeg(picture, _JPEG_QUALITY), (height, width), event.epoch)


def _facts(event: RunStarted) -> Iterator[Any]:
    """Summaries of what a run is started with: settings for the page HPARAMS, and texts."""
    from tensorboard.plugins.hparams import summary_v2 as hparams
    from tensorboard.plugins.text.summary_v2 import text_pb

    settings = event.settings()
    metrics = [hparams.Metric(tag) for tag in ("val/map", "val/map50", "val/map75", "images_per_second")]
    yield hparams.hparams_config_pb([hparams.HParam(name) for name in settings], metrics)
    yield hparams.hparams_pb(settings, trial_id=str(event.folder))
    yield text_pb("run/decisions", "\n".join(f"- {decision}" for decision in event.decisions))
    yield text_pb("run/environment", "\n".join(f"- {name}: {value}" for name, value in event.environment.items()))
    yield text_pb("run/classes", "\n".join(f"1. {name}" for name in event.class_names))
    yield text_pb("run/recipe", f"```yaml\n{event.recipe.to_yaml()}```")


def _pictures(paths: tuple[Path, ...], result: ValidationResult) -> Iterator[tuple[str, np.ndarray]]:
    """The first images of the split with what was found in them, by name; one that has gone since is passed over."""
    for number, (path, found) in enumerate(
        zip(paths[:_NUM_PICTURES], result.predictions[:_NUM_PICTURES], strict=True), 1
    ):
        try:
            image = decode_image(path)
        except AnchoriteError:
            continue
        height, width = image.shape[:2]
        drawn = draw(image, _detections(found, result.class_names, (height, width)))
        yield f"val/{number} {printable(path.name)}", shrunk(drawn, _LONGEST_PX)


def _detections(found: Predictions, class_names: tuple[str, ...], size_hw: tuple[int, int]) -> Detections:
    order = np.argsort(-found.scores, kind="stable")
    kept = order[found.scores[order] >= _LEAST_SCORE]
    boxes, scores, ids = (torch.from_numpy(one[kept]) for one in (found.boxes_xyxy, found.scores, found.class_ids))
    return Detections(boxes, scores, ids, class_names, size_hw)
