"""What the explain page is made of: the choice of images, their targets, their costs, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import anchorite.report.explain as explain_module
from anchorite.anchors import AnchorSet
from anchorite.boxes import LabelCoverage, Targets
from anchorite.data import open_dataset
from anchorite.errors import DivergedError, InputError
from anchorite.loss import DetectionLoss, LossConfig, assign
from anchorite.model import WeightsInfo, save_weights
from anchorite.report.explain import choose_images, choose_setting, explain, find_images, image_costs
from anchorite.report.page import script_json
from tests.inspect.samples import write_picture, yolo_folder
from tests.report.explained import EVIL, MIDDLE, dataset_in, explained_val, partly_known, setting_of, targets_of


def test_the_most_instructive_images_are_chosen_in_turn(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    records = dataset.splits["val"]
    found = choose_images(records, setting_of(dataset))
    names = [records[index].path.stem for index in found]
    assert names == ["lost", "crash", "many", "empty"]
    reasons = list(found.values())
    assert reasons[0] == "1 box that no anchor matches"
    assert re.fullmatch(r"\d+ anchor cells assigned to several boxes", reasons[1])
    assert reasons[2:] == ["5 boxes", "no boxes"]
    assert list(choose_images(records, setting_of(dataset), most=2)) == list(found)[:2]
    assert choose_images(records[:0], setting_of(dataset)) == {}


def test_images_are_found_by_name_and_stem_in_the_order_named(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    stems = [record.path.stem for record in dataset.splits["val"]]
    found = find_images(dataset, "val", ["many.png", "lost", "many"])
    assert [stems[index] for index in found] == ["many", "lost"]
    with pytest.raises(InputError, match=r"--image mny: .*near are many\.png"):
        find_images(dataset, "val", ["mny"])
    with pytest.raises(InputError, match=r"--image t\.png: .*add --split train"):
        find_images(dataset, "val", ["t.png"])


def test_targets_are_those_of_the_letterboxed_image(tmp_path: Path) -> None:
    # 128 x 96 in 64 px: scaled by 1/2 to 64 x 48, which needs 64 x 64, so 8 px of padding above and below.
    dataset = open_dataset(yolo_folder(tmp_path, {"val": {"one": "1 0.25 0.5 0.5 0.25\n"}}))
    (image,) = explained_val(dataset, setting_of(dataset, image_size=64))[1]["images"]
    assert (image["width"], image["height"], image["source"]) == (64, 64, [128, 96])
    (target,) = image["targets"]
    assert target["box"] == [0.25, 0.5, 0.5, 12 / 64]
    assert (target["class"], target["origin"]) == (1, "one.txt:1")


def constant_detector(*levels: Tensor) -> SimpleNamespace:
    return lambda _images: list(levels)  # type: ignore[return-value]


def test_costs_of_a_small_case_worked_by_hand() -> None:
    # One level of 2 x 2 cells of 8 px, one anchor of 16 px, which is the object and what the network says: CIoU = 1.
    # Objectness logit log 3 everywhere: log 4 at each of three background cells, -log(3/4) at the object; balance 4,
    # mean of 4. Two classes with logits 0: log 2.
    anchors = AnchorSet.from_rows([[16, 16]], (8,))
    criterion = DetectionLoss(anchors, 2, LossConfig(box_gain=1, objectness_gain=1, class_gain=1))
    logits = torch.zeros(1, 1, 7, 2, 2)
    logits[:, :, 4] = math.log(3)
    targets = Targets.from_rows(torch.tensor([[0, 1, 0.75, 0.75, 1.0, 1.0]]))
    image = torch.zeros((1, 3, 16, 16), dtype=torch.uint8)
    costs = image_costs(constant_detector(logits), criterion, image, targets, "a.png")  # type: ignore[arg-type]
    (place,) = costs["anchor_cells"]
    assert place[:5] == [0, 0, 1, 1, 0]
    assert place[5:9] == pytest.approx([1, 1, 0.75, 0.5], abs=1e-5)
    assert place[9:12] == pytest.approx([0, math.log(4 / 3), math.log(2)], abs=1e-5)
    assert place[12:] == [1, 12, 12, 16, 16]
    (level,) = costs["levels"]
    assert level["background"] == pytest.approx(3 * math.log(4), rel=1e-5)
    # d objectness: sigmoid - target of each cell, times 4 / 4; d class: (1/2, -1/2) / 2; the box is right: 0.
    assert level["gradient_objectness"] == pytest.approx(math.sqrt(3 * 0.75**2 + 0.25**2), rel=1e-5)
    assert level["gradient_classification"] == pytest.approx(math.sqrt(2) / 4, rel=1e-5)
    assert level["gradient"] == pytest.approx(math.sqrt(3 * 0.75**2 + 0.25**2 + 1 / 8), rel=1e-5)
    assert len(costs["background"]) == 3
    assert {(cell["row"], cell["column"]) for cell in costs["background"]} == {(0, 0), (0, 1), (1, 0)}
    assert all(cell["cost"] == pytest.approx(math.log(4), rel=1e-5) for cell in costs["background"])
    beside = next(cell for cell in costs["background"] if (cell["row"], cell["column"]) == (1, 0))
    assert beside["box"] == [4, 12, 16, 16]
    assert (beside["near"], beside["near_iou"]) == (0, pytest.approx(1 / 3, rel=1e-5))


def test_costs_of_labels_that_do_not_know_everything_worked_by_hand() -> None:
    # As above, but the object counts half, of two classes only its own is covered, and a region of 8 x 16 px on the
    # left would have the lower left cell as a candidate. No anchor of 16 x 16 px has half of its area in it.
    anchors = AnchorSet.from_rows([[16, 16]], (8,))
    criterion = DetectionLoss(anchors, 2, LossConfig(box_gain=1, objectness_gain=1, class_gain=1))
    logits = torch.zeros(1, 1, 7, 2, 2)
    logits[:, :, 4] = math.log(3)
    targets = Targets.from_rows(torch.tensor([[0, 1, 0.75, 0.75, 1.0, 1.0]]), torch.tensor([0.5]))
    regions = torch.tensor([[0, 0.25, 0.5, 0.5, 1.0]])
    coverage = LabelCoverage(regions, torch.tensor([[False, True]]), torch.tensor([0.25]))
    image = torch.zeros((1, 3, 16, 16), dtype=torch.uint8)
    network = constant_detector(logits)
    costs = image_costs(network, criterion, image, targets, "a.png", coverage)  # type: ignore[arg-type]
    (place,), (level,) = costs["anchor_cells"], costs["levels"]
    assert place[9:12] == pytest.approx([0, math.log(4 / 3) / 2, math.log(2) / 4], abs=1e-5)
    assert {(cell["row"], cell["column"]) for cell in costs["background"]} == {(0, 0), (0, 1)}
    assert level["background"] == pytest.approx(2 * math.log(4) / 4, rel=1e-5)
    assert level["background"] + level["spared"] == pytest.approx(3 * math.log(4), rel=1e-5)
    assert level["not_counted"] == 1
    assert costs["terms"]["total"] == pytest.approx(sum(place[9:12]) + level["background"], rel=1e-5)


def test_what_labels_do_not_know_is_told_of_each_image(tmp_path: Path) -> None:
    dataset = partly_known(dataset_in(tmp_path))
    images = {image["name"]: image for image in explained_val(dataset, setting_of(dataset))[1]["images"]}
    many = images.pop("many.png")
    assert [(one["class"], one["why"], one["origin"]) for one in many["regions"]] == [
        (0, "crowd or difficult", "many.txt:4"),
        (None, "ignored class", "many.txt:5"),
    ]
    assert many["regions"][0]["box"] == pytest.approx([0.7, 0.8, 0.12, 0.15])
    assert [one["weight"] for one in many["targets"]] == [0.25, 1, 1]
    assert many["labels"] == {"source": "cats", "uncovered": [1], "background": 0.5}
    assert all(not one["regions"] for one in images.values())
    assert images["lost.png"]["labels"] == {"source": "", "uncovered": [], "background": 1}
    record = next(one for one in dataset.splits["val"] if one.path.stem == "many")
    reasons = {record.origins[4]: "class 7 of 2"}
    setting = replace(setting_of(dataset), format="coco", not_understood=reasons)
    (image,) = explained_val(dataset, setting, "many")[1]["images"]
    assert [one["why"] for one in image["regions"]] == ["crowd", "not understood: class 7 of 2"]
    crowded = replace(record, path=record.path.with_stem("crowd"), ignored=np.ones(5, bool))
    assert choose_images([crowded, record], setting) == {1: "3 boxes", 0: "5 ignored regions"}


def test_costs_of_an_image_without_boxes_and_a_single_class() -> None:
    anchors = AnchorSet.from_rows([[16, 16]], (8,))
    targets, image = Targets.from_rows(torch.zeros(0, 6)), torch.zeros((1, 3, 16, 16), dtype=torch.uint8)
    logits = torch.zeros(1, 1, 6, 2, 2)
    costs = image_costs(constant_detector(logits), DetectionLoss(anchors, 1), image, targets, "a.png")  # type: ignore[arg-type]
    assert costs["terms"] == {"box": 0, "classification": 0, **dict.fromkeys(("objectness", "total"), 2.77259)}
    assert costs["anchor_cells"] == []
    assert [(cell["near"], cell["class"]) for cell in costs["background"]] == [(None, 0)] * 4
    # sigmoid(0) = 1/2 at each of 4 places, times balance 4, by 4 places: the norm is sqrt(4 * 1/4) = 1.
    assert [costs["levels"][0][f"gradient{part}"] for part in ("", "_box", "_objectness")] == [1, 0, 1]


@pytest.mark.parametrize("collision", ["last", "best"])
def test_places_and_background_add_up_to_the_loss(tmp_path: Path, collision: str) -> None:
    dataset = dataset_in(tmp_path)
    setting = setting_of(dataset, costs=True)
    assert setting.detector is not None
    config = LossConfig(collision=collision)  # type: ignore[arg-type]
    setting = type(setting)(**{**vars(setting), "criterion": DetectionLoss(setting.anchors, 2, config)})
    collided = 0
    for image in explained_val(dataset, setting, "crash", "empty")[1]["images"]:
        costs, terms = image["costs"], image["costs"]["terms"]
        sums = [sum(place[column] for place in costs["anchor_cells"]) for column in (9, 10, 11)]
        background = sum(level["background"] for level in costs["levels"])
        assert sums[0] == pytest.approx(terms["box"], rel=1e-4)
        assert sums[1] + background == pytest.approx(terms["objectness"], rel=1e-4)
        assert sums[2] == pytest.approx(terms["classification"], rel=1e-4)
        assert terms["total"] == pytest.approx(sum(sums) + background, rel=1e-4)
        collided += sum(not place[12] for place in costs["anchor_cells"])
        for place in costs["anchor_cells"]:  # the objectness target is the IoU of the winner
            assert not place[12] or place[6] == pytest.approx(max(place[5], 0), abs=2e-6)
        found = assign(
            targets_of(image), setting.anchors, [(image["height"] // s, image["width"] // s) for s in (8, 16, 32)]
        )
        places = [
            [number, *row]
            for number, level in enumerate(found)
            for row in torch.stack([level.anchor, level.row, level.column, level.target], 1).tolist()
        ]
        assert [place[:5] for place in costs["anchor_cells"]] == places
    assert collided > 0


def test_names_are_harmless_and_the_policy_names_the_script(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path, f"['{EVIL}', dog]")
    page = explained_val(dataset, setting_of(dataset, costs=True), "lost")[0]
    assert EVIL not in page
    assert page.count("<script") == page.count("</script>") == 2
    policy = html.unescape(page.split('Content-Security-Policy" content="')[1].split('"')[0])
    script = page.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert f"script-src 'sha256-{digest}'; " in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)  # the name of SVG is no address to ask
    data = page.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["classes"][0] == EVIL
    assert script_json({"a": "<!--</script>&\u2028\ud800"}).isascii()


def test_a_page_of_twenty_images_stays_under_3_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = yolo_folder(tmp_path, {"val": {f"n{i}": MIDDLE for i in range(20)}})
    for path in (folder / "images" / "val").iterdir():  # noise, which JPEG cannot make small
        write_picture(path, rng.integers(0, 256, (480, 640, 3)).astype(np.uint8))
    dataset = open_dataset(folder)
    setting = setting_of(dataset, image_size=640)
    page = explain(dataset.splits["val"], dict.fromkeys(range(20), ""), setting, "noise")[0]
    assert 1_000_000 < len(page.encode()) <= 3_000_000
    assert page.count("data:image/jpeg;base64,") == 20


def test_images_whose_facts_would_overfill_the_page_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_in(tmp_path)
    records, setting = dataset.splits["val"], setting_of(dataset)
    _, whole, _ = explain(records, dict.fromkeys(range(4), "x"), setting, "x")
    monkeypatch.setattr(explain_module, "MAX_PAGE_BYTES", len(script_json(whole["images"][0])) + 10)
    _, facts, left_out = explain(records, dict.fromkeys(range(4), "x"), setting, "x")
    assert facts["images"] == whole["images"][:1]  # one in any case
    assert all(records[index].path.name in left_out[0] for index in (1, 2, 3))


def test_unreadable_images_are_refused_or_left_out_by_name(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    broken = next(record.path for record in dataset.splits["val"] if record.path.stem == "lost")
    broken.write_bytes(broken.read_bytes()[:200])
    setting, chosen = setting_of(dataset), dict.fromkeys(range(4), "")
    with pytest.raises(InputError, match=r"lost\.png(.|\n)*--skip-bad"):
        explain(dataset.splits["val"], chosen, setting, "x")
    _, facts, left_out = explain(dataset.splits["val"], chosen, setting, "x", skip_unreadable=True)
    assert len(facts["images"]) == 3
    assert "lost.png" in left_out[0]
    only = {index: "" for index in chosen if dataset.splits["val"][index].path.stem == "lost"}
    with pytest.raises(InputError, match="none of the chosen images can be read"):
        explain(dataset.splits["val"], only, setting, "x", skip_unreadable=True)


def test_a_network_that_diverged_is_told_with_the_image(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    setting = setting_of(dataset, costs=True)
    assert setting.detector is not None
    next(setting.detector.head.parameters()).data.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"many\.png: .*not finite"):
        explained_val(dataset, setting, "many")


def test_the_setting_is_that_of_the_weights_and_their_recipe(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path / "data")
    detector = setting_of(dataset, costs=True).detector
    assert detector is not None
    weights = tmp_path / "w.safetensors"
    save_weights(weights, detector, WeightsInfo("n", ("cat", "dog"), detector.anchors, 128))
    setting = choose_setting(dataset, weights)
    assert (setting.image_size, setting.ratio_limit, setting.anchors) == (128, 4.0, detector.anchors)
    assert any("no recipe.yaml beside the weights" in sentence for sentence in setting.sentences)
    (tmp_path / "recipe.yaml").write_text("loss:\n  ratio_limit: 3.0\n  objectness_gain: 2.0\n")
    setting = choose_setting(dataset, weights, image_size=192)
    assert setting.criterion is not None
    assert (setting.image_size, setting.ratio_limit) == (192, 3.0)
    assert setting.criterion.config.objectness_gain == pytest.approx(2 * (128 / 640) ** 2)
    with pytest.raises(InputError, match=r"--image-size 100: must be a multiple of 32.*take 128"):
        choose_setting(dataset, weights, image_size=100)
    other = dataset_in(tmp_path / "other", "[cat, zebra]")
    with pytest.raises(InputError, match=r"class 1 is 'dog' and 'zebra'.*leave --weights out"):
        choose_setting(other, weights)


def test_without_weights_the_setting_is_what_training_would_choose(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path / "data")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("image_size: 96\nanchors:\n  rows: [[4, 4], [16, 16], [64, 64]]\nloss:\n  ratio_limit: 2.5\n")
    setting = choose_setting(dataset, recipe=str(recipe))
    assert (setting.image_size, setting.ratio_limit) == (96, 2.5)
    assert setting.anchors.to_rows() == [[4, 4], [16, 16], [64, 64]]
    assert setting.criterion is None


def test_pictures_are_sharper_than_the_network_input_where_the_file_is(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    page = explained_val(dataset, setting_of(dataset, image_size=64), "many")[0]
    content = base64.b64decode(page.split("data:image/jpeg;base64,")[1].split('"')[0])
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (128, 128, 3)
