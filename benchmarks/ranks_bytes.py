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
from anchorite.loss import DetectionLoss
from anchorite.model import Detector, default_anchors
from anchorite.ranks import Ranks, joined
from anchorite.train.average import AverageConfig, WeightAverage
from anchorite.train.optimizer import OptimizerConfig, build_optimizer
from anchorite.train.schedule import Settings
from anchorite.train.shared_norm import share_batch_norm
from anchorite.train.step import Trainee, TrainingStep

SIDE, CLASSES, IMAGES = 64, 80, 2  # images of a rank


def loopback() -> tuple[int, int]:
    """Bytes and packets sent through the loopback device so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    numbers = line.partition(":")[2].split()
    return int(numbers[8]), int(numbers[9])


def make_step(size: str, sync: bool, ranks: Ranks) -> TrainingStep:
    """A step in float32 on the processor. sync: statistics of batch normalisation over all ranks."""
    device = torch.device("cpu")
    torch.manual_seed(0)
    detector = Detector(size, CLASSES, default_anchors(size)).train()
    trainee = Trainee(
        detector,
        DetectionLoss(detector.anchors, CLASSES, ranks=ranks).train(),
        build_optimizer(detector, OptimizerConfig()),
        WeightAverage(detector, AverageConfig()),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    if sync:
        share_batch_norm(detector, device)
    return TrainingStep(trainee, Precision("fp32", None, False, "benchmark"), 10.0, device)


def main() -> None:
    """Measure and print, on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="n")
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with joined(120.0) as ranks:
        step = make_step(given.model, given.sync, ranks)
        rows = torch.tensor([[image, 1, 0.5, 0.5, 0.4, 0.4] for image in range(IMAGES)])
        pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
        batch = Batch(pixels, Targets.from_rows(rows), torch.arange(IMAGES))

        def go() -> None:
            step.accumulate(batch, IMAGES * ranks.count)
            step.apply(Settings(0.001, 0.001, 0.9))
            ranks.any(False)  # whether to stop, as the loop asks

        go()
        ranks.wait()
        before = loopback()
        for _ in range(given.steps):
            go()
        ranks.wait()
        sent, packets = (after - then for after, then in zip(loopback(), before, strict=True))
        if ranks.is_first:
            parameters = sum(one.numel() for one in step.trainee.detector.parameters())
            facts = {"size": given.model, "sync_batch_norm": given.sync, "ranks": ranks.count, "parameters": parameters}
            print(json.dumps({**facts, "bytes": sent / given.steps, "packets": packets / given.steps}))


if __name__ == "__main__":
    main()
