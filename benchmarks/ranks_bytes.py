"""Bytes and packets that an optimizer step sends over gloo, by the counters of the loopback device.

unshare -rn sh -c 'ip link set lo up; GLOO_SOCKET_IFNAME=lo torchrun --nproc-per-node 2 --master-addr 127.0.0.1 \\
    --master-port 29500 benchmarks/ranks_bytes.py --model n'

prints one line of JSON. In a network namespace of its own nothing else uses the device. Images are of 64 px, whose size
changes nothing that travels; steps are real ones: forward, loss, backward, clipping, SGD.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from anchorite.boxes import Targets
from anchorite.data import Batch
from anchorite.devices import Precision
from anchorite.distributed import World, init_process_group
from anchorite.loss import DetectionLoss
from anchorite.model import Detector, default_anchors
from anchorite.train.optim import EMA, EMAConfig, OptimizerConfig, Settings, build_optimizer
from anchorite.train.step import TrainingStep, TrainState

SIDE, CLASSES, IMAGES = 64, 80, 2  # images of a rank


def loopback() -> tuple[int, int]:
    """Bytes and packets sent through the loopback device so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    numbers = line.partition(":")[2].split()
    return int(numbers[8]), int(numbers[9])


def make_step(size: str, world: World) -> TrainingStep:
    """A step in float32 on the CPU."""
    device = torch.device("cpu")
    torch.manual_seed(0)
    detector = Detector(size, CLASSES, default_anchors(size)).train()
    train_state = TrainState(
        detector,
        DetectionLoss(detector.anchors, CLASSES, world=world).train(),
        build_optimizer(detector, OptimizerConfig()),
        EMA(detector, EMAConfig()),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    return TrainingStep(train_state, Precision("fp32", None, False, "benchmark"), 10.0, device)


def main() -> None:
    """Measure and print, on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="n")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with init_process_group(120.0) as world:
        step = make_step(given.model, world)
        rows = torch.tensor([[image, 1, 0.5, 0.5, 0.4, 0.4] for image in range(IMAGES)])
        pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
        batch = Batch(pixels, Targets.from_rows(rows), torch.arange(IMAGES))

        def go() -> None:
            step.accumulate(batch, IMAGES * world.world_size)
            step.apply(Settings(0.001, 0.001, 0.9))
            world.any(False)  # whether to stop, as the loop asks

        go()
        world.barrier()
        before = loopback()
        for _ in range(given.steps):
            go()
        world.barrier()
        sent, packets = (after - then for after, then in zip(loopback(), before, strict=True))
        if world.is_main:
            parameters = sum(one.numel() for one in step.train_state.detector.parameters())
            facts = {
                "size": given.model,
                "sync_batch_norm": False,
                "ranks": world.world_size,
                "parameters": parameters,
            }
            print(json.dumps({**facts, "bytes": sent / given.steps, "packets": packets / given.steps}))


if __name__ == "__main__":
    main()
