"""Replays a folder of golden vectors through the package: `python -m tests.golden DIR`.

One line a case with the worst relative error of each kind (relative to the largest entry); the assignment is compared
exactly and in order. Exit 1 when a case is beyond tolerance, 2 when the folder holds no case.

Legend: B images, L levels, A anchors, K classes, T targets, P candidates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.boxes import LabelCoverage, Targets
from anchorite.loss import Assignment, DetectionLoss, LossConfig, LossTerms, assign
from tests import oracle

TOLERANCE_FLOAT64 = 1e-12
TOLERANCE_FLOAT32 = 1e-5
CONFIG_KEYS = (
    "box_gain",
    "objectness_gain",
    "class_gain",
    "objectness_pos_weight",
    "class_pos_weight",
    "ratio_limit",
    "focal_gamma",
    "label_smoothing",
    "objectness_iou_ratio",
    "automatic_balance",
    "collision",
)
PLACE_NAMES = ("image", "anchor", "row", "column", "class")


@dataclass
class Report:
    """What replaying one case showed: worst relative errors by name, and what differed outright."""

    name: str
    errors: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    float32_judged: bool = True

    def note(self, name: str, error: float) -> None:
        # np.maximum, not max: a NaN wins and stays.
        self.errors[name] = float(np.maximum(self.errors.get(name, 0.0), error))

    @property
    def passed(self) -> bool:
        judged = {name: error for name, error in self.errors.items() if name != "float32" or self.float32_judged}
        return not self.faults and all(
            error <= (TOLERANCE_FLOAT32 if name == "float32" else TOLERANCE_FLOAT64) for name, error in judged.items()
        )

    def line(self) -> str:
        figures = "  ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        excluded = "" if self.float32_judged else " (not judged: another assignment in float32)"
        faults = "".join(f"; {fault}" for fault in self.faults)
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name:24s} {figures}{excluded}{faults}"


def relative_error(found: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Worst difference over the largest expected entry; infinite where shapes differ or zeros were expected."""
    found = np.asarray(found, dtype=np.float64).reshape(-1)
    expected = np.asarray(expected, dtype=np.float64).reshape(-1)
    if found.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    worst, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if largest == 0:
        return 0.0 if worst == 0 else float("inf")
    return worst / largest


class GoldenCase:
    """One .npz file, read without pickle."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        self.name = path.stem
        self.meta = json.loads(str(self.arrays["meta"]))
        self.num_levels: int = self.meta["num_levels"]
        self.num_calls: int = self.meta["num_calls"]
        self.anchors_cells = self.arrays["anchors_cells"].astype(np.float64)
        self.grids = [(height, width) for height, width in self.meta["grids"]]

    def anchors(self) -> AnchorSet:
        strides = tuple(int(stride) for stride in self.meta["strides"])
        sizes_px = self.anchors_cells * np.array(strides, dtype=np.float64)[:, None, None]
        return AnchorSet(tuple(tuple((float(w), float(h)) for w, h in row) for row in sizes_px), strides)

    def criterion(self) -> DetectionLoss:
        config = LossConfig(**{key: self.meta[key] for key in CONFIG_KEYS if key in self.meta})
        return DetectionLoss(self.anchors(), self.meta["num_classes"], config)

    def array(self, call: int, name: str) -> np.ndarray:
        return self.arrays[f"call{call}_{name}"]

    def targets(self, call: int, dtype: torch.dtype) -> Targets:
        rows = torch.from_numpy(self.array(call, "targets")).to(dtype).reshape(-1, 6)
        return Targets.from_rows(rows, self.optional(call, "weights", dtype))

    def coverage(self, call: int, dtype: torch.dtype) -> LabelCoverage | None:
        """What the labels do not know, for a case of section 6."""
        regions, background = self.optional(call, "ignore", dtype), self.optional(call, "background", dtype)
        covered = self.optional(call, "covered", torch.bool)
        if regions is None and covered is None and background is None:
            return None
        return LabelCoverage(None if regions is None else regions.reshape(-1, 5), covered, background)

    def optional(self, call: int, name: str, dtype: torch.dtype) -> Tensor | None:
        array = self.arrays.get(f"call{call}_{name}")
        return None if array is None else torch.from_numpy(array).to(dtype)

    @property
    def has_float32(self) -> bool:
        return "call0_total_float32" in self.arrays

    def leaves(self, call: int, dtype: torch.dtype) -> list[Tensor]:
        levels = (torch.from_numpy(self.array(call, f"logits{level}")) for level in range(self.num_levels))
        return [level.to(dtype).clone().requires_grad_() for level in levels]

    def same_assignment_in_float32(self) -> bool:
        """Whether arithmetic in float32 reaches the recorded candidates; if not, the float32 total is another's."""
        for call in range(self.num_calls):
            for level, (height, width) in enumerate(self.grids):
                rows = self.array(call, "targets").reshape(-1, 6)
                found = oracle.candidates(
                    rows, self.anchors_cells[level], height, width, self.meta["ratio_limit"], np.float32
                )
                places = [(one.image, one.anchor, one.row, one.column, one.class_index) for one in found]
                expected = zip(*(self.array(call, f"{name}{level}").tolist() for name in PLACE_NAMES), strict=True)
                if places != list(expected):
                    return False
        return True


def compare_assignment(case: GoldenCase, call: int, levels: Sequence[Assignment], label: str, report: Report) -> None:
    """Indices, cells and classes exactly and in order; box targets relative to their largest entry."""
    for level, found in enumerate(levels):
        parts = (found.image, found.anchor, found.row, found.column, found.class_index)
        for name, part in zip(PLACE_NAMES, parts, strict=True):
            if not np.array_equal(part[found.valid].numpy(), case.array(call, f"{name}{level}")):
                report.faults.append(f"{label} assignment: {name} differs in call {call}, level {level}")
        report.note("boxes", relative_error(found.box[found.valid], case.array(call, f"box_cells{level}")))


def compare_loss(case: GoldenCase, call: int, terms: LossTerms, leaves: list[Tensor], report: Report) -> None:
    """Total, terms and gradients in float64."""
    parts = torch.stack([terms.box, terms.objectness, terms.classification]).detach()
    report.note("loss", relative_error(terms.total.detach(), case.array(call, "total")))
    report.note("loss", relative_error(parts, case.array(call, "terms")))
    for level, gradient in enumerate(torch.autograd.grad(terms.total, leaves)):
        report.note("gradient", relative_error(gradient, case.array(call, f"grad{level}")))


def replay_float64(case: GoldenCase, spare: int | None, report: Report) -> None:
    """All calls of a case in float64, compact (`spare` None) or padded to the targets and `spare` rows more."""
    label = "compact" if spare is None else f"padded(+{spare})"
    criterion = case.criterion()
    for call in range(case.num_calls):
        targets, leaves = case.targets(call, torch.float64), case.leaves(call, torch.float64)
        coverage = case.coverage(call, torch.float64)
        if spare is not None:
            targets = targets.padded(len(targets) + spare)
            if coverage is not None and coverage.ignore_regions is not None:
                coverage = coverage.padded(len(coverage.ignore_regions) + spare)
        levels = assign(targets, case.anchors(), case.grids, case.meta["ratio_limit"])
        compare_assignment(case, call, levels, label, report)
        compare_loss(case, call, criterion(leaves, targets, coverage), leaves, report)
        report.note("balance", relative_error(criterion.balance, case.array(call, "balance_after")))


def replay_float32(case: GoldenCase, padded: bool, report: Report) -> None:
    """All calls of a case in float32, total only."""
    criterion = case.criterion()
    for call in range(case.num_calls):
        targets = case.targets(call, torch.float32)
        if padded:
            targets = targets.padded(len(targets) + 3)
        total = criterion(case.leaves(call, torch.float32), targets).total.detach()
        report.note("float32", relative_error(total, case.array(call, "total_float32")))


def replay(path: Path) -> Report:
    """The report of one case."""
    case, report = GoldenCase(path), Report(path.stem)
    for spare in (None, 0, 5):
        replay_float64(case, spare, report)
    if case.has_float32:
        for padded in (False, True):
            replay_float32(case, padded, report)
        report.float32_judged = case.same_assignment_in_float32()
    return report


def main(arguments: Sequence[str]) -> int:
    """Replay every case of the folder named by the only argument; the exit code."""
    if len(arguments) != 1:
        print("usage: python -m tests.golden DIR", file=sys.stderr)
        return 2
    paths = sorted(Path(arguments[0]).glob("*.npz"))
    if not paths:
        print(f"{arguments[0]}: no golden case (*.npz) in this folder", file=sys.stderr)
        return 2
    failed = 0
    for path in paths:
        try:
            report = replay(path)
        except Exception as error:
            # A case that cannot be replayed is a failed case; the others are still worth their line.
            report = Report(path.stem, faults=[f"{type(error).__name__}: {error}"])
        print(report.line(), flush=True)
        failed += not report.passed
    print(f"{len(paths) - failed} of {len(paths)} cases within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
