"""The value types: `Targets`, the labelled boxes of one batch, and `Detections`, what was found in one image.

Legend: T targets (rows), B images, N detections, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anchorite.errors import InputError


@dataclass(frozen=True)
class Targets:
    """Labelled boxes of a batch.

    rows: (T, 6) floating point: image, class, cx, cy, w, h; boxes normalised to 0..1 of the network input.
    valid: (T,) bool, or None when every row counts (compact). A padded batch has a fixed T (its capacity) and masks
    the unused rows, so that no shape depends on the data.
    """

    rows: Float[Tensor, "T 6"]
    valid: Bool[Tensor, " T"] | None = None

    @classmethod
    def from_rows(cls, rows: Tensor, capacity: int | None = None) -> Targets:
        """Targets from (T, 6) rows; with `capacity`, padded to that many rows.

        Raises InputError when the shape is wrong or there are more rows than the capacity holds.
        """
        if rows.ndim != 2 or rows.shape[1] != 6 or not rows.is_floating_point():
            raise InputError(
                f"targets need floating point rows of shape (T, 6): image, class, cx, cy, w, h; "
                f"got {tuple(rows.shape)} of {rows.dtype}"
            )
        targets = cls(rows)
        return targets if capacity is None else targets.padded(capacity)

    @property
    def is_padded(self) -> bool:
        return self.valid is not None

    def padded(self, capacity: int) -> Targets:
        """The same targets in exactly `capacity` rows, the rest masked out."""
        compact = self.compact()
        count = compact.rows.shape[0]
        if count > capacity:
            raise InputError(f"{count} targets do not fit a capacity of {capacity} rows; raise the capacity")
        rows = torch.cat([compact.rows, compact.rows.new_zeros((capacity - count, 6))])
        valid = torch.arange(capacity, device=rows.device) < count
        return Targets(rows, valid)

    def compact(self) -> Targets:
        """The valid rows alone, in their order (reads the mask, so it synchronises with the device)."""
        return self if self.valid is None else Targets(self.rows[self.valid])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on another device."""
        rows = self.rows.to(device, non_blocking=non_blocking)
        valid = None if self.valid is None else self.valid.to(device, non_blocking=non_blocking)
        return Targets(rows, valid)

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory, for asynchronous copies (the data loader calls this)."""
        return Targets(self.rows.pin_memory(), None if self.valid is None else self.valid.pin_memory())

    def __len__(self) -> int:
        """Number of rows: labelled boxes when compact, the capacity when padded."""
        return self.rows.shape[0]


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
    source: str = ""

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
        """Plain numbers and texts, ready for JSON: source, width, height, detections (best first).

        Coordinates are rounded to a thousandth of a pixel, scores to a millionth: more is noise of float32.
        """
        height, width = self.image_size
        return {
            "source": self.source,
            "width": width,
            "height": height,
            "detections": [
                {
                    "class_name": name,
                    "class_id": class_id,
                    "score": round(score, 6),
                    "box_xyxy": [round(edge, 3) for edge in box_xyxy],
                }
                for box_xyxy, score, class_id, name in self
            ],
        }

    def __repr__(self) -> str:
        counts = Counter(self.class_names[number] for number in self.class_ids.tolist())
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"
        height, width = self.image_size
        source = f"{self.source}: " if self.source else ""
        return f"Detections({source}{found}; image {width}x{height})"
