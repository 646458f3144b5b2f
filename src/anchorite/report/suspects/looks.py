"""What a detector sees in labelled images: each is looked at as it is and mirrored, a batch at a time.

Legend: B images, L levels, K classes, N labelled boxes of an image, D detections of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite.boxes import Targets
from anchorite.data import LetterboxedBatch, Record, letterboxed_batches
from anchorite.errors import DivergedError
from anchorite.evaluate.targets import batch_targets
from anchorite.loss import DetectionLoss, LossConfig, break_down
from anchorite.model import Detector, fold_batch_norm, to_channels_last
from anchorite.predict import PredictConfig, batch_detections

Progress = Callable[[int, int], None]
# Far below what counts as confident: how weak a label's own class is tells as much as how strong another is.
_LIMITS = PredictConfig(confidence=0.01, iou_threshold=0.6, max_detections=300, multi_label=True)
# Gains of 1 and no balance between levels or images: what one box costs, whatever stands beside it.
_PLAIN_LOSS = LossConfig(box_gain=1.0, class_gain=1.0)


@dataclass(frozen=True, slots=True)
class Look:
    """What the detector finds in one view of an image, mapped back to pixels of the image as displayed.

    boxes_xyxy: (D, 4) float64; scores: (D,) float64, objectness times class probability; class_ids: (D,) int64; a place
    may stand here several times, once a class. losses: (N,) float64, what each label costs at its places on average,
    1 - CIoU plus the class term; NaN for labels that are ignored or that no anchor answers for.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    losses: NDArray[np.float64]


class Observer:
    """A detector made ready to look at labelled images; the one given stays as it is.

    autocast_dtype: number format of the convolutions, None for float32. mirrored: look at each image's mirror image,
    too.
    """

    def __init__(
        self,
        detector: Detector,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
        mirrored: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self.autocast_dtype = autocast_dtype
        self.mirrored = mirrored
        self.anchors = detector.anchors
        self.network = fold_batch_norm(detector).to(self.device)
        to_channels_last(self.network)
        self.criterion = DetectionLoss(detector.anchors, detector.num_classes, _PLAIN_LOSS).to(self.device)

    def looks(
        self, records: Sequence[Record], image_size: int, batch_size: int = 16, progress: Progress | None = None
    ) -> Iterator[tuple[int, list[Look]]]:
        """Yield (index of the record, its looks: as it is and, if asked for, mirrored), in the order of the batches.

        Images are decoded on the way, one batch ahead; nothing is kept. Raises InputError naming an image that cannot
        be decoded, DivergedError naming one for which the network's output is not finite.
        """
        done = 0
        for batch in letterboxed_batches(records, image_size, batch_size, self.anchors.strides[-1]):
            views = [self._look(records, batch, flip) for flip in ((False, True) if self.mirrored else (False,))]
            for number, index in enumerate(batch.indices.tolist()):
                yield index, [view[number] for view in views]
            done += len(batch.indices)
            if progress is not None:
                progress(done, len(records))

    @torch.inference_mode()
    def _look(self, records: Sequence[Record], batch: LetterboxedBatch, flip: bool) -> list[Look]:
        targets = batch_targets(records, batch)
        images = batch.images.to(self.device).float() / 255
        if flip:
            images, targets = images.flip(-1), _mirrored(targets)
        logits = self._forward(images)
        self._check_finite(records, batch, logits)
        losses = self._losses(logits, targets.to(self.device))
        found = batch_detections(logits, self.anchors, _LIMITS).cpu().split()
        looks, first = [], 0
        width = images.shape[-1]
        for index, transform, raw in zip(batch.indices.tolist(), batch.transforms, found, strict=True):
            record = records[index]
            boxes = raw.boxes_xyxy.double().numpy()
            if flip:
                boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
            ends = (record.width, record.height) * 2
            boxes = np.clip(transform.to_source(boxes), 0, ends)
            inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            of_labels = np.full(len(record.class_ids), np.nan)
            counted = ~record.ignored
            of_labels[counted] = losses[first : first + int(counted.sum())]
            first += int(counted.sum())
            scores, class_ids = raw.scores.double().numpy(), raw.class_ids.numpy()
            looks.append(Look(boxes[inside], scores[inside], class_ids[inside], of_labels))
        return looks

    def _forward(self, images: Tensor) -> list[Tensor]:
        is_reduced = self.autocast_dtype not in (None, torch.float32)
        with torch.autocast(self.device.type, self.autocast_dtype) if is_reduced else nullcontext():
            logits: list[Tensor] = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits

    def _check_finite(self, records: Sequence[Record], batch: LetterboxedBatch, logits: Sequence[Tensor]) -> None:
        most = torch.stack([level.abs().amax(dim=(1, 2, 3, 4)) for level in logits]).amax(dim=0)
        for index, fine in zip(batch.indices.tolist(), most.isfinite().tolist(), strict=True):
            if not fine:
                raise DivergedError(
                    f"{records[index].path}: the network's output for this image is not finite: its training diverged "
                    "or its weights are damaged. Use earlier weights, or --precision fp32"
                )

    def _losses(self, logits: Sequence[Tensor], targets: Targets) -> NDArray[np.float64]:
        """(T,) mean over each target's places of all levels of its box and class loss; NaN where it has none."""
        sums = torch.zeros(len(targets), dtype=torch.float64, device=self.device)
        counts = torch.zeros_like(sums)
        for level in break_down(self.criterion, logits, targets):
            # Shares of the level's mean are undone, so that a box costs the same in whatever batch it comes.
            cost = (level.box + level.classification * self.criterion.num_classes).double() * len(level.iou)
            sums.index_add_(0, level.assignment.target, cost)
            counts.index_add_(0, level.assignment.target, torch.ones_like(cost))
        means: NDArray[np.float64] = torch.where(counts > 0, sums / counts, torch.nan).cpu().numpy()
        return means


def _mirrored(targets: Targets) -> Targets:
    rows = targets.rows.clone()
    rows[:, 2] = 1 - rows[:, 2]
    return Targets(rows)
