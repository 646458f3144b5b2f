"""The value types: `Targets`, the labelled boxes of one batch, `LabelCoverage`, what its labels do not know, and
`Detections`, what was found in one image.

Legend: T targets (rows), B images, N detections, K classes, R ignore regions, S sources of labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

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
    weights: (T,) floating point in 0..1, how much each object counts in the loss; None: each counts 1.
    sources: (T,) int64, which row of `LabelCoverage.covered_classes` holds for each object; None: its image's.
    """

    rows: Float[Tensor, "T 6"]
    valid: Bool[Tensor, " T"] | None = None
    weights: Float[Tensor, " T"] | None = None
    sources: Int64[Tensor, " T"] | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Tensor,
        weights: Tensor | None = None,
        *,
        sources: Tensor | None = None,
        capacity: int | None = None,
    ) -> Targets:
        """Targets from (T, 6) rows and what goes with each; with `capacity`, padded to that many rows.

        Raises InputError when a shape is wrong or there are more rows than the capacity holds.
        """
        if rows.ndim != 2 or rows.shape[1] != 6 or not rows.is_floating_point():
            raise InputError(
                f"targets need floating point rows of shape (T, 6): image, class, cx, cy, w, h; "
                f"got {tuple(rows.shape)} of {rows.dtype}"
            )
        for name, column in (("weights", weights), ("sources", sources)):
            if column is not None and column.shape != rows.shape[:1]:
                raise InputError(f"{name} of {tuple(column.shape)} for {rows.shape[0]} targets: one number a row")
        if weights is not None and not weights.is_floating_point():
            raise InputError(f"weights must be floating point numbers in 0..1, got {weights.dtype}")
        targets = cls(rows, None, weights, sources)
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
        valid = torch.arange(capacity, device=compact.rows.device) < count
        columns = (_lengthened(one, capacity) for one in (compact.rows, compact.weights, compact.sources))
        rows, weights, sources = columns
        assert rows is not None
        return Targets(rows, valid, weights, sources)

    def compact(self) -> Targets:
        """The valid rows alone, in their order (reads the mask, so it synchronises with the device)."""
        valid = self.valid
        return self if valid is None else replace(_each(self, lambda column: column[valid]), valid=None)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on another device."""
        return _each(self, lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory, for asynchronous copies (the data loader calls this)."""
        return _each(self, Tensor.pin_memory)

    def __len__(self) -> int:
        """Number of rows: labelled boxes when compact, the capacity when padded."""
        return self.rows.shape[0]


_Tensors = TypeVar("_Tensors", "Targets", "LabelCoverage")


def _each(labels: _Tensors, change: Callable[[Tensor], Tensor]) -> _Tensors:
    """The same labels with each of their tensors changed; what is not given stays so."""
    changed: dict[str, Any] = {
        name: None if tensor is None else change(tensor) for name, tensor in vars(labels).items()
    }
    return replace(labels, **changed)


def _lengthened(column: Tensor | None, length: int) -> Tensor | None:
    """A tensor (T, ...) with zeros behind it, (length, ...)."""
    if column is None:
        return None
    return torch.cat([column, column.new_zeros((length - column.shape[0], *column.shape[1:]))])


@dataclass(frozen=True)
class LabelCoverage:
    """What the labels of a batch do not know; whatever is None is known everywhere (docs/objective.md, section 6).

    ignore_regions: (R, 5) floating point: image, cx, cy, w, h, normalised as in `Targets`: there objectness has no
    target unless an object is responsible. A region of zero size ignores nothing, and fills up a fixed capacity.
    covered_classes: (B, K) bool, the classes that the labels of each image cover; or (S, K), of each source of labels,
    where `Targets.sources` names the row of each object.
    background_weight: how much the background counts in 0..1: (B,) of each image, or (B, h, w) of each cell of a grid
    over it, of which an anchor cell takes the one that its middle lies in.
    """

    ignore_regions: Float[Tensor, "R 5"] | None = None
    covered_classes: Bool[Tensor, "S K"] | None = None
    background_weight: Float[Tensor, " B *hw"] | None = None

    def __post_init__(self) -> None:
        regions, covered, background = self.ignore_regions, self.covered_classes, self.background_weight
        if regions is not None and (regions.ndim != 2 or regions.shape[1] != 5 or not regions.is_floating_point()):
            raise InputError(
                f"ignore_regions need floating point rows of shape (R, 5): image, cx, cy, w, h; got "
                f"{tuple(regions.shape)} of {regions.dtype}"
            )
        if covered is not None and (covered.ndim != 2 or covered.dtype != torch.bool):
            raise InputError(
                f"covered_classes must be (images, classes) of bool; got {tuple(covered.shape)} of {covered.dtype}"
            )
        if background is not None and (background.ndim not in (1, 3) or not background.is_floating_point()):
            raise InputError(
                "background_weight must be floating point numbers (images,) or (images, rows, columns); got "
                f"{tuple(background.shape)} of {background.dtype}"
            )

    def padded(self, capacity: int) -> LabelCoverage:
        """The same with exactly `capacity` regions, the rest of zero size; InputError when there are more."""
        regions = self.ignore_regions
        if regions is None or regions.shape[0] == capacity:
            return self
        if regions.shape[0] > capacity:
            raise InputError(f"{regions.shape[0]} ignore regions do not fit a capacity of {capacity}; raise it")
        return replace(self, ignore_regions=_lengthened(regions, capacity))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LabelCoverage:
        """The same on another device."""
        return _each(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> LabelCoverage:
        """The same in page-locked memory, for asynchronous copies."""
        return _each(self, Tensor.pin_memory)


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
