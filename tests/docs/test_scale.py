"""docs/scale.md against tools/scale.py, and its arithmetic against values worked by hand and the code it counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchorite.boxes import Targets
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.distributed import world as ranks_group
from anchorite.evaluate.validator import gather_predictions
from anchorite.loss import DetectionLoss
from anchorite.metrics import Predictions
from anchorite.model import default_anchors
from anchorite.train.checkpoint import Progress, save_checkpoint
from anchorite.train.optim import Settings
from tests.distributed.programs import make_step, whole_batch
from tools import scaling
from tools.scale import TABLES, filled, main, short
from tools.scaling import NETWORKS, OBJECTS365, Data, Plan

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scale.md"
RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_has_every_table_as_it_is_computed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- table: ([\w-]+) -->", text)) == sorted(TABLES), "each once"
    assert filled(text) == text, "run: python tools/scale.py --write docs/scale.md"


def test_a_page_out_of_step_is_filled_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: links -->\n| old |\n<!-- end -->\nafter\n")
    main(["--write", str(page)])
    assert page.read_text() == f"before\n<!-- table: links -->\n{TABLES['links']()}\n<!-- end -->\nafter\n"


def test_bytes_of_the_network_by_hand() -> None:
    assert scaling.ring_bytes(12, 1) == 0
    assert scaling.ring_bytes(12, 2) == 12
    assert scaling.ring_bytes(12, 4) == 18
    assert scaling.small_payload("n") == 3 * 8 + 5 * 4 + 3 * 4
    assert scaling.small_payload("n6") == 4 * 8 + 6 * 4 + 3 * 4
    assert scaling.norm_payload("n") == 8 * (2 * 4752 + 49)
    assert scaling.latency(1) == 0
    assert scaling.latency(128) == pytest.approx(14 * 5e-6)


def test_a_gpu_by_hand() -> None:
    # 13.4043648 Gflop at 395.6 Tflop/s; 11 827 200 numbers of 2 bytes, 20 times, at 4.8 TB/s
    assert scaling.gpu_seconds("n", 640) == pytest.approx(33.8837e-6 + 98.56e-6, rel=1e-5)
    assert scaling.gpu_seconds("n", 1280) == pytest.approx(4 * scaling.gpu_seconds("n", 640))
    assert scaling.gpu_step_seconds("n", 640, 16) == pytest.approx(49 * 12 * 5e-6), "held up by starting kernels"
    assert scaling.gpu_step_seconds("n", 640, 32) == pytest.approx(32 * 132.4437e-6, rel=1e-5)
    assert scaling.gpu_bytes("n", 80, 640, 2) == 16 * 1872157 + 2 * 6 * 11827200


def test_classes_change_the_head_alone() -> None:
    assert scaling.parameters("n", 80) == 1872157
    # three anchors on each of 448 channels in all, and a bias for each anchor of three levels
    assert scaling.parameters("n", 365) - 1872157 == 285 * 3 * (448 + 3)
    assert "1 872 157" in (ROOT / "docs/how-to/p6.md").read_text(encoding="utf-8")
    for size in ("s", "n6", "s6"):
        assert short(NETWORKS[size].parameters) in (ROOT / "docs/how-to/p6.md").read_text(encoding="utf-8")


def test_the_loader_by_hand() -> None:
    data = Data("one", 1000, 80, 5000, 10, megapixels=2.0)
    one = 1 / scaling.loader_rate(data, Plan(workers=1, tiles=3))
    assert one == pytest.approx(scaling.PAINT_S + 3 * 2 * scaling.DECODE_S)
    assert scaling.loader_rate(data, Plan(workers=8, tiles=3)) == pytest.approx(8 / one)
    larger = 1 / scaling.loader_rate(data, Plan(side=1280, workers=1, tiles=0))
    assert larger == pytest.approx(4 * scaling.PAINT_S)
    assert round(1 / scaling.PAINT_S) == 485, "as docs/performance.md says"


def test_the_slowest_part_sets_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data("small files", 4096, 80, 5000, 1)
    plenty = Plan(workers=100_000)
    gpu = scaling.gpu_step_seconds("x", 640, 16)
    alone = scaling.step("x", data, plenty)
    assert alone.bottleneck == "GPU"
    assert alone.seconds == pytest.approx(gpu + 4 * 6 * 5e-6), "eight ranks, four small sums, three hops up and down"
    assert scaling.epoch_seconds("x", data, plenty) == pytest.approx(32 * alone.seconds)
    few = scaling.step("x", data, Plan(workers=8))
    assert few.bottleneck == "loader"
    assert few.seconds == pytest.approx(128 / scaling.loader_rate(data, Plan(workers=8)))
    monkeypatch.setattr(scaling, "STORAGE_BYTES_S", 1e8)
    read = scaling.step("x", data, plenty)
    assert (read.bottleneck, read.seconds) == ("storage", pytest.approx(128 * 0.3e6 / 1e8))
    monkeypatch.undo()
    monkeypatch.setattr(scaling, "NIC_BYTES_S", 1e9)
    far = scaling.step("x", data, Plan(gpus=16, workers=100_000))
    sent = 2 * 15 / 16 * 4 * 86749405 / 0.7e9 + 8 * 5e-6
    assert far.network == pytest.approx(sent)
    assert far.exposed == pytest.approx(sent - gpu * 2 / 3 + 4 * 8 * 5e-6)
    assert far.bottleneck == "network"
    assert scaling.bottleneck("x", Data("much to score", 4096, 80, 1, 10**6), plenty) == "scoring"


def test_what_data_take_by_hand() -> None:
    data = Data("three", 3, 2, 10, 2)
    assert scaling.index_bytes(data) == 61 * 10 + 70 * 3
    assert scaling.store_bytes(3, 640) == 3 * 640 * 480 * 3
    assert scaling.found_bytes(data) == 2 * 300 * 48
    decode, forward, score = scaling.validation_seconds("n", data, Plan(gpus=16, workers=10))
    assert decode == pytest.approx(2 * data.megapixels * scaling.DECODE_S / 20)
    assert forward == pytest.approx(2 * 4468121600 / 395.6e12 / 16)
    assert score == pytest.approx(2 * 0.045 / 72)


def test_numbers_are_written_in_three_digits() -> None:
    written = [short(number) for number in (1872157, 13.0951, 0.37944, 999.6, 1043.2, 205448.2, 0.0)]
    assert written == ["1 872 157", "13.1", "0.379", "1 000", "1 040", "205 000", "0"]


def test_a_run_of_ones_own_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--images", "1000", "--classes", "3", "--boxes", "4000", "--gpus", "1", "--val-images", "0"])
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[2:12]] == list(NETWORKS)
    assert "label index 0.000314 GB" in printed
    with pytest.raises(SystemExit):
        main(["--gpus", "0"])


@pytest.mark.slow
@pytest.mark.parametrize("size", NETWORKS)
def test_counts_are_those_of_the_detector(size: str) -> None:
    assert scaling.count(size) == NETWORKS[size]


def results(name: str) -> Any:
    """A file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_measured_constants_are_those_of_the_results() -> None:
    compared = (outcome["comparisons"] for outcome in results("2026-11-25-cpu-2core-loader")["outcomes"])
    loader = {one["name"]: one for comparisons in compared for one in comparisons}
    ours, decoding = loader["640 px, against decoding"]["ours"], loader["640 px, against decoding"]["yardstick"]
    stored = loader["640 px, against memory"]["yardstick"]
    assert pytest.approx(ours["value"] / 16) == scaling.PAINT_S
    assert pytest.approx((decoding["value"] - stored["value"]) / 64 / 0.3072) == scaling.DECODE_S
    largest = results("2026-11-27-index-coco")["openings"][-1]
    assert largest["first"]["cpu_seconds"] / largest["boxes"] == pytest.approx(scaling.LABEL_S)
    assert largest["second"]["seconds"] / largest["boxes"] == pytest.approx(scaling.REOPEN_S)
    text = PAGE.read_text(encoding="utf-8")
    for number in (scaling.PAINT_S, scaling.DECODE_S, scaling.LABEL_S):
        assert f"{short(1e3 * number)} ms" in text
    assert f"{1e9 * scaling.REOPEN_S:.0f} ns a box" in text
    told = " ".join((ROOT / "docs/performance.md").read_text(encoding="utf-8").split())
    assert "COCO's library about 45 ms" in told


@pytest.mark.parametrize("size", ["n", "n6"])
def test_small_sums_are_those_of_the_loss_and_the_step(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    travelled: list[int] = []
    monkeypatch.setattr(ranks_group.dist, "all_reduce", lambda tensor: travelled.append(tensor.nbytes))
    anchors, two = default_anchors(size), World(0, 2)
    logits = [torch.zeros(1, 3, 128 // stride, 128 // stride, 85) for stride in anchors.strides]
    maps = [level.permute(0, 1, 4, 2, 3) for level in logits]
    targets = Targets.from_rows(torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4]]))
    DetectionLoss(anchors, 80, world=two)(maps, targets, num_images=2)
    two.all(torch.tensor(True))  # the batch
    two.any(False)  # the step, and whether to go on
    two.any(False)
    assert len(travelled) == scaling.COLLECTIVES + 1
    assert sum(travelled) == scaling.small_payload(size)


def test_a_detection_takes_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(World, "gather_tensors", lambda _ranks, tensors: sent.update(tensors) or [])
    found = Predictions(np.zeros((300, 4)), np.zeros(300), np.zeros(300, np.int64))
    gather_predictions(World(0, 2), {0: found})
    columns = sum(sent[name].nbytes for name in ("boxes_xyxy", "scores", "class_ids"))
    assert columns == scaling.MOST_DETECTIONS * scaling.DETECTION_BYTES


@pytest.mark.slow
def test_a_checkpoint_takes_what_is_counted(tmp_path: Path) -> None:
    step, train_state = make_step(SINGLE_PROCESS)
    step.accumulate(whole_batch(0, 2, 2, unknown=False))
    step.apply(Settings(0.01, 0.01, 0.9))
    size = save_checkpoint(tmp_path, train_state, Progress()).stat().st_size
    counted = 2 * scaling.CHECKPOINT_BYTES * scaling.parameters("n", 3)  # in float64
    assert 1 <= size / counted < 1.02


def test_gloo_sends_what_is_computed() -> None:
    """What was measured: no less than computed, and with gradients alone no half per cent more."""
    for row in TABLES["gloo"]().splitlines()[2:]:
        size, world, shared, computed, measured, *_ = (cell.strip() for cell in row.strip("|").split("|"))
        assert 1 <= float(measured) / float(computed) < (1.05 if shared == "on" else 1.005), (size, world)


def test_the_page_quotes_the_tables() -> None:
    """What the text says of them, where a constant may come to change."""
    one, sixteen = Plan(), Plan(gpus=128)
    assert [scaling.bottleneck(size, OBJECTS365, one) for size in "nsmlx"] == ["loader"] * 2 + ["GPU"] * 3
    assert [scaling.bottleneck(size, OBJECTS365, Plan(workers=64)) for size in "nsmlx"] == ["loader"] * 3 + ["GPU"] * 2
    assert {scaling.bottleneck(size, OBJECTS365, sixteen) for size in "nsmlx"} == {"scoring"}
    assert round(scaling.gpu_bytes("x", 80, 640, 16) / 1e9) == 12
    assert all(scaling.step(size, OBJECTS365, sixteen).exposed < 3e-4 for size in "nsmlx")
    bccd = Data("BCCD", 205, 3, 2200, 87, megapixels=0.3072)
    memory, shards, files = (1 / scaling.loader_rate(bccd, Plan(tiles=tiles)) for tiles in (0, 2, 4))
    text, measured = PAGE.read_text(encoding="utf-8"), results("2026-11-27-shards-loader")["ms_an_image"]
    assert f"says that samples take {shards / memory:.2f} times" in text
    assert f"and {files / memory:.2f} times from files" in text
    kept = measured["files, decoded images in memory"]
    pair = measured["shards"] / kept, measured["files, decoded each time"] / kept
    assert f"it was {pair[0]:.2f} and {pair[1]:.2f} times" in text


def test_a_slow_network_holds_up_what_a_fast_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 Gb/s, as the page says; and half the rates of a GPU."""
    monkeypatch.setattr(scaling, "NIC_BYTES_S", 1.25e9)
    assert {scaling.step(size, OBJECTS365, Plan(gpus=128)).bottleneck for size in "nsmlx"} == {"network"}
    monkeypatch.setattr(scaling, "CONVOLUTION_SHARE", scaling.CONVOLUTION_SHARE / 2)
    monkeypatch.setattr(scaling, "GPU_BYTES_S", scaling.GPU_BYTES_S / 2)
    assert scaling.step("s", OBJECTS365, Plan()).bottleneck == "GPU"
    assert f"{short(128 / scaling.step('s', OBJECTS365, Plan()).gpu)} images a second" in PAGE.read_text(
        encoding="utf-8"
    )
