"""Samples whose images lie on a device as well as in the ordinary store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from anchorite.data.augment import AugmentConfig, SamplePlans
from anchorite.data.dataset import Record
from anchorite.data.device import DeviceStore, Storage, in_parts, plan_batch
from anchorite.data.samples import SampleConfig, SampleKey, TrainSamples
from anchorite.data.store import ImageStore
from tests.data.test_samples import make_records

SIZE = 160
COLOURLESS = {"hue": 0.0, "saturation": 0.0, "value": 0.0}
STRAIGHT = AugmentConfig(**COLOURLESS, flip_vertical=0.3, min_visible=0.0)
TURNED = AugmentConfig(**COLOURLESS, rotation=25.0, shear=5.0, min_visible=0.0)
EVERYTHING = AugmentConfig(mosaic=0.6, mixup=0.5, rotation=20.0, shear=4.0, flip_vertical=0.3)


class Case(NamedTuple):
    samples: TrainSamples
    store: DeviceStore


def case_of(records: Sequence[Record], config: AugmentConfig, place: Storage = "device", **options: int) -> Case:
    """The same records in both stores; the samples draw from the ordinary one."""
    ordinary, store = ImageStore(records, SIZE, "ram"), DeviceStore(records, SIZE, "cpu", place)
    ordinary.build()
    store.build()
    return Case(TrainSamples(ordinary, SampleConfig(config, SIZE, 4, **options)), store)


def make_case(
    folder: Path, config: AugmentConfig, num_records: int = 6, place: Storage = "device", **options: int
) -> Case:
    return case_of(make_records(folder, num_records), config, place, **options)


def keys_of(case: Case, epochs: int, size: int = SIZE) -> list[SampleKey]:
    return [SampleKey(epoch, index, size) for epoch in range(epochs) for index in range(len(case.samples))]


def painted(case: Case, plans: SamplePlans) -> np.ndarray:
    """(B, S, S, 3) as the device paints them."""
    plan = plan_batch(plans)
    pixels, starts = case.store.stage(plan.sources)
    places = torch.from_numpy(starts).view(plan.widths.shape)
    return in_parts(pixels, [places, plan.tiles, plan.widths, plan.colours], plan).permute(0, 2, 3, 1).numpy()


def drawn(case: Case, keys: Sequence[SampleKey]) -> np.ndarray:
    """(B, S, S, 3) as OpenCV draws them."""
    side = keys[0].size
    pixels = np.empty((len(keys), side, side, 3), np.uint8)
    case.samples.draw_batch(keys, pixels)
    return pixels


def needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
