"""Where the ranks of a run work, and how they share its batches."""

from __future__ import annotations

import torch

from anchorite.devices import choose_device
from anchorite.distributed import World
from anchorite.errors import InputError
from anchorite.train.recipe import Recipe


def device_of_rank(name: str, world: World) -> torch.device:
    """This rank's device: of several ranks each has the GPU of its number on its machine.

    Raises InputError when there is none for it, or the name is that of a single one.
    """
    device = choose_device(name)
    if not world.is_distributed or device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"device {name}: {world.world_size} ranks cannot share one; say cuda, and each takes its own")
    if world.local_world_size > torch.cuda.device_count():
        raise InputError(
            f"{world.local_world_size} ranks on this machine, which has {torch.cuda.device_count()} CUDA devices: "
            "start one rank a device (torchrun --nproc-per-node), or train with --device cpu"
        )
    return torch.device("cuda", world.local_rank)


def describe_ranks(recipe: Recipe, world: World) -> list[str]:
    """A sentence on how ranks share the batches; none for a single process. InputError when some would get nothing."""
    if not world.is_distributed:
        return []
    if recipe.batch < world.world_size:
        raise InputError(
            f"batch {recipe.batch} for {world.world_size} ranks: it is the batch of all together, and each needs an "
            f"image; raise --batch to {world.world_size} or more, or start fewer ranks"
        )
    least, more = divmod(recipe.batch, world.world_size)
    part = f"{least} images each" if not more else f"{least} or {least + 1} images each, some ranks wait for others"
    norm = "of the whole batch" if recipe.sync_batch_norm else "of each rank's part (sync_batch_norm: of the whole)"
    return [f"ranks {world.world_size}: batch {recipe.batch}, {part}; statistics of batch normalisation {norm}"]
