"""Frozen parts: what stays to the bit through real steps, what moves, and what cannot be frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchorite.errors import InputError
from anchorite.model import Detector, default_anchors
from anchorite.train import RunFolder, RunStarted, load_recipe, resume, train
from anchorite.train.optim import Settings
from anchorite.train.pretrained import freeze
from anchorite.train.setup import Prepared, prepare
from anchorite.train.step import TrainingStep
from tests.train.runs import Recorder, scenes, small_recipe
from tests.train.test_loop import checkpoint_tensors

pytestmark = pytest.mark.usefixtures("small_networks")


def state(detector: Detector) -> dict[str, torch.Tensor]:
    """All but the counts of batches, which nothing counts."""
    return {name: tensor.clone() for name, tensor in detector.state_dict().items() if "tracked" not in name}


def after_three_steps(prepared: Prepared) -> dict[str, torch.Tensor]:
    """The network's tensors after three steps, as the loop takes them."""
    train_state = prepared.train_state
    step = TrainingStep(train_state, prepared.precision, clip_norm=10.0, device=prepared.device)
    train_state.detector.train()
    for batch in list(prepared.loader)[:3]:
        step.accumulate(batch)
        assert step.apply(Settings(0.01, 0.01, 0.9)).isfinite()
    return state(train_state.detector)


@pytest.mark.parametrize("names", [["backbone"], ["backbone.stem", "neck.lateral"], ["head"], ["backbone", "neck"]])
def test_frozen_tensors_stay_to_the_bit_and_all_others_move(names: list[str]) -> None:
    prepared = prepare(small_recipe(optimizer__freeze=names, optimizer__weight_decay=0.5), scenes())
    before = state(prepared.train_state.detector)
    after = after_three_steps(prepared)
    still = {name for name in before if any(name.startswith(f"{one}.") for one in names)}
    assert {name for name in before if torch.equal(before[name], after[name])} == still
    assert any("running_var" in name for name in still) or names == ["head"]
    average = prepared.train_state.ema.model.state_dict()
    assert all(torch.equal(before[name], average[name]) for name in still)
    warning = f"warning: {', '.join(names)} will keep random values: nothing was learned there before"
    assert warning in prepared.decisions
    count = sum(one.numel() for name, one in before.items() if name in still and "running" not in name)
    assert any(text.startswith(f"frozen: {', '.join(names)}; {count} of ") for text in prepared.decisions), (
        prepared.decisions
    )


def test_nothing_frozen_says_nothing_and_takes_one_name_for_a_list() -> None:
    assert not any("frozen" in text or "rates by depth" in text for text in prepare(small_recipe(), scenes()).decisions)
    assert load_recipe("demo", {"optimizer.freeze": "neck"}).optimizer.freeze == ("neck",)
    with pytest.raises(InputError, match=r"optimizer.freeze: parts go by name, such as \[backbone\]"):
        load_recipe("demo", {"optimizer.freeze": 10})


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        train(small_recipe(optimizer__freeze=["backbone", "stage9"]), scenes(), tmp_path / "run")
    message = str(caught.value)
    assert "optimizer.freeze: the network has no part 'stage9'" in message
    for name in ("backbone, backbone.stem, backbone.stage2", "neck, neck.lateral", "head, head.predictors"):
        assert name in message
    assert not (tmp_path / "run").exists()
    recorder = Recorder()
    with pytest.raises(InputError, match=r"no part 'neck.lateral.p9'; did you mean neck.lateral.p\d"):
        train(small_recipe(optimizer__freeze=["neck.lateral.p9"]), scenes(), tmp_path / "run", recorder)
    assert recorder.events == []  # no image was decoded before
    for wrong in ("", "backbone.stage", "backbone."):
        with pytest.raises(InputError, match="no part"):
            prepare(small_recipe(optimizer__freeze=[wrong]), scenes())


def test_a_network_of_which_nothing_would_move_is_refused() -> None:
    with torch.device("meta"):
        detector = Detector("n", 2, default_anchors("n"))
    with pytest.raises(InputError, match=r"nothing is left to train; leave out one of backbone, neck, head"):
        freeze(detector, ["backbone", "neck", "head"])


def test_parts_may_be_let_go_when_a_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_recipe(epochs=1, optimizer__freeze=["backbone"]), scenes(), run)
    before = checkpoint_tensors(run, 1)
    assert not any(name.startswith("gradient.") for name in before)
    text = RunFolder(run).recipe.read_text().replace("epochs: 1\n", "epochs: 2\n")
    RunFolder(run).recipe.write_text(text.replace("  freeze:\n  - backbone\n", "  freeze: []\n"))
    recorder = Recorder()
    resume(run, scenes(), recorder, allow=["recipe"])
    said = recorder.of(RunStarted)[0].decisions
    assert "allowed: recipe.yaml: optimizer.freeze was ['backbone'], now it is []" in said
    after = checkpoint_tensors(run, 2)
    name = "model.backbone.stem.convolution.weight"
    assert not torch.equal(before[name], after[name])
    # What had moved before goes on with its own momentum: each optimizer tensor has the shape of its parameter.
    assert sum(key.startswith("optimizer.") for key in after) > sum(key.startswith("optimizer.") for key in before)
