"""What each rank does that trains on shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from anchorite.data import open_dataset
from anchorite.data.shards.stream import StreamSamples
from anchorite.distributed import World
from anchorite.train import StepDone, resume, train
from tests.train.runs import Recorder, small_recipe


def train_and_go_on(world: World, data: str, out: str) -> dict[str, Tensor]:
    """A run, and one that goes on in a copy's first epoch: both ends, and what this rank drew, (epoch, record)."""
    dataset, straight, broken = open_dataset(Path(data)), Path(out) / "straight", Path(out) / "broken"
    drawn: list[tuple[int, int]] = []
    draw_batch = StreamSamples.draw_batch

    def noted(samples: StreamSamples, keys: Any, *more: Any) -> Any:
        drawn.extend((key.epoch, key.record_index) for key in keys)
        return draw_batch(samples, keys, *more)

    def copy(event: object) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.batch) == (1, 2):
            shutil.copytree(straight, broken)

    StreamSamples.draw_batch = noted  # type: ignore[method-assign]
    train(small_recipe(checkpoint_minutes=1e-9), dataset, straight, copy, world=world)
    found = {"straight.drawn": torch.tensor(drawn)}
    world.barrier()
    begun = [path.stem for path in (broken / "checkpoints").glob("*.safetensors")]
    drawn.clear()
    world.barrier()
    resume(broken, dataset, Recorder(), world=world)
    world.barrier()
    for run in (straight, broken):
        end = load_file(run / "checkpoints" / "epoch-0002.safetensors")
        found |= {f"{run.name}.end.{name}": tensor for name, tensor in end.items()}
    return {**found, "broken.drawn": torch.tensor(drawn), "batches": torch.tensor([int(name[-5:]) for name in begun])}
