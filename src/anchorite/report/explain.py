"""One page that shows what the loss sees in some images: which anchor cells are assigned to each box, and its costs.

Legend: N images, H, W image height and width in pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite import __version__
from anchorite.anchors import AnchorSet
from anchorite.data import (
    DatasetIndex,
    LetterboxedBatch,
    Record,
    decode_image,
    letterbox,
    letterbox_transform,
    rectangular_size,
)
from anchorite.data.batches import plan_letterboxed
from anchorite.errors import InputError
from anchorite.evaluate import batch_targets, require_classes, require_side
from anchorite.loss import DetectionLoss, assign
from anchorite.model import Detector, default_anchors, load_weights
from anchorite.report.explain_costs import image_costs
from anchorite.report.page import MAX_PAGE_BYTES, jpeg_uri, render_page
from anchorite.train import Recipe, load_recipe
from anchorite.train.setup import choose_anchors

MOST_CHOSEN = 12
MOST_NAMED = 60
_PLANNED_TOGETHER = 256
_NUM_NEAR = 3
_LONGEST_PX, _LEAST_PICTURE_BYTES = 960, 8_000
# Scale and JPEG quality, from best to smallest; the first that fits is taken, or else the last one.
_PICTURE_SIZES = ((1.0, 86), (1.0, 75), (0.8, 75), (0.66, 70), (0.5, 66), (0.4, 60), (0.3, 50), (0.2, 45), (0.12, 40))
_STYLES = ("style.css", "explain.css")
_SCRIPTS = tuple(f"explain_{name}.js" for name in ("assign", "state", "picture", "object", "costs", "page"))


@dataclass(frozen=True)
class ExplainSettings:
    """image_size: longer side of the network input in pixels; ratio_limit: of the assignment.

    detector and criterion: both or neither. sentences: where each of these came from, to be shown.
    """

    class_names: tuple[str, ...]
    anchors: AnchorSet
    image_size: int
    ratio_limit: float
    detector: Detector | None
    criterion: DetectionLoss | None
    sentences: tuple[str, ...]


def choose_setting(
    dataset: DatasetIndex, weights: Path | None = None, recipe: str | Path | None = None, image_size: int | None = None
) -> ExplainSettings:
    """What a training on this data would use (without weights), or what was used for these weights.

    recipe: name or file; by default the recipe.yaml beside the weights, where there is one, else the default recipe.
    Raises InputError when the classes of weights and data differ or the image size is no multiple of the coarsest
    stride, and what reading weights and recipe raises.
    """
    if weights is None:
        chosen = load_recipe(recipe)
        strides = default_anchors(chosen.model).strides
        size = require_side(image_size or chosen.image_size, strides[-1], f"model {chosen.model}")
        sized = chosen.model_copy(update={"image_size": size})
        anchors, sentence = choose_anchors(sized, dataset.split("train"))
        sentences = (sentence, f"ratio limit {chosen.loss.ratio_limit:g}: recipe {chosen.name}")
        return ExplainSettings(dataset.class_names, anchors, size, chosen.loss.ratio_limit, None, None, sentences)
    detector, info = load_weights(weights)
    remedy = "leave --weights out to see the assignment alone, or explain them on data of their own"
    require_classes(weights, info.class_names, dataset.root, dataset.class_names, remedy)
    size = require_side(image_size or info.image_size, info.anchors.strides[-1], str(weights))
    chosen, where = _recipe_of(weights, recipe)
    # The loss as training had it: gains scaled for the size that the weights were trained at.
    num_classes = len(info.class_names)
    config = chosen.loss.scaled(info.anchors.num_levels, num_classes, info.image_size)
    criterion = DetectionLoss(info.anchors, num_classes, config).eval()
    sentences = (
        f"anchors and classes: of the weights {weights.name}",
        f"loss settings: {where}; effective gains: box {config.box_gain:.4g}, objectness {config.objectness_gain:.4g}, "
        f"class {config.class_gain:.4g}; balance of the levels "
        + ", ".join(f"{value:g}" for value in criterion.balance.tolist())
        + (" (as at the start of training)" if config.automatic_balance else ""),
    )
    return ExplainSettings(info.class_names, info.anchors, size, config.ratio_limit, detector, criterion, sentences)


def _recipe_of(weights: Path, recipe: str | Path | None) -> tuple[Recipe, str]:
    """The recipe with the loss of these weights, and in words where it comes from."""
    if recipe is not None:
        return load_recipe(recipe), f"recipe {recipe}"
    beside = weights.parent / "recipe.yaml"
    if beside.is_file():
        return load_recipe(beside), "recipe.yaml beside the weights"
    chosen = load_recipe()
    return chosen, f"recipe {chosen.name}, for there is no recipe.yaml beside the weights"


@dataclass(frozen=True)
class Chosen:
    """An image to explain, by its index in the split's records, and why it was chosen."""

    index: int
    reason: str


def find_images(dataset: DatasetIndex, split: str, names: Sequence[str]) -> list[Chosen]:
    """The images of a split with these file names or stems, in the order named.

    Raises InputError for a name that no image has, suggesting similar names, or the split that has it.
    """
    by_name: dict[str, list[int]] = {}
    for index, record in enumerate(dataset.splits[split]):
        for name in {record.path.name, record.path.stem}:
            by_name.setdefault(name, []).append(index)
    found: dict[int, None] = {}
    for name in names:
        if name not in by_name:
            raise InputError(f"--image {name}: no image of split {split} has this name{_hint(dataset, split, name)}")
        found.update(dict.fromkeys(by_name[name]))
    if len(found) > MOST_NAMED:
        raise InputError(f"--image: {len(found)} images for one page; name at most {MOST_NAMED}")
    return [Chosen(index, "named by --image") for index in found]


def _hint(dataset: DatasetIndex, split: str, name: str) -> str:
    for other, records in dataset.splits.items():
        if other != split and any(name in (record.path.name, record.path.stem) for record in records):
            return f"; it is in split {other}: add --split {other}"
    names = {record.path.stem: record.path.name for record in dataset.splits[split]}
    near = difflib.get_close_matches(name, list(names.values()), _NUM_NEAR)
    near = near or [names[stem] for stem in difflib.get_close_matches(name, list(names), _NUM_NEAR)]
    return (
        f"; near are {', '.join(near)}" if near else f"; it has such as {', '.join(list(names.values())[:_NUM_NEAR])}"
    )


def choose_images(records: Sequence[Record], setting: ExplainSettings, most: int = MOST_CHOSEN) -> list[Chosen]:
    """Up to `most` images of N, ranked: in turn the ones with most unmatched boxes, collisions, and boxes.

    Only labels and sizes are read, no pixel. The same split gives the same choice.
    """
    boxes, unmatched, collisions = _counts(records, setting)
    rankings: list[tuple[NDArray[np.int64], Callable[[int], str]]] = [
        (unmatched, lambda count: f"{count} box{'' if count == 1 else 'es'} that no anchor matches"),
        (collisions, lambda count: f"{count} anchor cell{'' if count == 1 else 's'} assigned to several boxes"),
        (boxes, lambda count: f"{count} box{'' if count == 1 else 'es'}"),
    ]
    orders = [np.argsort(-counts, kind="stable").tolist() for counts, _ in rankings]
    chosen: dict[int, str] = {}
    wanted = min(most, len(records))
    while len(chosen) < wanted:
        before = len(chosen)
        for order, (counts, reason) in zip(orders, rankings, strict=True):
            index = next((index for index in order if index not in chosen and counts[index]), None)
            if index is not None and len(chosen) < wanted:
                chosen[index] = reason(int(counts[index]))
        if len(chosen) == before:  # only images without boxes are left
            rest = [index for index in range(len(records)) if index not in chosen]
            chosen.update(dict.fromkeys(rest[: wanted - before], "no boxes"))
    return [Chosen(index, reason) for index, reason in chosen.items()]


def _counts(
    records: Sequence[Record], setting: ExplainSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(N,) numbers of boxes, of those that no anchor matches, and of anchor cells assigned to more than one box."""
    boxes, unmatched, collisions = (np.zeros(len(records), np.int64) for _ in range(3))
    strides = setting.anchors.strides
    for plan in plan_letterboxed(records, setting.image_size, _PLANNED_TOGETHER, strides[-1]):
        height, width = plan.size_hw
        sizes = [(records[index].height, records[index].width) for index in plan.indices]
        transforms = tuple(letterbox_transform(size_hw, plan.size_hw) for size_hw in sizes)
        # A batch without pixels: only the labels count.
        empty = torch.empty((0, 3, height, width), dtype=torch.uint8)
        targets = batch_targets(records, LetterboxedBatch(empty, transforms, torch.tensor(plan.indices)))
        indices = np.array(plan.indices)
        image_of = indices[targets.rows[:, 0].long().numpy()]
        np.add.at(boxes, image_of, 1)
        matched = np.zeros(len(targets), bool)
        grid_sizes = [(height // stride, width // stride) for stride in strides]
        for level in assign(targets, setting.anchors, grid_sizes, setting.ratio_limit):
            matched[level.target.numpy()] = True
            pairs = torch.stack([level.image, level.anchor, level.row, level.column, level.target], dim=1)
            cells, num_boxes = np.unique(np.unique(pairs.numpy(), axis=0)[:, :4], axis=0, return_counts=True)
            np.add.at(collisions, indices[cells[num_boxes > 1, 0]], 1)
        np.add.at(unmatched, image_of[~matched], 1)
    return boxes, unmatched, collisions


@dataclass(frozen=True)
class Explained:
    """page: the HTML. facts: what it shows, as plain data, without the pictures. left_out: unreadable images."""

    page: str
    facts: dict[str, Any]
    left_out: tuple[str, ...]


def explain(
    records: Sequence[Record],
    chosen: Sequence[Chosen],
    setting: ExplainSettings,
    title: str,
    notes: Sequence[str] = (),
    *,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Explained:
    """The page of these images of a split. notes: how they were chosen, shown with the setting's sentences.

    progress is called with (images done, images in all). Raises InputError naming an image that cannot be decoded,
    unless skip_unreadable, or when none is left; DivergedError when the network's output is not finite.
    """
    images: list[dict[str, Any]] = []
    pictures: list[NDArray[np.uint8]] = []
    left_out: list[str] = []
    for number, one in enumerate(chosen, 1):
        try:
            facts, picture = _explain_image(records[one.index], one.reason, setting)
        except InputError as error:
            if not skip_unreadable:
                raise InputError(f"{error}\n--skip-bad leaves such images out") from error
            left_out.append(str(error))
        else:
            images.append(facts)
            pictures.append(picture)
        if progress is not None:
            progress(number, len(chosen))
    if not images:
        raise InputError("none of the chosen images can be read: " + "; ".join(left_out[:3]))
    config = None if setting.criterion is None else setting.criterion.config
    facts = {
        "classes": list(setting.class_names),
        "levels": [
            {"name": f"P{stride.bit_length() - 1}", "stride": stride, "anchors": [list(pair) for pair in sizes]}
            for stride, sizes in zip(setting.anchors.strides, setting.anchors.sizes_px, strict=True)
        ],
        "ratio_limit": setting.ratio_limit,
        "image_size": setting.image_size,
        "loss": None if config is None else {"iou": config.box_iou, "collision": config.collision},
        "images": images,
    }
    context = {
        "title": title,
        "notes": [*notes, *setting.sentences, *(f"left out: {reason}" for reason in left_out)],
        "version": __version__,
        "with_costs": setting.criterion is not None,
    }

    def render(data: dict[str, Any]) -> str:
        return render_page("explain.html.j2", context, styles=_STYLES, scripts=_SCRIPTS, data=data)

    room = max((MAX_PAGE_BYTES - len(render(facts).encode("utf-8"))) // len(images), _LEAST_PICTURE_BYTES)
    with_pictures = [
        {**image, "uri": _picture_uri(picture, room)} for image, picture in zip(images, pictures, strict=True)
    ]
    return Explained(render({**facts, "images": with_pictures}), facts, tuple(left_out))


def _picture_uri(image: NDArray[np.uint8], max_bytes: int) -> str:
    """An RGB image (H, W, 3) as a JPEG data URI of at most `max_bytes` characters wherever that is possible."""
    longest_px = min(_LONGEST_PX, max(image.shape[:2]))
    uri = ""
    for scale, quality in _PICTURE_SIZES:
        uri = jpeg_uri(image, longest_px * scale, quality)
        if len(uri) <= max_bytes:
            break
    return uri


def _explain_image(record: Record, reason: str, setting: ExplainSettings) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The facts of one image, and its letterboxed picture (H, W, 3).

    Targets are (cx, cy, w, h) of 0..1 in float64, each with class and origin; ignored boxes are in pixels.
    """
    image = decode_image(record.path)
    if image.shape[:2] != (record.height, record.width):
        raise InputError(
            f"{record.path}: is {image.shape[1]}x{image.shape[0]} pixels but was {record.width}x{record.height} "
            "when the dataset was read. Start again, so that the labels are read anew"
        )
    size_hw = rectangular_size(image.shape[:2], setting.image_size, setting.anchors.strides[-1])
    canvas, transform = letterbox(image, size_hw)
    network_input = torch.from_numpy(canvas).permute(2, 0, 1)[None]
    # The same rows that validation passes to the loss, rounded to float32 as there.
    targets = batch_targets([record], LetterboxedBatch(network_input, (transform,), torch.tensor([0])))
    labels = zip(np.flatnonzero(~record.ignored).tolist(), targets.rows[:, 2:].double().tolist(), strict=True)
    facts: dict[str, Any] = {
        "name": record.path.name,
        "reason": reason,
        "source": [record.width, record.height],
        "width": size_hw[1],
        "height": size_hw[0],
        # Of an origin, file and line without the folders, which the page need not reveal.
        "targets": [
            {
                "class": int(record.class_ids[index]),
                "box": box,
                "origin": record.origins[index].replace("\\", "/").rsplit("/", 1)[-1],
            }
            for index, box in labels
        ],
        "ignored": transform.to_network(record.boxes_xyxy[record.ignored]).round(1).tolist(),
    }
    if setting.detector is not None and setting.criterion is not None:
        facts["costs"] = image_costs(setting.detector, setting.criterion, network_input, targets, str(record.path))
    # Where the file is larger, the picture has twice the network input's pixels.
    is_larger = max(image.shape[:2]) >= 1.5 * max(size_hw)
    return facts, letterbox(image, (2 * size_hw[0], 2 * size_hw[1]))[0] if is_larger else canvas
