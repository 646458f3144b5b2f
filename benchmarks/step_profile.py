"""Where a training step's time goes: forward, head and loss, backward, optimizer, average, waiting for data.

    python benchmarks/step_profile.py DATA [--model n] [--image-size 320] [--batch 16] [--steps 40]

Prints medians over the steps in milliseconds, with the machine and the versions. The parts are timed one by one within
each step, so their sum is the step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from anchorite import __version__
from anchorite.data import open_dataset
from anchorite.train import load_recipe
from anchorite.train.optimizer import apply_settings, clip_gradients
from anchorite.train.preparation import prepare
from anchorite.train.step import normalised

WARM_UP_STEPS = 5


def measure(data: Path, overrides: dict[str, object], steps: int) -> dict[str, float]:
    """Medians in milliseconds by part."""
    recipe = load_recipe("small-data", overrides)
    prepared = prepare(recipe, open_dataset(data))
    trainee, device, precision = prepared.trainee, prepared.device, prepared.precision
    trainee.detector.train()
    parameters = list(trainee.detector.parameters())
    parts: dict[str, list[float]] = {}
    epoch = 0
    batches = iter(())
    for step in range(steps + WARM_UP_STEPS):
        clock = _Clock(device)
        batch = next(batches, None)
        if batch is None:
            prepared.loader.set_epoch(epoch)
            epoch += 1
            batches = iter(prepared.loader)
            batch = next(batches)
            clock = _Clock(device)  # the first batch of an epoch is not waited for in a running loader
        clock.lap("data wait")
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=precision.dtype, enabled=precision.dtype is not None):
            features = trainee.detector.features(normalised(batch.images, precision.dtype))
            clock.lap("forward (backbone, neck)")
            terms = trainee.criterion(trainee.detector.head.matched(features), batch.targets)
        clock.lap("head and loss")
        trainee.scaler.scale(terms.total).backward()
        clock.lap("backward")
        apply_settings(trainee.optimizer, 0.001, 0.001, 0.9)
        clip_gradients(parameters, recipe.optimizer.clip_norm)
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        clock.lap("clipping and optimizer")
        trainee.average.update()
        clock.lap("average")
        if step >= WARM_UP_STEPS:
            for name, seconds in clock.laps.items():
                parts.setdefault(name, []).append(1000 * seconds)
    prepared.loader.close()
    return {name: round(statistics.median(times), 2) for name, times in parts.items()}


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="n")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    overrides = {name: getattr(options, name) for name in ("model", "image_size", "batch", "precision")}
    parts = measure(options.data, overrides, options.steps)
    total = sum(parts.values())
    for name, milliseconds in parts.items():
        print(f"{name:26} {milliseconds:8.2f} ms  {100 * milliseconds / total:5.1f} %")
    print(f"{'step':26} {total:8.2f} ms  {1000 * options.batch / total:.1f} img/s")
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "anchorite": __version__,
    }
    print(json.dumps({**overrides, **machine, "milliseconds": parts}))


if __name__ == "__main__":
    main()
