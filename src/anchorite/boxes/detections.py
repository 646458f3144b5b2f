"""`Detections`: what a detector found in one image.

Legend: N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Detection(NamedTuple):
    """One found object: box_xyxy in pixels of the original image, score in 0..1, class number and name."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    boxes_xyxy: (N, 4) float, corners in pixels of the original image; scores: (N,) float in 0..1; class_ids: (N,)
    int64; class_names: K names; image_size: (height, width) of the original image; source: where the image came from.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    class_ids: Tensor
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    source: str = field(default="")

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True)
        for box, score, class_id in rows:
            yield Detection(tuple(box), score, class_id, self.class_names[class_id])

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for detection in self:
            counts[detection.class_name] = counts.get(detection.class_name, 0) + 1
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"
        height, width = self.image_size
        source = f"{self.source}: " if self.source else ""
        return f"Detections({source}{found}; image {width}x{height})"
