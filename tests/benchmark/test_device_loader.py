"""The figures of the device's loader: one a place and way of painting, each of whole epochs."""

from __future__ import annotations

from pathlib import Path

import torch

from anchorite.data.augment import AugmentConfig
from benchmarks.loader import device_loader_figures, planning_figures
from tests.data.test_samples import make_records


def test_every_place_is_measured_and_planning_apart(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    painting = device_loader_figures(records, AugmentConfig(), 64, 4, torch.device("cpu"), 2, compiled=(False,))
    assert [figure.name for figure in painting] == [
        "64 px, images on the device, painted operator by operator",
        "64 px, images on the host, painted operator by operator",
    ]
    planning = planning_figures(records, AugmentConfig(), 64, torch.device("cpu"), 2)
    assert [figure.name for figure in planning] == [
        f"64 px, planning batches of {batch}{turns}" for turns in ("", ", turned") for batch in (16, 64)
    ]
    assert min(figure.value for figure in planning) > max(figure.value for figure in painting) > 0
