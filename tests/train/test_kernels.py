"""Which kernels a training step on the CPU runs on, by what oneDNN itself tells."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

_SCRIPT = """
import torch
from anchorite.benchmark import targets_for
from anchorite.benchmark import training_step, whole_step
from anchorite.data import Batch
from anchorite.devices import choose_precision
cpu = torch.device("cpu")
precision = choose_precision("auto", cpu)
step = training_step("n", 3, 128, cpu, precision)
images = torch.zeros((4, 3, 128, 128), dtype=torch.uint8)
whole_step(step, Batch(images, targets_for(4, 8, 3, cpu), torch.arange(4)))()
print("precision", precision.name)
"""


def convolutions_of(text: str) -> Counter[tuple[str, str]]:
    """How often each (direction, implementation) of a convolution ran, from oneDNN's verbose lines."""
    rows = [line.split(",") for line in text.splitlines() if line.startswith("onednn_verbose") and ",exec," in line]
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        kind = row.index("exec") + 2
        if row[kind] == "convolution":
            found[row[kind + 2], row[kind + 1]] += 1
    return found


def test_the_reader_tells_a_reference_kernel() -> None:
    line = "onednn_verbose,v1,primitive,exec,cpu,convolution,ref:any,forward_training,src:bf16,,,mb4,0.1"
    assert convolutions_of(line) == {("forward_training", "ref:any"): 1}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
def test_no_convolution_of_a_step_runs_on_a_reference_kernel() -> None:
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = convolutions_of(done.stdout)
    by_direction = Counter(direction for direction, _ in found.elements())
    if "precision bf16" in done.stdout:
        # 49 convolutions of backbone and neck, and the objectness of three levels; the image itself needs no gradient,
        # and the head's gradients are plain products.
        assert by_direction == {"forward_training": 52, "backward_weights": 49, "backward_data": 48}
    else:  # in float32 torch keeps some of them, those of 1 x 1 among them, for itself
        assert by_direction["forward_training"] >= 18
    slow = {name for _, name in found if "ref" in name.split(":")[0] or "simple" in name}
    assert not slow
    if "precision bf16" in done.stdout and torch.cpu._is_amx_tile_supported():
        assert all("amx" in name for _, name in found)
