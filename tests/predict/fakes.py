"""Logits whose detections are known: everything silent but the places given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet, encode_boxes
from anchorite.boxes import xyxy_to_cxcywh

SILENT = -20.0


def silent_logits(anchors: AnchorSet, num_classes: int, num_images: int, height: int, width: int) -> list[Tensor]:
    """L levels of (B, A, 5 + K, H_l, W_l) in which nothing is found."""
    return [
        torch.full((num_images, anchors.num_anchors, 5 + num_classes, height // stride, width // stride), SILENT)
        for stride in anchors.strides
    ]


def plant(
    logits: list[Tensor], anchors: AnchorSet, image: int, box_xyxy: tuple[float, ...], class_id: int, score: float = 0.9
) -> None:
    """Let one place answer with a box (pixels of the input), a class and a score: the anchor nearest in shape."""
    box = xyxy_to_cxcywh(torch.tensor(box_xyxy, dtype=torch.float64))
    ratios = box[2:] / anchors.pixels(torch.float64)
    worst = torch.maximum(ratios, 1 / ratios).amax(dim=-1)
    level, anchor = divmod(int(worst.argmin()), anchors.num_anchors)
    stride = anchors.strides[level]
    rows, columns = logits[level].shape[-2:]
    column = min(max(int(box[0] / stride), 0), columns - 1)
    row = min(max(int(box[1] / stride), 0), rows - 1)
    in_cell = torch.cat([box[:2] / stride - torch.tensor([column, row]), box[2:] / stride])
    place = logits[level][image, anchor, :, row, column]
    place[:4] = encode_boxes(in_cell, anchors.cells(torch.float64)[level, anchor]).to(place.dtype)
    place[4] = 20.0
    place[5 + class_id] = torch.logit(torch.tensor(score)).item()


class SquareFinder(nn.Module):
    """A detector that is right by construction: it reports the extent of all pixels brighter than 200.

    The bright channel, 0, 1 or 2, is the class. So an image with one bright rectangle on black has a known answer, and
    an error of frame, scale, channel order or letterboxing shows as a wrong box or class.
    """

    def __init__(self, anchors: AnchorSet) -> None:
        super().__init__()
        self.size, self.num_classes, self.anchors, self.strides = "n", 3, anchors, anchors.strides
        self.unused = nn.Parameter(torch.zeros(1))
        self.batch_shapes: list[tuple[int, ...]] = []

    def __deepcopy__(self, memo: dict[int, object]) -> SquareFinder:
        return self  # the predictor copies; the test wants to see the batches

    def forward(self, images: Tensor) -> list[Tensor]:
        self.batch_shapes.append(tuple(images.shape))
        logits = silent_logits(self.anchors, self.num_classes, images.shape[0], *images.shape[2:])
        for number, image in enumerate(images):
            for channel in range(3):
                rows, columns = (image[channel] > 200 / 255).nonzero(as_tuple=True)
                if rows.numel():
                    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                    plant(logits, self.anchors, number, tuple(float(edge) for edge in box), channel)
        return logits
