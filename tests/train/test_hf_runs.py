"""Runs with a backbone of transformers: from the folder to weights, and going on when the folder is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from anchorite.cli import run
from anchorite.errors import InputError
from anchorite.model import load_weights
from anchorite.model.hf_backbone import HFBackbone
from anchorite.train import RunStarted, load_recipe, resume, train
from anchorite.train.optim import parameter_groups
from anchorite.train.pretrained import read_hf_backbone
from anchorite.train.setup import prepare
from tests.cli.commands import data_folder, quick_recipe, weights
from tests.faults.test_resume import InterruptAt, assert_equal
from tests.faults.watch import watched
from tests.model.hf import detector, folder
from tests.train.runs import Recorder, scenes, small_recipe

pytest.importorskip("transformers")


def copied(family: str, place: Path) -> Path:
    return Path(shutil.copytree(folder(family), place / "backbone"))


def test_a_run_begins_with_the_weights_and_the_normalisation_of_the_folder() -> None:
    recipe = small_recipe(backbone=f"hf:{folder('resnet')}")
    backbone = read_hf_backbone(recipe, None)
    with watched() as deeds:
        prepared = prepare(recipe, scenes(), backbone=backbone)
    assert (deeds.network, deeds.spawned) == ([], [])
    assert backbone is not None
    assert backbone.description in prepared.decisions
    made = prepared.train_state.detector
    assert isinstance(made.backbone, HFBackbone)
    assert backbone.tensors is not None
    stem = backbone.tensors["resnet.embedder.embedder.convolution.weight"]
    assert torch.equal(made.backbone.body.embedder.embedder.convolution.weight, stem)
    assert made.backbone.mean.flatten().tolist() == [0.5, 0.25, 0.75]
    assert made.backbone.std.flatten().tolist() == [0.5, 0.25, 0.125]


def test_matrices_decay_and_scales_do_not() -> None:
    decayed, plain, biases = parameter_groups(detector("convnextv2"))
    names = {id(one): name for name, one in detector("convnextv2").named_parameters()}
    kinds = [{names[id(one)].rsplit(".", 2)[-2] for one in group} for group in (decayed, plain, biases)]
    assert {"pwconv1", "pwconv2", "dwconv", "convolution"} <= kinds[0]
    assert kinds[0].isdisjoint({"grn", "layernorm", "norm"})
    assert {"grn", "layernorm", "norm"} <= kinds[1]
    assert len(decayed) + len(plain) + len(biases) == len(names)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_when_the_folder_is_gone(tmp_path: Path) -> None:
    place = copied("convnext", tmp_path)
    recipe = small_recipe(epochs=2, backbone=f"hf:{place}", optimizer__lr=0.001)
    train(recipe, scenes(), tmp_path / "straight")
    assert load_recipe(tmp_path / "straight" / "recipe.yaml") == recipe
    with pytest.raises(KeyboardInterrupt):
        train(recipe, scenes(), tmp_path / "broken", InterruptAt(2, 1))
    shutil.rmtree(place)
    recorder = Recorder()
    resume(tmp_path / "broken", scenes(), recorder)
    assert_equal(tmp_path / "straight", tmp_path / "broken", 2)
    assert "backbone convnext of the run" in recorder.of(RunStarted)[0].decisions
    loaded, info = load_weights(tmp_path / "broken" / "best.safetensors")
    assert loaded.backbone_config == info.backbone_config == detector("convnext").backbone_config


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_again_with_the_same_backbone_alone(tmp_path: Path) -> None:
    place = copied("resnet", tmp_path)
    recipe = small_recipe(epochs=1, backbone=f"hf:{place}")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, scenes(), tmp_path / "broken", InterruptAt(1, 1))
    for one in (tmp_path / "broken" / "checkpoints").iterdir():
        one.unlink()
    file = place / "model.safetensors"
    file.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        resume(tmp_path / "broken", scenes())
    content = (tmp_path / "kept").read_bytes()
    file.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match=r"begins again with the backbone.*this is another; put that one back"):
        resume(tmp_path / "broken", scenes())
    file.write_bytes(content)
    resume(tmp_path / "broken", scenes())
    train(recipe, scenes(), tmp_path / "straight")
    assert_equal(tmp_path / "straight", tmp_path / "broken", 1)


@pytest.mark.slow
def test_the_command_trains_predicts_and_starts_again_from_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "run", str(data_folder())
    words = ["train", data, "--recipe", quick_recipe(), "--epochs", "1"]
    assert run([*words, "--backbone", f"hf-config:{folder('resnet')}", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"backbone resnet of {folder('resnet')}, random weights" in said
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert facts["backbone"]["config"]["model_type"] == "resnet"
    best = str(out / "best.safetensors")
    images = str(data_folder() / "images" / "val")
    assert run(["predict", best, images, "--out", str(tmp_path / "found"), "--confidence", "0.001"]) == 0
    capsys.readouterr()
    assert run([*words, "--weights", best, "--out", str(tmp_path / "again")]) == 0
    assert "backbone resnet of the weights" in capsys.readouterr().out
    assert load_weights(tmp_path / "again" / "last.safetensors")[1].backbone_config is not None


def test_the_command_refuses_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data, plain = str(tmp_path / "run"), str(data_folder()), weights()
    for words, message in (
        (["--backbone", "hf:microsoft/resnet-50"], "nothing is downloaded unasked"),
        (["--backbone", "resnet"], "--backbone: 'resnet': write hf:FOLDER"),
        (["--allow-download"], "no backbone was given; leave it out"),
        (
            ["--backbone", f"hf:{folder('resnet')}", "--weights", plain],
            "weights have a backbone already; leave one of them",
        ),
    ):
        with watched() as deeds:
            assert run(["train", data, "--recipe", quick_recipe(), "--out", out, *words]) == 2
        assert deeds.network == []
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
