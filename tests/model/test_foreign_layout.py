from __future__ import annotations

import json
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from anchorite.model import Detector, default_anchors
from anchorite.model.foreign_layout import foreign_anchors_name, foreign_names, joined
from tests.model.oracle import p5_outputs, randomise_norms
from tests.shared import shared_path


def meta_state(size: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Detector(size, 80, default_anchors(size)).state_dict()


@pytest.mark.parametrize("size", ["n", "s"])
def test_every_foreign_name_and_shape_is_hit_exactly_once(size: str) -> None:
    listed = json.loads(shared_path(f"weights/foreign_{size}_names.json").read_text())
    foreign = {name: torch.empty(shape, device="meta") for name, shape, _ in listed["state_dict"]}
    hits: dict[str, int] = defaultdict(int)
    for name, tensor in meta_state(size).items():
        sources = foreign_names(name, size)
        for source in sources:
            hits[source] += 1
        assert joined([foreign[source] for source in sources]).shape == tensor.shape, name
    assert hits == dict.fromkeys(foreign.keys() - {foreign_anchors_name(size)}, 1)
    assert foreign[foreign_anchors_name(size)].shape == (3, 3, 2)
    in_cells = default_anchors(size).cells(torch.float64)
    torch.testing.assert_close(
        in_cells, torch.tensor(listed["anchors_grid_units"], dtype=torch.float64), rtol=0, atol=0
    )


def test_the_numbers_of_the_p6_parts_go_on_like_those_of_p5() -> None:
    assert foreign_names("backbone.stage6.cross_stage.merge.convolution.weight", "n6") == ("model.10.cv3.conv.weight",)
    assert foreign_names("backbone.pool.combine.norm.running_var", "n6") == ("model.11.cv2.bn.running_var",)
    assert foreign_names("neck.lateral.p6.convolution.weight", "n6") == ("model.12.conv.weight",)
    assert foreign_names("neck.top_down.p3.entry.norm.bias", "n6") == ("model.23.cv1.bn.bias", "model.23.cv2.bn.bias")
    assert foreign_names("neck.bottom_up.p6.bottlenecks.0.look.convolution.weight", "n6") == (
        "model.32.m.0.cv2.conv.weight",
    )
    assert foreign_names("head.predictors.p6.bias", "n6") == ("model.33.m.3.bias",)
    every = [source for name in meta_state("m6") for source in foreign_names(name, "m6")]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    "name", ["neck.lateral.p3.convolution.weight", "backbone.stage2.cross_stage.odd.norm.bias", "x"]
)
def test_a_name_that_no_detector_has_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        foreign_names(name, "n")


def test_the_detector_computes_what_the_listed_parts_compute_in_their_order() -> None:
    torch.manual_seed(0)
    detector = Detector("n", 3, default_anchors("n")).double().eval()
    randomise_norms(detector, seed=1)
    foreign: dict[str, Tensor] = {}
    for name, tensor in detector.state_dict().items():
        sources = foreign_names(name, "n")
        pieces = tensor.chunk(len(sources)) if tensor.ndim else [tensor] * len(sources)
        foreign.update(zip(sources, pieces, strict=True))
    images = torch.rand(1, 3, 256, 320, dtype=torch.float64)  # so that 9 and 13 cells around are not all there is
    with torch.no_grad():
        for own, expected in zip(detector(images), p5_outputs(foreign, images), strict=True):
            assert (own.flatten(1, 2) - expected).abs().max() < 1e-9 * expected.abs().max()
