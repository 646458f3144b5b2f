"""`Detections`: what a detector found in one image.

Legend: N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float, Int64
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

    boxes_xyxy: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    class_ids: Int64[Tensor, " N"]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    source: str = field(default="")

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def __getitem__(self, index: int) -> Detection:
        """One detection, 0 being the best; negative numbers count from the weakest."""
        left, top, right, bottom = self.boxes_xyxy[index].tolist()
        class_id = int(self.class_ids[index])
        return Detection((left, top, right, bottom), float(self.scores[index]), class_id, self.class_names[class_id])

    def __iter__(self) -> Iterator[Detection]:
        # Three copies from the device for all of them, not three for each.
        rows = zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True)
        for (left, top, right, bottom), score, class_id in rows:
            yield Detection((left, top, right, bottom), score, class_id, self.class_names[class_id])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, ready for JSON: source, width, height, detections (best first)."""
        height, width = self.image_size
        return {
            "source": self.source,
            "width": width,
            "height": height,
            "detections": [
                {
                    "class_name": found.class_name,
                    "class_id": found.class_id,
                    "score": found.score,
                    "box_xyxy": list(found.box_xyxy),
                }
                for found in self
            ],
        }

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for detection in self:
            counts[detection.class_name] = counts.get(detection.class_name, 0) + 1
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"
        height, width = self.image_size
        source = f"{self.source}: " if self.source else ""
        return f"Detections({source}{found}; image {width}x{height})"
