"""A whole training epoch of size n at 320 px, data included, against the same steps on a batch kept in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from anchorite.benchmark import Figure, Sample, interleaved, synchronise, whole_step
from anchorite.data import DatasetIndex, Loader
from anchorite.train import load_recipe
from anchorite.train.setup import prepare
from anchorite.train.step import TrainingStep
from benchmarks.measure import Comparison, Floor, Outcome, Settings, Target, dataset_for, described, round_ratios

SHARE_OF_WAITING = 0.02
_ROUNDS = 5


def benchmark_epoch(settings: Settings) -> Outcome:
    """Images a second and the share of waiting for data of an epoch, after one to warm up."""
    with dataset_for(settings) as dataset:
        comparisons, figures, facts = _measure(settings, dataset)
        facts["data"] = described(dataset, settings)
    return Outcome("epoch", comparisons, figures, facts)


def _measure(
    settings: Settings, dataset: DatasetIndex
) -> tuple[tuple[Comparison, ...], tuple[Figure, ...], dict[str, object]]:
    size, batch = (64, 4) if settings.quick else (320, 16)
    overrides = {"image_size": size, "batch": batch, "device": str(settings.device)}
    recipe = load_recipe("small-data", overrides)
    prepared = prepare(recipe, dataset)
    prepared.train_state.detector.train()
    step = TrainingStep(prepared.train_state, prepared.precision, recipe.optimizer.clip_norm, prepared.device)
    epoch = _Epoch(step, prepared.loader)
    with prepared.loader:
        kept = next(iter(prepared.loader))
        one_step = whole_step(step, kept)
        num_steps = len(prepared.loader)

        def without_data() -> None:
            for _ in range(num_steps):
                one_step()

        works: dict[str, Callable[[], object]] = {"epoch": epoch.run, "steps without data": without_data}
        taken = interleaved(works, settings.rounds_or(_ROUNDS), warm_up=1, device=settings.device)
    num_images, num_kept = len(dataset.splits["train"]), num_steps * len(kept.indices)
    by_image = {
        "epoch": Sample(tuple(one / num_images for one in taken["epoch"].seconds)),
        "steps without data": Sample(tuple(one / num_kept for one in taken["steps without data"].seconds)),
    }
    waited = Sample(tuple(epoch.waited[-len(taken["epoch"].seconds) :]))
    ours, bare = by_image["epoch"], by_image["steps without data"]
    floor = Floor(min(bare.seconds), "the steps alone, on a batch kept in memory, in their best round")
    comparisons = (
        Comparison(
            "share of an epoch spent waiting for data",
            Figure.of("waiting", waited),
            Figure.of("epoch", taken["epoch"]),
            "cost",
            round_ratios(waited, taken["epoch"]),
            Target("at most", SHARE_OF_WAITING),
        ),
        Comparison(
            "an image of an epoch against one without data",
            Figure.of("epoch", ours),
            Figure.of("steps without data", bare),
            "cost",
            round_ratios(ours, bare),
            floor=floor,
        ),
    )
    figures = (Figure.per_second("epoch", ours, 1), Figure.per_second("steps without data", bare, 1))
    facts: dict[str, object] = {
        "image_size": size,
        "batch": batch,
        "recipe": "small-data",
        "decisions": list(prepared.decisions),
        "objects_in_the_kept_batch": len(kept.targets),
    }
    return comparisons, figures, facts


class _Epoch:
    """Epochs as training runs them, each the next one; `waited` holds the seconds each spent waiting for batches."""

    def __init__(self, step: TrainingStep, loader: Loader) -> None:
        self.step, self.loader = step, loader
        self.number = 0
        self.waited: list[float] = []

    def run(self) -> None:
        self.loader.set_epoch(self.number)
        self.number += 1
        waited, asked = 0.0, time.perf_counter()
        for batch in self.loader:
            waited += time.perf_counter() - asked
            terms = whole_step(self.step, batch)()
            # As the loop does it after every batch: the losses are looked at, which also waits for the device.
            assert bool(torch.stack(list(terms)).isfinite().all()), "training diverged"
            synchronise(self.step.device)
            asked = time.perf_counter()
        self.waited.append(waited)
