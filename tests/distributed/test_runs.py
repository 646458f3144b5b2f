"""Whole runs of several ranks: what they measure and keep is what one process would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anchorite.data import open_dataset
from anchorite.data.convert import write_dataset
from anchorite.evaluate import ReadConfig, ValidationConfig, Validator
from anchorite.model import load_weights
from anchorite.train import RunFolder
from tests.cli.commands import data_folder
from tests.distributed.launched import BY_STEP, Launched, bits, finished, start, train_words
from tests.distributed.machines import two_machines
from tests.distributed.ranks import free_port, on_ranks
from tests.train.runs import scenes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]


def test_what_ranks_measure_together_is_what_one_process_measures() -> None:
    run = finished()
    detector, info = load_weights(run / "last.safetensors")
    dataset = open_dataset(data_folder())
    recipe = RunFolder(run).read_recipe()
    validator = Validator(dataset.splits["val"], info.class_names, recipe.image_size, ReadConfig(recipe.batch))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = validator.run(detector, ValidationConfig()).to_json()["metrics"]
    torch.set_num_threads(threads)
    together = json.loads((run / "summary.json").read_text())["last_validation"]
    assert together["images"] == len(dataset.splits["val"])
    assert together["metrics"] == json.loads(json.dumps(alone))


def test_two_machines_make_the_run_of_one(tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    with two_machines() as machines:
        agents = []
        for number, machine in enumerate(machines):
            options = [
                *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
                *("--rdzv-endpoint", f"{machines[0].address}:{port}", "--local-addr", machine.address),
                *("--rdzv-conf", f"is_host={int(number == 0)}"),
            ]
            agents.append(Launched(options, "anchorite.cli:main", train_words(run, *BY_STEP), machine=machine))
        said = [agent.communicate(timeout=170) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sorted(output.count("weights: ") for output, _ in said) == [0, 1], "the first rank alone has a say"
    assert bits(run) == bits(finished())


def test_ranks_share_shards_and_go_on_in_an_epoch_of_them_bit_for_bit(tmp_path: Path) -> None:
    write_dataset(scenes(), tmp_path / "shards", "shards", shard_bytes=12_000)
    arguments = {"data": str(tmp_path / "shards"), "out": str(tmp_path)}
    world = on_ranks(2, "tests.distributed.shard_program:train_and_go_on", tmp_path, **arguments)
    num_images = len(scenes().splits["train"])
    everything = [(epoch, index) for epoch in range(2) for index in range(num_images)]
    drawn = [[tuple(pair) for pair in of_rank["straight.drawn"].tolist()] for of_rank in world]
    assert sorted(drawn[0] + drawn[1]) == everything, "each image once an epoch, on one of the ranks"
    assert abs(len(drawn[0]) - len(drawn[1])) <= 2
    for of_rank, before in zip(world, drawn, strict=True):
        assert max(of_rank["batches"].tolist()) == 2
        again = [tuple(pair) for pair in of_rank["broken.drawn"].tolist()]
        assert again == before[-len(again) :]
        assert len(before) - len(again) == 4, "two batches of 4 on two ranks"
        end = {name: tensor for name, tensor in of_rank.items() if name.startswith("straight.end.")}
        assert end
        assert all(torch.equal(tensor, of_rank[name.replace("straight", "broken")]) for name, tensor in end.items())


def test_patience_that_runs_out_late_leaves_what_it_would_have_left_at_once(tmp_path: Path) -> None:
    # Nothing is found in two epochs, so the first is the best and the second one too many.
    run = tmp_path / "run"
    settings = ("--epochs", "9", "--set", "patience=1")
    process = start(train_words(run, *settings))
    _, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reason"] == "no better mAP for 1 epochs"
    assert summary["best_epoch"] == 1
    assert [row["epoch"] for row in RunFolder(run).read_rows()] == ["1", "2"]
    at_the_end = load_file(run / "checkpoints" / "epoch-0001-batch-00003.safetensors")
    last = load_file(run / "last.safetensors")
    assert all(torch.equal(tensor, at_the_end[f"ema.{name}"]) for name, tensor in last.items())


def test_ranks_of_a_machine_decode_each_image_once_and_keep_it_once(tmp_path: Path) -> None:
    (alone,) = on_ranks(
        1, "tests.distributed.programs:kept_images", tmp_path, data=str(data_folder()), bad=str(tmp_path)
    )
    world = on_ranks(2, "tests.distributed.programs:kept_images", tmp_path, data=str(data_folder()), bad=str(tmp_path))
    num_images = len(open_dataset(data_folder()).splits["train"])
    assert alone["decoded"].item() == num_images + 1
    assert sum(found["decoded"].item() for found in world) == num_images + 1
    for found in world:
        assert torch.equal(found["pixels"], alone["pixels"])
        assert found["left_out"].tolist() == alone["left_out"].tolist() == [num_images]
        assert found["written_by_first"].item() == 7, "one memory, not two of the same content"
