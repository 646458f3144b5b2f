"""NaN and infinity in a loss, a gradient or a running statistic: row 11 of the faults to be survived."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anchorite.errors import DivergedError
from anchorite.model import load_weights
from anchorite.train import RunFolder, StepSkipped, train
from anchorite.train.checkpoint import Progress, load_latest, save_checkpoint
from anchorite.train.optim import Settings
from anchorite.train.setup import prepare
from anchorite.train.step import TrainingStep
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")

SETTINGS = Settings(lr=0.01, bias_lr=0.01, momentum=0.9)
Poison = Callable[[TrainingStep], object]


def poisoned_loss(step: TrainingStep) -> object:
    """The box loss of the next batches is nan."""
    return step.train_state.criterion.register_forward_hook(
        lambda _module, _inputs, terms: terms._replace(total=terms.total * torch.nan, box=terms.box * torch.nan)
    )


def poisoned_gradient(step: TrainingStep) -> object:
    """One weight's gradient is infinite."""
    return step.train_state.detector.backbone.stem.convolution.weight.register_hook(lambda grad: grad * torch.inf)


def poisoned_statistic(step: TrainingStep) -> object:
    """A running variance overflows, which neither loss nor gradients show."""
    norm = step.train_state.detector.backbone.stem.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    variance = norm.running_var

    def overflow(*_: object) -> None:
        variance.data.mul_(torch.inf)  # behind autograd's back, as an overflow would be

    return norm.register_forward_hook(overflow)


POISONS: list[tuple[Poison, str]] = [
    (poisoned_loss, "the box loss"),
    (poisoned_gradient, "the gradient of backbone.stem.convolution.weight"),
    (poisoned_statistic, "the statistic backbone.stem.norm.running_var"),
]


def lasting(step: TrainingStep) -> dict[str, torch.Tensor]:
    train_state = step.train_state
    state = {f"model.{name}": tensor for name, tensor in train_state.detector.state_dict().items()}
    state |= {f"ema.{name}": tensor for name, tensor in train_state.ema.model.state_dict().items()}
    state |= {f"criterion.{name}": tensor for name, tensor in train_state.criterion.state_dict().items()}
    for number, values in enumerate(train_state.optimizer.state.values()):
        state |= {f"optimizer.{number}.{name}": value for name, value in values.items() if value is not None}
    return {name: tensor.clone() for name, tensor in state.items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("on_host", [True, False], ids=["looking", "without looking"])
@pytest.mark.parametrize(("poison", "fault"), POISONS, ids=["loss", "gradient", "statistic"])
def test_what_is_not_finite_changes_nothing_that_lasts(
    poison: Poison, fault: str, on_host: bool, optimizer: str
) -> None:
    prepared = prepare(small_recipe(optimizer__name=optimizer), scenes())
    step = TrainingStep(prepared.train_state, prepared.precision, 10.0, prepared.device, on_host=on_host)
    prepared.train_state.detector.train()
    first, second, *_ = list(prepared.loader)
    step.accumulate(first)
    assert bool(step.apply(SETTINGS).isfinite())
    before = lasting(step)
    assert step.train_state.ema.updates == 1
    handle = poison(step)
    step.accumulate(second)
    assert not bool(step.apply(SETTINGS).isfinite())
    ours = lasting(step)
    assert step.train_state.ema.updates == 1
    counted = [name for name in differing(before, ours) if not name.endswith(".step")]
    assert counted == []
    if on_host:
        assert step.fault == fault
    handle.remove()  # type: ignore[attr-defined]
    # And the next good batch is learned from as if the bad one had not been.
    step.accumulate(second)
    assert bool(step.apply(SETTINGS).isfinite())
    assert all(bool(tensor.isfinite().all()) for tensor in lasting(step).values())
    assert "model.backbone.stem.convolution.weight" in differing(ours, lasting(step))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped_leaves_the_next_as_the_first(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What memory nobody has written holds, at its worst: torch's optimizers begin with such.
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *given, **more: empty_like(*given, **more).fill_(torch.nan))
    ended = []
    for is_bad in (True, False):
        prepared = prepare(small_recipe(optimizer__name=optimizer), scenes())
        step = TrainingStep(prepared.train_state, prepared.precision, 10.0, prepared.device, on_host=False)
        prepared.train_state.detector.train()
        first, second, *_ = list(prepared.loader)
        if is_bad:
            handle = poisoned_loss(step)
            step.accumulate(first)
            assert not bool(step.apply(SETTINGS).isfinite())
            handle.remove()  # type: ignore[attr-defined]
        step.accumulate(second)
        assert bool(step.apply(SETTINGS).isfinite())
        ended.append(lasting(step) | {"updates": torch.tensor(step.train_state.ema.updates)})
    assert [name for name in differing(*ended) if not name.endswith(".step")] == []


def test_a_checkpoint_from_before_the_first_step_brings_no_momentum_that_nobody_wrote(tmp_path: Path) -> None:
    prepared = prepare(small_recipe(optimizer__name="sgd"), scenes())
    prepared.train_state.optimizer.state.clear()  # as earlier releases wrote it
    save_checkpoint(tmp_path, prepared.train_state, Progress())
    load_latest(tmp_path, prepared.train_state)
    states = prepared.train_state.optimizer.state.values()
    assert len(states) == len(list(prepared.train_state.detector.parameters()))
    assert not any(state["momentum_buffer"].any() for state in states)


def test_with_a_gradient_scaler_a_bad_statistic_keeps_the_weights_too() -> None:
    prepared = prepare(small_recipe(optimizer__name="sgd"), scenes())
    prepared.train_state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    step = TrainingStep(prepared.train_state, prepared.precision, 10.0, prepared.device, on_host=False)
    prepared.train_state.detector.train()
    first, second, *_ = list(prepared.loader)
    step.accumulate(first)
    assert bool(step.apply(SETTINGS).isfinite())
    before = lasting(step)
    handle = poisoned_statistic(step)
    step.accumulate(second)
    assert not bool(step.apply(SETTINGS).isfinite())
    assert differing(before, lasting(step)) == []
    handle.remove()  # type: ignore[attr-defined]
    step.accumulate(second)
    assert bool(step.apply(SETTINGS).isfinite())
    assert "model.backbone.stem.convolution.weight" in differing(before, lasting(step))


def test_with_and_without_looking_good_steps_are_alike() -> None:
    ended = []
    for on_host in (True, False):
        prepared = prepare(small_recipe(), scenes())
        step = TrainingStep(prepared.train_state, prepared.precision, 10.0, prepared.device, on_host=on_host)
        prepared.train_state.detector.train()
        for batch in prepared.loader:
            step.accumulate(batch)
            step.apply(SETTINGS)
        ended.append(lasting(step))
    for name, tensor in ended[0].items():
        torch.testing.assert_close(ended[1][name], tensor, rtol=1e-5, atol=1e-7)


def test_a_batch_left_out_leaves_the_others_of_its_step() -> None:
    prepared = prepare(small_recipe(), scenes())
    step = TrainingStep(prepared.train_state, prepared.precision, 0.0, prepared.device)
    prepared.train_state.detector.eval()
    first, second, *_ = list(prepared.loader)
    step.accumulate(first)
    weight = prepared.train_state.detector.head.predictors["p3"].weight
    alone = weight.grad.clone()
    handle = poisoned_loss(step)
    step.accumulate(second)
    assert torch.equal(weight.grad, alone)
    handle.remove()  # type: ignore[attr-defined]
    assert bool(step.apply(SETTINGS).isfinite())


def poisoning(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """Make the loss nan in the batches (counted from 1 over the run) that `bad` names."""
    from anchorite.loss import DetectionLoss

    forward, count = DetectionLoss.forward, iter(range(1, 10_000))

    def poisoned(self: DetectionLoss, *inputs: object) -> object:
        terms = forward(self, *inputs)  # type: ignore[arg-type]
        if self.training and bad(next(count)):
            return terms._replace(total=terms.total * torch.nan, objectness=terms.objectness * torch.nan)
        return terms

    monkeypatch.setattr(DetectionLoss, "forward", poisoned)


def test_a_skipped_step_is_told_with_its_images_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoning(monkeypatch, lambda number: number == 2)
    recorder, out = Recorder(), tmp_path / "run"
    train(small_recipe(optimizer__nominal_batch=4), scenes(), out, recorder)
    (event,) = recorder.of(StepSkipped)
    assert (event.facts["epoch"], event.facts["batch"], event.facts["in_a_row"]) == (1, 2, 1)
    assert event.facts["not_finite"] == "the objectness loss"
    assert len(event.facts["images"]) == 4
    assert set(event.facts["images"]) <= {str(record.path) for record in scenes().splits["train"]}
    assert [json.loads(line) for line in RunFolder(out).skipped.read_text().splitlines()] == [event.facts]
    assert [row["train/skipped_steps"] for row in RunFolder(out).read_rows()] == ["1", "0"]
    assert all(float(row["train/objectness"]) > 0 for row in RunFolder(out).read_rows())


def test_too_many_in_a_row_end_the_run_with_a_post_mortem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoning(monkeypatch, lambda number: number > 7)
    recorder, out = Recorder(), tmp_path / "run"
    with pytest.raises(DivergedError, match=r"epoch 4, batch 3: the objectness loss is not finite.* 5 steps") as caught:
        train(small_recipe(epochs=9, optimizer__nominal_batch=4), scenes(), out, recorder)
    assert caught.value.exit_code == 3
    assert [event.facts["in_a_row"] for event in recorder.of(StepSkipped)] == [1, 2, 3, 4, 5]
    facts = json.loads((out / "post-mortem-epoch-0004-batch-00003.json").read_text())
    assert facts == recorder.of(StepSkipped)[-1].facts
    assert facts["losses"]["objectness"] == "nan"
    batch = load_file(out / "post-mortem-epoch-0004-batch-00003.safetensors")
    assert batch["images"].dtype == torch.uint8
    assert [str(scenes().splits["train"][index].path) for index in batch["indices"]] == facts["images"]
    for name in ("best", "last"):
        detector, _ = load_weights(out / f"{name}.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in detector.state_dict().values())
