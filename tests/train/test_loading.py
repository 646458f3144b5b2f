"""The loader a run gets, the sentence about it, and that training with images on the device learns the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchorite.data import DeviceLoader, Loader, device_store
from anchorite.errors import InputError
from anchorite.train import EpochDone, RunStarted, train
from anchorite.train.loading import build_loader, keep_images
from tests.train.runs import Recorder, scenes, small_recipe

CPU = torch.device("cpu")
TERMS = ("box", "objectness", "classification")


def built(**overrides: object) -> tuple[Loader | DeviceLoader, list[str]]:
    recipe = small_recipe(**overrides)
    return build_loader(recipe, keep_images(recipe, scenes().splits["train"], CPU, lambda *_: None), CPU, 32)


def test_a_cpu_trains_with_the_processors_loader_unless_told_otherwise() -> None:
    loader, decisions = built()
    assert isinstance(loader, Loader)
    assert decisions == ["images in store: ram; 0 loader processes"]


def test_store_device_paints_on_the_device_and_says_so() -> None:
    loader, decisions = built(store="device", workers=3)
    assert isinstance(loader, DeviceLoader)
    assert decisions[0].startswith("images in store: device; 0.00 GB of images on cpu, within 50% of the ")
    assert decisions[0].endswith("; batches painted there, operator by operator; workers 3 not needed")
    assert decisions[1].startswith("targets padded to 64 rows (at most ")


def test_images_that_do_not_fit_the_device_are_kept_beside_it_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = 4 * (1 + 10 * 64 * 64)
    monkeypatch.setattr(device_store, "spendable_memory", lambda: 2 * num_bytes - 1)
    loader, decisions = built(store="device")
    assert isinstance(loader, DeviceLoader)
    assert loader.store.place == "host"
    assert "in pinned memory" in decisions[0]
    monkeypatch.setattr(device_store, "spendable_memory", lambda: num_bytes - 1)
    with pytest.raises(InputError, match=r"store device: .* memory to spare\. Choose a smaller image_size"):
        built(store="device")


def test_samples_know_the_length_of_the_run() -> None:
    loader, _ = built(store="device", epochs=5, augment__close_mosaic_epochs=2, augment__mosaic=1.0)
    assert [loader.samples.has_mosaic(epoch) for epoch in range(5)] == [True, True, True, False, False]


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
