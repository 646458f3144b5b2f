"""What the ranks of the tests do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import Batch, ImageStore, empty_batch, open_dataset
from anchorite.devices import Precision
from anchorite.distributed import World
from anchorite.loss import DetectionLoss, LossConfig
from anchorite.model import Detector, MatchedCellLogits, default_anchors
from anchorite.train import step as step_module
from anchorite.train.optim import EMA, EMAConfig, OptimizerConfig, build_optimizer
from anchorite.train.step import TrainingStep, TrainState

SIDE, CLASSES = 32, 3
CPU = torch.device("cpu")


def whole_batch(number: int, num_images: int, empty_from: int, unknown: bool) -> Batch:
    """A batch as a single process has it; images from `empty_from` on have no target.

    unknown: with weights, two sources, an ignore region in each image, and a grid of background weights.
    """
    rng = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (num_images, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    rows = torch.rand(4 * num_images, 6, generator=rng)
    rows[:, 0] = torch.arange(4 * num_images) // 4
    rows[:, 1] = torch.randint(0, CLASSES, (len(rows),), generator=rng)
    rows[:, 4:] = rows[:, 4:] * 0.5 + 0.05
    rows, indices = rows[rows[:, 0] < empty_from], torch.arange(num_images)
    if not unknown:
        return Batch(images, Targets.from_rows(rows), indices)
    regions = torch.rand(num_images, 5, generator=rng) * 0.5
    regions[:, 0] = indices
    covered = torch.tensor([[True] * CLASSES, [True, False, True]])
    sources = (rows[:, 1] != 1) * torch.randint(0, 2, (len(rows),), generator=rng)
    targets = Targets.from_rows(rows, torch.rand(len(rows), generator=rng), sources=sources)
    background = torch.rand(num_images, 4, 4, generator=rng)
    return Batch(images, targets, indices, LabelCoverage(regions, covered, background))


def part(batch: Batch, world: World) -> Batch:
    """A rank's part of a batch."""
    chosen = np.array_split(batch.indices.numpy(), world.world_size)[world.rank].tolist()
    if not chosen:
        return empty_batch(SIDE)

    def mine(rows: Tensor) -> Tensor:
        return (rows[:, 0] >= chosen[0]) & (rows[:, 0] <= chosen[-1])

    def moved(rows: Tensor) -> Tensor:
        return rows[mine(rows)] - torch.tensor([chosen[0], *[0] * (rows.shape[1] - 1)])

    targets, known = batch.targets, batch.coverage
    columns = (None if one is None else one[mine(targets.rows)] for one in (targets.weights, targets.sources))
    if known is not None:
        assert known.ignore_regions is not None
        assert known.background_weight is not None
        regions, background = moved(known.ignore_regions), known.background_weight[chosen]
        known = LabelCoverage(regions, known.covered_classes, background)
    return Batch(batch.images[chosen], Targets(moved(targets.rows), None, *columns), batch.indices[chosen], known)


def make_step(world: World, **settings: object) -> tuple[TrainingStep, TrainState]:
    """A step in float64 over all ranks, with fixed statistics of batch normalisation, as in evaluation."""
    torch.manual_seed(0)
    detector = Detector("n", CLASSES, default_anchors("n")).double().train()
    criterion = DetectionLoss(detector.anchors, CLASSES, LossConfig(**settings), world).train()  # type: ignore[arg-type]
    average = EMA(detector, EMAConfig())
    optimizer = build_optimizer(detector, OptimizerConfig())
    for module in detector.modules():  # statistics over parts of a batch would differ from those of the whole
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_state = TrainState(detector, criterion, optimizer, average, scaler)
    return TrainingStep(train_state, Precision("fp32", None, False, "test"), 0.0, CPU), train_state


def gradients(
    world: World,
    batches: list[tuple[int, int]],
    bad: tuple[int, ...] = (),
    unknown: bool = False,
    padded: bool = False,
    **settings: object,
) -> dict[str, Tensor]:
    """Gradients, buffers and losses after batches of (images, those with targets), gathered for one optimizer step.

    bad: numbers of batches that are not finite for the first rank; unknown: see `whole_batch`; padded: labels are.
    """
    step, train_state = make_step(world, **settings)
    found: dict[str, Tensor] = {}
    for number, (num_images, empty_from) in enumerate(batches):
        whole = whole_batch(number, num_images, empty_from, unknown)
        if number in bad and world.is_main:
            weight = train_state.detector.head.predictors["p3"].bias
            kept, weight.data = weight.data, torch.full_like(weight, torch.nan)
        mine = part(whole, world).with_fixed_capacity() if padded else part(whole, world)
        terms = step.accumulate(mine, num_images, is_last=number == len(batches) - 1)
        if number in bad and world.is_main:
            weight.data = kept
        found |= {f"terms.{number}.{name}": getattr(terms, name) for name in terms._fields[1:]}
    found |= {f"grad.{name}": one.grad for name, one in train_state.detector.named_parameters() if one.grad is not None}
    found |= {f"buffer.{name}": one for name, one in train_state.detector.named_buffers() if "tracked" not in name}
    return found | {"balance": train_state.criterion.balance}


def on_gpus(world: World, **case: Any) -> dict[str, Tensor]:
    """`gradients` with padded labels, by the operators that a GPU runs, also of the empty batch at the start."""
    padded = empty_batch(SIDE).with_fixed_capacity()
    empty = patch.object(step_module, "empty_batch", lambda _side: padded)
    with patch.object(MatchedCellLogits, "_by_hand", False), empty:
        return gradients(world, **case)


def all_gradients(world: World, cases: list[dict[str, Any]]) -> dict[str, Tensor]:
    """`gradients` of each case, which cost less than starting the ranks; names begin with the case's number."""
    found = [on_gpus(world, **case) if case.get("padded") else gradients(world, **case) for case in cases]
    return {f"{number}/{name}": one for number, of_case in enumerate(found) for name, one in of_case.items()}


def kept_images(world: World, data: str, bad: str) -> dict[str, Tensor]:
    """The training images in memory, with one more that cannot be decoded, and how many this rank has decoded."""
    records = open_dataset(Path(data)).splits["train"]
    damaged = Path(bad) / "damaged.jpg"
    damaged.write_bytes(records[0].path.read_bytes()[:400])
    store = ImageStore([*records, replace(records[0], path=damaged)], SIDE, "ram", skip_bad=True)
    decode, decoded = store._decode, []

    def counted(index: int) -> Any:
        decoded.append(index)
        return decode(index)

    store._decode = counted  # type: ignore[method-assign]
    store.build(world=world)
    pixels = torch.cat([torch.from_numpy(store.image(index).copy()).flatten() for index in range(len(store))])
    world.barrier()
    assert store._shared is not None
    if world.is_main:
        store._shared.array[0] = 7
    world.barrier()
    return {
        "pixels": pixels,
        "decoded": torch.tensor(len(decoded)),
        "left_out": torch.tensor([len(records)] if store.left_out[0].path == damaged else []),
        "written_by_first": torch.tensor(int(store._shared.array[0])),
    }


def linger(world: World, out: str) -> dict[str, Tensor]:
    """Whether the first rank, which has nothing more to do, has left when the other comes to its end."""
    left, leave = Path(out) / "left", dist.destroy_process_group
    if world.is_main:
        dist.destroy_process_group = lambda: (left.touch(), leave())  # type: ignore[assignment, func-returns-value]
    world.barrier()
    if not world.is_main:
        time.sleep(1.0)
    return {"has_left": torch.tensor(left.exists())}


def talk(world: World) -> dict[str, Tensor]:
    """Everything that ranks can say to each other, with answers that every rank knows."""
    number = torch.tensor([float(world.rank)])
    gathered = world.gather_tensors({"here": number, "long": torch.arange(world.rank * 1000)})
    return {
        "sum": world.all_reduce(number),
        "own": number,
        "any": torch.tensor([world.any(world.rank == 1), world.any(False)]),
        "all": torch.stack([world.all(number[0] >= 0), world.all(number[0] > 0)]),
        "first": torch.tensor(world.broadcast([world.rank, 5])),
        "everyone": torch.tensor(world.all_gather([world.rank] * 3)),
        "tensors": world.broadcast_tensors({"a": number + 7})["a"],
        "gathered": torch.stack([one["here"][0] for one in gathered] or [torch.tensor(-1.0)]),
        "lengths": torch.tensor([len(one["long"]) for one in gathered]),
    }
