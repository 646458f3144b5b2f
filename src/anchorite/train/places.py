"""Where the ranks of a run work, and how they share its batches."""

from __future__ import annotations

import torch

from anchorite.devices import choose_device
from anchorite.errors import InputError
from anchorite.ranks import Ranks
from anchorite.train.recipe import Recipe


def device_of_rank(name: str, ranks: Ranks) -> torch.device:
    """This rank's device: of several ranks each has the GPU of its number on its machine.

    Raises InputError when there is none for it, or the name is that of a single one.
    """
    device = choose_device(name)
    if not ranks.are_several or device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"device {name}: {ranks.count} ranks cannot share one; say cuda, and each takes its own")
    if ranks.local_count > torch.cuda.device_count():
        raise InputError(
            f"{ranks.local_count} ranks on this machine, which has {torch.cuda.device_count()} CUDA devices: start one "
            "rank a device (torchrun --nproc-per-node), or train with --device cpu"
        )
    return torch.device("cuda", ranks.local_number)


def describe_ranks(recipe: Recipe, ranks: Ranks) -> list[str]:
    """A sentence on how ranks share the batches; none for a single process. InputError when some would get nothing."""
    if not ranks.are_several:
        return []
    if recipe.batch < ranks.count:
        raise InputError(
            f"batch {recipe.batch} for {ranks.count} ranks: it is the batch of all together, and each needs an image; "
            f"raise --batch to {ranks.count} or more, or start fewer ranks"
        )
    least, more = divmod(recipe.batch, ranks.count)
    part = f"{least} images each" if not more else f"{least} or {least + 1} images each, some ranks wait for others"
    norm = "of the whole batch" if recipe.sync_batch_norm else "of each rank's part (sync_batch_norm: of the whole)"
    return [f"ranks {ranks.count}: batch {recipe.batch}, {part}; statistics of batch normalisation {norm}"]
