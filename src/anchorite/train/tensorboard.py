"""`TensorBoard`: a logger that writes a run's events as TensorBoard reads them; needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from anchorite.boxes import Detections
from anchorite.data import decode_image
from anchorite.errors import AnchoriteError, import_extra
from anchorite.evaluate import ValidationResult
from anchorite.jpeg import encode_jpeg, shrunk
from anchorite.predict import draw
from anchorite.reading import printable
from anchorite.train.events import EpochDone, Event, RunFinished, RunStarted, StepDone

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import FileWriter, SummaryWriter

EVENTS_FOLDER, STEPS_FOLDER = "events", "steps"
_POINTS_PER_EPOCH = 100  # of the curves by step
_NUM_PICTURES = 4
_LEAST_SCORE = 0.25  # of a box that is drawn
_LONGEST_PX, _JPEG_QUALITY = 640, 85


class TensorBoard:
    """Writes RUN/events: each column of metrics.csv by epoch, settings, decisions, and validation images with the
    detections on them; and RUN/events/steps: losses, learning rates and speed by step, at most 100 points an epoch.

    A resumed run removes the points after its first epoch and step from the display (TensorBoard's purge_step). The
    epochs are on disk when their event has been handled. Use it as a context manager to close the files however the run
    ends; `RunFinished` closes them as well. Raises InputError where the package tensorboard is missing.
    """

    def __init__(self) -> None:
        import_extra("torch.utils.tensorboard", "tensorboard")
        self._open: tuple[RunStarted, SummaryWriter, SummaryWriter] | None = None  # for the epochs and for the steps

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; nothing where there are none."""
        if self._open is not None:
            _, epochs, steps = self._open
            self._open = None
            epochs.close()
            steps.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, RunFinished):
            self.close()
        elif self._open is not None:
            started, epochs, steps = self._open
            if isinstance(event, StepDone) and event.step % -(-started.num_batches // _POINTS_PER_EPOCH) == 0:
                for name in ("box", "objectness", "classification", "lr", "bias_lr", "images_per_second"):
                    steps.add_scalar(f"step/{name}", getattr(event, name), event.step)
            elif isinstance(event, EpochDone):
                for name, value in event.row.items():
                    if name != "epoch":
                        epochs.add_scalar(name, value, event.epoch)
                if event.improved and event.validation is not None:
                    for picture in _pictures(started.val_images, event.validation):
                        _add(epochs, picture, event.epoch)
                steps.flush()
                epochs.flush()

    def _start(self, event: RunStarted) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = event.folder / EVENTS_FOLDER
        self.close()
        is_new = not folder.exists()
        epochs = SummaryWriter(folder, purge_step=None if is_new else event.first_epoch + 1)
        steps = SummaryWriter(folder / STEPS_FOLDER, purge_step=None if is_new else event.first_step + 1)
        self._open = event, epochs, steps
        if is_new:
            for summary in _facts(event):
                _add(epochs, summary, 0)
        epochs.flush()


def _add(writer: SummaryWriter, summary: Summary, step: int) -> None:
    """Add a summary that SummaryWriter has no method for."""
    cast("FileWriter", writer.file_writer).add_summary(summary, step)


def _facts(event: RunStarted) -> Iterator[Summary]:
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


def _pictures(paths: tuple[Path, ...], result: ValidationResult) -> Iterator[Summary]:
    """The first images of the split with what was found in them; one that has gone since is passed over. They are
    JPEGs, an eighth of the PNGs that `SummaryWriter.add_image` would write."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    shown = zip(paths[:_NUM_PICTURES], result.predictions[:_NUM_PICTURES], strict=True)
    for number, (path, found) in enumerate(shown, 1):
        try:
            image = decode_image(path)
        except AnchoriteError:
            continue
        order = np.argsort(-found.scores, kind="stable")
        kept = order[found.scores[order] >= _LEAST_SCORE]
        boxes, scores, ids = (torch.from_numpy(one[kept]) for one in (found.boxes_xyxy, found.scores, found.class_ids))
        detections = Detections(boxes, scores, ids, result.class_names, (image.shape[0], image.shape[1]))
        picture = shrunk(draw(image, detections), _LONGEST_PX)
        height, width = picture.shape[:2]
        jpeg = encode_jpeg(picture, _JPEG_QUALITY)
        of_jpeg = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)
        yield Summary(value=[Summary.Value(tag=f"val/{number} {printable(path.name)}", image=of_jpeg)])
