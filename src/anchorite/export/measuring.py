"""What an export costs in mAP on a labelled split."""

from __future__ import annotations

from typing import NamedTuple

from anchorite.evaluate import Validator
from anchorite.export.exporting import Built
from anchorite.export.parity import ExportDiffersError, tolerance_of
from anchorite.model import Detector

_LEAST_SHARE_LEFT = 0.5
_LEAST_LOSS_TOLD = 0.01  # of a detector that finds nothing anyway, half may go in noise


class Measured(NamedTuple):
    """mAP50 and mAP50-95 of the detector in PyTorch, float32, and of its export."""

    torch_map50: float
    torch_map: float
    export_map50: float
    export_map: float

    @property
    def cost(self) -> float:
        """mAP50-95 that the export loses; negative where it gains."""
        return self.torch_map - self.export_map


def measure(detector: Detector, built: Built, validator: Validator, what: str) -> Measured:
    """Both measured alike; suppression is left out of the export, for measuring takes limits of its own.

    Raises ExportDiffersError when mAP50-95 differs by more than the number format may cost; of int8, whose cost nobody
    can know before, only when half of it, and more than noise, is gone.
    """
    ours, theirs = validator.run(detector, device="cpu").metrics, validator.run_exported(built.dense).metrics
    measured = Measured(ours.map50, ours.map, theirs.map50, theirs.map)
    limits = tolerance_of(built.export.precision)
    numbers = f"mAP50-95 is {measured.export_map:.4f} instead of {measured.torch_map:.4f}"
    if limits is not None and abs(measured.cost) > limits.map:
        raise ExportDiffersError(f"{what}: {numbers}; it may differ by {limits.map:g}; nothing was written")
    is_much = measured.torch_map - measured.export_map > _LEAST_LOSS_TOLD
    if limits is None and is_much and measured.export_map < _LEAST_SHARE_LEFT * measured.torch_map:
        raise ExportDiffersError(f"{what}: {numbers}; calibrate on more images; nothing was written")
    return measured
