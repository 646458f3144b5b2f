"""The labels of whole images as the loss takes them.

Legend: B images, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from anchorite.boxes import Targets
from anchorite.data import LetterboxedBatch, Record


def batch_targets(records: Sequence[Record], batch: LetterboxedBatch) -> Targets:
    """The labelled boxes of a batch of letterboxed images, (T, 6) float32 rows, without the ignored ones."""
    height, width = batch.images.shape[-2:]
    rows = [np.zeros((0, 6))]
    for number, (index, transform) in enumerate(zip(batch.indices.tolist(), batch.transforms, strict=True)):
        kept = ~records[index].ignored
        boxes = transform.to_network(records[index].boxes_xyxy[kept]) / (width, height, width, height)
        lows, highs = boxes[:, :2], boxes[:, 2:]
        head = np.stack([np.full(len(boxes), number), records[index].class_ids[kept]], axis=1)
        rows.append(np.concatenate([head, (lows + highs) / 2, highs - lows], axis=1))
    return Targets.from_rows(torch.from_numpy(np.concatenate(rows)).float())
