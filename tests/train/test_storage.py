"""Training with images on the device learns the same as with images drawn by the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchorite.train import EpochDone, RunStarted, train
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")

TERMS = ("box", "objectness", "classification")
STILL = {f"augment__{name}": 0.0 for name in ("mosaic", "mixup", "hue", "saturation", "value", "translation", "scale")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "tolerances"),
    [
        # Without augmentation every pixel is equal, but padded targets round otherwise than compact ones: told by the
        # first epoch. Later ones tell only how fast two runs part that differ by rounding (1.3e-3 by step 4 on BCCD).
        ({**STILL, "augment__flip_horizontal": 0.0, "epochs": 1}, (2e-5, 2e-5)),
        # With it, pixels differ by a level here and there, which a network of batches of 4 soon makes more of.
        ({}, (0.02, 0.12)),
    ],
    ids=["still", "augmented"],
)
def test_training_with_images_on_the_device_learns_the_same(
    tmp_path: Path, overrides: dict[str, float], tolerances: tuple[float, float]
) -> None:
    losses = {}
    for store in ("ram", "device"):
        recorder = Recorder()
        train(small_recipe(**{"store": store, "epochs": 4, **overrides}), scenes(), tmp_path / store, recorder)
        (started,) = recorder.of(RunStarted)
        assert any(f"images in store: {store}" in decision for decision in started.decisions)
        rows = [done.row for done in recorder.of(EpochDone)]
        losses[store] = torch.tensor([[row[f"train/{term}"] for term in TERMS] for row in rows])
    at_first, later = tolerances
    torch.testing.assert_close(losses["device"][0], losses["ram"][0], rtol=at_first, atol=0)
    torch.testing.assert_close(losses["device"], losses["ram"], rtol=later, atol=0)
