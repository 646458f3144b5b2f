"""The batch that fits into memory, and a run whose memory has run out."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anchorite.boxes import Targets
from anchorite.data import Batch
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError, NoMemoryError, is_out_of_memory
from anchorite.loss import LossTerms
from anchorite.train import RunStarted, resume, train
from anchorite.train import memory as train_memory
from anchorite.train.checkpoint import PartialEpoch, Progress
from anchorite.train.memory import halves, kept_bytes, largest_fitting, memory_facts, with_fitting_batch
from anchorite.train.run_folder import RunFolder
from anchorite.train.step import TrainingStep
from tests.train.runs import Recorder, scenes, small_recipe
from tests.train.test_loop import assert_equal_runs

pytestmark = pytest.mark.usefixtures("small_networks")

CPU_ERROR = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2500000000 bytes."
CUDA_ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
ERRORS = (MemoryError("Unable to allocate 1.5 GiB for an array"), RuntimeError(CPU_ERROR))
ERRORS += (torch.OutOfMemoryError(CUDA_ERROR), OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_what_running_out_of_memory_looks_like() -> None:
    assert all(map(is_out_of_memory, (*ERRORS, RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"))))
    assert not any(map(is_out_of_memory, (RuntimeError("a defect"), OSError(errno.ENOSPC, "full"), ValueError("x"))))
    for error, asked in zip(ERRORS, ("1.61 GB", "2.50 GB", "2.15 GB", ""), strict=True):
        assert memory_facts(error, torch.device("cpu")).startswith(f"{asked} were asked for, " if asked else "")


@pytest.mark.parametrize(
    ("batch", "least", "expected"), [(64, 1, [64, 32, 16, 8, 4, 2, 1]), (24, 4, [24, 12, 6, 4]), (16, 20, [20])]
)
def test_the_halves_of_a_batch(batch: int, least: int, expected: list[int]) -> None:
    assert list(halves(batch, least)) == expected


@pytest.mark.parametrize(("limit", "expected"), [(999, (8, 900)), (899, (4, 500)), (200, (1, 200)), (199, None)])
def test_the_largest_batch_that_fits_is_found_by_trying(limit: int, expected: tuple[int, int] | None) -> None:
    tried = []

    def step(batch: int) -> int:
        tried.append(batch)
        if batch > 8:
            raise torch.OutOfMemoryError(CUDA_ERROR)
        return 100 + 100 * batch

    assert largest_fitting([64, 32, 16, 8, 4, 2, 1], step, limit) == expected
    assert tried == [64, 32, 16, 8, 4, 2, 1][: len(tried)]

    def broken(_: int) -> int:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        largest_fitting([2, 1], broken, limit)


def test_what_a_step_keeps_is_counted_once_and_without_weights() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, images: Tensor, *_: Any) -> LossTerms:
            scaled = images.float() * self.weight  # keeps the pixels as float32
            total = (scaled * scaled).sum()  # keeps `scaled`, twice the same
            return LossTerms(total, total, total, total)

    images = torch.ones(2, 3, 8, 8, dtype=torch.uint8)
    batch = Batch(images, Targets.from_rows(torch.zeros(0, 6)), torch.arange(2))
    objective: Any = Square()
    assert kept_bytes(objective, batch) == 2 * (2 * 3 * 8 * 8) * 4


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(train_memory, "spendable_memory", lambda: free)


def test_on_a_cpu_the_batch_follows_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(batch="auto", optimizer__nominal_batch=16, store="none")
    counts = np.sort(scenes().split("train").table().images["num_boxes"])[::-1]
    work = train_memory.Work(recipe, len(scenes().class_names), counts, SINGLE_PROCESS, None)
    for batch in (1, 4, 16):
        free_bytes(monkeypatch, work.estimate(batch))
        chosen, (sentence,) = with_fitting_batch(recipe, scenes())
        assert chosen == recipe.model_copy(update={"batch": batch})
        assert f"batch {batch} (auto)" in sentence
    free_bytes(monkeypatch, work.estimate(1) - 1)
    with pytest.raises(NoMemoryError, match=r"not even 1 image of 64 px .* smaller --image-size"):
        with_fitting_batch(recipe, scenes())
    free_bytes(monkeypatch, None)
    assert with_fitting_batch(recipe, scenes())[0].batch == 16
    assert with_fitting_batch(small_recipe(batch=7), scenes()) == (small_recipe(batch=7), ())


def test_images_that_are_kept_take_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    images = 14 * 64 * 64 * 3  # of train and val, at 64 px
    limits = []
    monkeypatch.setattr(train_memory, "largest_fitting", lambda _, __, limit: limits.append(limit) or (4, 0))
    free_bytes(monkeypatch, 1_000_000)
    for store in ("ram", "none"):
        with_fitting_batch(small_recipe(batch="auto", store=store), scenes())
    free_bytes(monkeypatch, images)  # there is no room for them, and they are decoded each time
    with_fitting_batch(small_recipe(batch="auto", store="auto"), scenes())
    assert limits == [1_000_000 - images, 1_000_000, images]


def test_a_step_grows_with_pixels_boxes_and_classes() -> None:
    def bytes_of(num_classes: int, boxes: int, **fields: object) -> int:
        recipe = small_recipe(**fields)
        return train_memory.Work(recipe, num_classes, np.array([boxes]), SINGLE_PROCESS, None).estimate(8)

    usual = bytes_of(80, 10, image_size=320)
    assert 3.5 < bytes_of(80, 10, image_size=640) / usual < 4
    assert bytes_of(80, 10, image_size=320, multi_scale=0.5) > 2 * usual
    # 3000 boxes of 1000 classes: more than 10 numbers of each class at 3 places and more, in each of 8 images
    assert bytes_of(1000, 3000, image_size=320) - bytes_of(1000, 10, image_size=320) > 8 * 2990 * 3 * 1000 * 4 * 2
    assert bytes_of(2, 3000, image_size=320) - bytes_of(2, 10, image_size=320) < 8 * 2990 * 40 * 200 * 4


def test_on_cuda_steps_are_tried_beside_the_images_there(monkeypatch: pytest.MonkeyPatch) -> None:
    free, images = 10_000_000, 1 + 10 * 64 * 64
    monkeypatch.setattr(train_memory, "device_of_rank", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    spare = int(0.9 * free) - 4 * images

    def trials_on(_: object, __: torch.device) -> Callable[[int], int]:
        return lambda batch: spare + (batch > 4)

    monkeypatch.setattr(train_memory.Work, "trials_on", trials_on)
    recipe = small_recipe(batch="auto", optimizer__nominal_batch=16, store="device")
    chosen, (sentence,) = with_fitting_batch(recipe, scenes())
    assert chosen.batch == 4
    assert "by trial steps" in sentence


def test_a_trial_is_a_whole_step_of_the_largest_part_and_side(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, steps = [], []
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 1000 * len(shapes))
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    accumulate, apply = TrainingStep.accumulate, TrainingStep.apply
    monkeypatch.setattr(
        TrainingStep,
        "accumulate",
        lambda step, one: (
            shapes.append((one.images.shape[0], one.images.shape[2], len(one.targets))) or accumulate(step, one)
        ),
    )
    monkeypatch.setattr(TrainingStep, "apply", lambda step, settings: steps.append(1) or apply(step, settings))
    recipe, world = small_recipe(multi_scale=0.5), World(0, 2, 0, 2)
    need = train_memory.Work(recipe, 3, np.array([9, 5, 1]), world, None).trials_on(torch.device("cpu"))
    assert [need(4), need(3)] == [1000, 2000]
    assert shapes == [(2, 96, 14), (2, 96, 14)]
    assert len(steps) == 2


def test_ranks_agree_on_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(World):
        def all_gather(self, value: Any) -> list[Any]:
            return [value, others]

    free_bytes(monkeypatch, 10**12)
    recipe, world = small_recipe(batch="auto", optimizer__nominal_batch=16), Two(0, 2, 0, 2)
    others: list[int] | None = [4, 10]
    assert with_fitting_batch(recipe, scenes(), world)[0].batch == 4
    others = None
    with pytest.raises(NoMemoryError, match="not even 2 images"):
        with_fitting_batch(recipe, scenes(), world)


def test_a_run_tells_records_and_keeps_the_batch_that_was_chosen(tmp_path: Path) -> None:
    recorder, run = Recorder(), tmp_path / "run"
    recipe = small_recipe(batch="auto", optimizer__nominal_batch=4, epochs=1)
    train(recipe, scenes(), run, recorder)
    folder, (started,) = RunFolder(run), recorder.of(RunStarted)
    assert "batch 4 (auto)" in started.decisions[0]
    facts = folder.read_facts()
    assert facts["recipe"]["batch"] == facts["derived"]["batch"] == 4
    assert folder.read_recipe().batch == started.recipe.batch == 4
    folder.recipe.write_text(recipe.to_yaml())
    with pytest.raises(InputError, match=r"batch auto: .* here 4"):
        resume(run, scenes(), allow=["recipe"])


class StarvedStep:
    """`TrainingStep.accumulate` that runs out of memory at some call, in the middle of its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        real, calls = TrainingStep.accumulate, iter(range(1, 1000))

        def accumulate(step: TrainingStep, *args: Any, **options: Any) -> LossTerms:
            terms = real(step, *args, **options)  # statistics and gradients are changed
            if next(calls) == at:
                raise error
            return terms

        monkeypatch.setattr(TrainingStep, "accumulate", accumulate)


@pytest.mark.parametrize("error", ERRORS[:3], ids=["numpy", "torch on a CPU", "CUDA"])
def test_a_run_without_memory_resumes_with_equal_bits(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(optimizer__nominal_batch=4, epochs=2)
    with monkeypatch.context() as patch:
        StarvedStep(patch, at=5, error=error)  # 3 batches an epoch: the second of the second
        words = r"after batch 1 of 3 of epoch 2: batch 4, 64 px; .* GB were free"
        with pytest.raises(NoMemoryError, match=words) as told:
            train(recipe, scenes(), tmp_path / "run")
    assert told.value.exit_code == 4
    assert "a smaller batch (2)" in str(told.value)
    recorder = Recorder()
    resume(tmp_path / "run", scenes(), recorder)
    assert any("resumed after batch 1 of 3 of epoch 2" in one for one in recorder.of(RunStarted)[0].decisions)
    train(recipe, scenes(), tmp_path / "straight")
    assert_equal_runs(tmp_path / "run", tmp_path / "straight", 2)


def test_amid_a_step_or_in_validation_the_newest_checkpoint_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        StarvedStep(patch, at=5, error=MemoryError())  # a step of two batches: gradients of the first are lost
        with pytest.raises(NoMemoryError):
            train(small_recipe(), scenes(), tmp_path / "amid")
    assert [path.stem for path in (tmp_path / "amid" / "checkpoints").glob("*.json")] == ["epoch-0001"]
    with monkeypatch.context() as patch:
        patch.setattr("anchorite.evaluate.validator.coco_metrics", starve)
        with pytest.raises(NoMemoryError, match="after batch 3 of 3"):
            train(small_recipe(), scenes(), tmp_path / "val")
    assert [path.stem for path in (tmp_path / "val" / "checkpoints").glob("*.json")] == ["epoch-0000-batch-00003"]


def starve(*_: object) -> None:
    raise MemoryError


def test_a_resume_with_smaller_batches_goes_on_where_the_run_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recorder = tmp_path / "run", Recorder()
    with monkeypatch.context() as patch:
        StarvedStep(patch, at=5, error=MemoryError())
        with pytest.raises(NoMemoryError):
            train(small_recipe(optimizer__nominal_batch=4), scenes(), run)
    RunFolder(run).recipe.write_text(small_recipe(optimizer__nominal_batch=4, batch=2).to_yaml())
    resume(run, scenes(), recorder, allow=["recipe"])
    (started,) = recorder.of(RunStarted)
    assert (started.first_epoch, started.first_batch, started.num_batches) == (1, 2, 5)
    assert len(RunFolder(run).read_rows()) == 2


def test_a_point_of_a_run_in_batches_of_another_size() -> None:
    def at(batches: int, images: int, steps: int) -> Progress:
        return Progress(3, steps, partial=PartialEpoch(batches, images))

    # 100 images: 7 batches of 16 were a step each; of 8 there are 13, in 7 steps of two.
    assert at(5, 80, 26).in_batches_of(8, 100, 2) == at(10, 80, 26)
    assert at(10, 80, 26).in_batches_of(8, 100, 2) == at(10, 80, 26)  # once more
    assert at(7, 100, 28).in_batches_of(8, 100, 2) == at(13, 100, 28)
    assert at(0, 0, 21).in_batches_of(8, 100, 2) == at(0, 0, 21)
    assert at(5, 80, 26).in_batches_of(32, 100, 1) == at(2, 64, 14)  # 4 batches; 16 images are seen again
    assert at(7, 100, 28).in_batches_of(32, 100, 1) == at(4, 100, 16)
