"""Pictures whose boxes can be read off their pixels, and a detector that does so.

Each class has a colour; a box is filled with its class's colour on black. The detector finds the extent of each colour
in the input it is given, so nothing but the pixels tells it where a box is: letterbox, batches and the way back to
original pixels are all tested by it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anchorite.anchors import AnchorSet, encode_boxes
from anchorite.data.dataset import Record

CLASS_NAMES = ("red", "green", "blue")
ANCHORS = AnchorSet.from_rows([[20, 20], [60, 60], [160, 160]], (8, 16, 32))
FAR_BELOW = -12.0


def make_record(path: Path, size_wh: tuple[int, int], boxes: list[tuple[int, list[float]]], ignored=(), exif=None):
    """Write a picture of boxes (class, xyxy) as displayed at `size_wh`; with `exif` 6, store it turned."""
    width, height = size_wh
    pixels = np.zeros((height, width, 3), np.uint8)
    for class_id, (x1, y1, x2, y2) in boxes:
        pixels[y1:y2, x1:x2, class_id] = 255
    if exif == 6:  # stored lying on its left side: turn it clockwise to display it
        tag = Image.Exif()
        tag[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=tag, quality=95)
    else:
        Image.fromarray(pixels).save(path)
    xyxy = np.array([box for _, box in boxes], dtype=np.float64).reshape(-1, 4)
    return Record(
        path=path,
        width=width,
        height=height,
        boxes_xyxy=xyxy,
        class_ids=np.array([class_id for class_id, _ in boxes], dtype=np.int64),
        ignored=np.array([number in ignored for number in range(len(boxes))], dtype=bool),
        areas=(xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]),
        origins=tuple(f"{path}:{number}" for number in range(len(boxes))),
    )


def make_records(folder: Path) -> list[Record]:
    """Landscape, portrait, square, larger and smaller than the input, without boxes, and one turned by EXIF."""
    return [
        make_record(folder / "wide.png", (640, 400), [(0, [40, 50, 300, 340]), (2, [350, 20, 620, 380])]),
        make_record(folder / "tall.png", (300, 520), [(1, [20, 30, 280, 250]), (0, [40, 280, 260, 500])]),
        make_record(folder / "empty.png", (640, 400), []),
        make_record(folder / "square.png", (320, 320), [(2, [10, 12, 150, 300]), (1, [170, 20, 310, 290])]),
        make_record(folder / "little.png", (111, 97), [(1, [8, 9, 100, 88])]),
        make_record(folder / "odd size, \u00fc.png", (501, 333), [(0, [31, 17, 470, 320])]),
        make_record(folder / "turned.jpg", (400, 640), [(2, [30, 40, 370, 300]), (1, [60, 330, 350, 600])], exif=6),
    ]


class ColourDetector(nn.Module):
    """Answers with the boxes of the colours it sees, one of each class at most, sure of all of them.

    `hook`, if given, is called with the input images before the answer; `shift_class` makes every class wrong.
    """

    def __init__(self, hook=None, shift_class: int = 0, blind_to: int | None = None) -> None:
        super().__init__()
        self.anchors, self.strides, self.num_classes = ANCHORS, ANCHORS.strides, len(CLASS_NAMES)
        self.hook, self.shift_class, self.blind_to = hook, shift_class, blind_to

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.hook is not None:
            self.hook(images)
        batch, _, height, width = images.shape
        channels = 5 + self.num_classes
        logits = [
            torch.full((batch, 1, channels, height // s, width // s), FAR_BELOW, dtype=torch.float32)
            for s in self.strides
        ]
        for image in range(batch):
            for class_id in range(self.num_classes):
                others = [channel for channel in range(3) if channel != class_id]
                seen = (images[image, class_id] > 0.5) & (images[image, others] < 0.4).all(dim=0)
                if class_id != self.blind_to and seen.any():
                    self._answer(logits, image, class_id, seen)
        return logits

    def _answer(self, logits: list[Tensor], image: int, class_id: int, seen: Tensor) -> None:
        rows, columns = seen.any(dim=1).nonzero()[:, 0], seen.any(dim=0).nonzero()[:, 0]
        x1, y1, x2, y2 = columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1
        level = 2
        stride = self.strides[level]
        box = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dtype=torch.float32) / stride
        column, row = int(box[0]), int(box[1])
        box[:2] -= torch.tensor([column, row])
        place = logits[level][image, 0, :, row, column]
        place[:4] = encode_boxes(box, ANCHORS.cells()[level][0])
        place[4] = -FAR_BELOW
        place[5 + (class_id + self.shift_class) % self.num_classes] = -FAR_BELOW
