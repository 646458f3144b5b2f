"""Batch normalisation over one value a channel, of which there are no statistics: refused before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchorite.data import LoaderConfig, SampleConfig, open_loader
from anchorite.distributed import World
from anchorite.errors import InputError
from anchorite.model import Detector, default_anchors
from anchorite.train import train
from anchorite.train.setup import refuse_single_values
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")
SINGLE = [  # of ten images
    ({"image_size": 32, "batch": 1}, "--image-size 64 or more, or --batch 2"),
    ({"image_size": 32, "batch": 3}, "--image-size 64 or more, or --batch 4"),  # the last batch has one
    ({"image_size": 32, "batch": 9}, "--image-size 64 or more, or --batch 10"),
    ({"image_size": 64, "batch": 3, "multi_scale": 0.5}, "--image-size 96 or more, or --batch 4"),  # 32 to 96 px
    ({"image_size": 64, "batch": 1, "model": "n6"}, "--image-size 128 or more, or --batch 2"),
]


@pytest.mark.parametrize(("fields", "remedy"), SINGLE)
def test_they_are_refused_before_anything_is_made_with_a_remedy(
    fields: dict[str, object], remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="batch normalisation needs more than one value") as caught:
        train(small_recipe(**fields), scenes(), tmp_path / "run", Recorder())
    assert remedy in str(caught.value)
    assert f"batch {fields['batch']} of 10 images" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fields", [{"batch": 4}, {"batch": 16}, {"image_size": 64, "batch": 3}])
def test_what_was_advised_trains(fields: dict[str, object], tmp_path: Path) -> None:
    train(small_recipe(**{"image_size": 32, "epochs": 1, **fields}), scenes(), tmp_path / "run", Recorder())


@pytest.mark.parametrize(
    ("batch", "synchronised", "is_refused"),
    [
        (2, False, True),  # one image on each rank
        (3, False, True),  # two and one
        (5, False, False),  # three and two
        (4, False, True),  # the last batch has two images, one on each rank
        (8, False, True),
        (12, False, False),
        (2, True, False),  # statistics are of the whole batch
    ],
)
def test_the_part_of_each_rank_counts(batch: int, synchronised: bool, is_refused: bool) -> None:
    world = World(rank=0, world_size=2)
    recipe = small_recipe(image_size=32, batch=batch, sync_batch_norm=synchronised)
    records, samples = scenes().split("train"), SampleConfig(recipe.augment, 32, 0, 1)
    config = LoaderConfig(batch_size=batch, storage="none", rank=0, world_size=2)
    with open_loader(records, samples, config) as loader:
        loader.batches.config = config  # a loader of two ranks needs both of them to be made
        loader.batches.sizes = type(loader.batches.sizes)(len(records), config)
        if is_refused:
            with pytest.raises(InputError, match="on a rank"):
                refuse_single_values(recipe, loader, world)
        else:
            refuse_single_values(recipe, loader, world)


@pytest.mark.parametrize(("model", "side", "num_images"), [("n", 32, 1), ("n", 32, 2), ("n", 64, 1), ("n6", 64, 1)])
def test_it_is_where_torch_has_no_statistics(model: str, side: int, num_images: int) -> None:
    detector = Detector(model, 1, default_anchors(model)).train()
    images = torch.rand(num_images, 3, side, side)
    if num_images == 1 and side == detector.strides[-1]:
        with pytest.raises(ValueError, match="more than 1 value"):
            detector(images)
    else:
        detector(images)
