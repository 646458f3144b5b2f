"""One page that shows what the loss sees in some images: which anchor cells are assigned to each box, and its costs;
which are ignored, and why.

Legend: N images, H, W image height and width in pixels, of a level's grid its rows and columns, A anchors of a level,
K classes, P matched anchor cells of a level.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchorite import __version__
from anchorite.anchors import AnchorSet, decode_level
from anchorite.boxes import LabelCoverage, Targets, cxcywh_to_xyxy, pairwise_iou_xyxy
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
from anchorite.data.dataset import NO_CLASS
from anchorite.errors import InputError
from anchorite.evaluate import batch_coverage, batch_targets, require_classes, require_side
from anchorite.loss import DetectionLoss, LevelBreakdown, assign, break_down
from anchorite.model import Detector, default_anchors, load_weights
from anchorite.predict import require_finite
from anchorite.report.page import MAX_PAGE_BYTES, jpeg_uri, render_page, script_json
from anchorite.train import load_recipe
from anchorite.train.setup import choose_anchors

MOST_CHOSEN = 12
MOST_NAMED = 60
_PLANNED_TOGETHER = 256
_NUM_NEAR = 3  # names that are suggested
_NUM_BACKGROUND = 10  # cells, of all levels
_PARTS = {"box": slice(0, 4), "objectness": slice(4, 5), "classification": slice(5, None)}  # of (1, A, 5 + K, H, W)
_LONGEST_PX, _LEAST_PICTURE_BYTES = 960, 8_000
# Scale and JPEG quality, from best to smallest; the first that fits is taken, or else the last one.
_PICTURE_SIZES = ((1.0, 86), (1.0, 75), (0.8, 75), (0.66, 70), (0.5, 66), (0.4, 60), (0.3, 50), (0.2, 45), (0.12, 40))
_STYLES = ("style.css", "explain.css")
_SCRIPTS = tuple(f"explain_{name}.js" for name in ("assign", "state", "picture", "object", "costs", "page"))


@dataclass(frozen=True)
class ExplainSettings:
    """image_size: longer side of the network input in pixels; ratio_limit: of the assignment.

    detector and criterion: both or neither. sentences: where each of these came from, to be shown. format: of the
    labels; not_understood: why reading made a region of a label, by the label's origin.
    """

    class_names: tuple[str, ...]
    anchors: AnchorSet
    image_size: int
    ratio_limit: float
    detector: Detector | None
    criterion: DetectionLoss | None
    sentences: tuple[str, ...]
    format: str = ""
    not_understood: Mapping[str, str] = field(default_factory=dict)


def choose_setting(
    dataset: DatasetIndex, weights: Path | None = None, recipe: str | Path | None = None, image_size: int | None = None
) -> ExplainSettings:
    """What a training on this data would use (without weights), or what was used for these weights.

    recipe: name or file; by default the recipe.yaml beside the weights, where there is one, else the default recipe.
    Raises InputError when the classes of weights and data differ or the image size is no multiple of the coarsest
    stride, and what reading weights and recipe raises.
    """
    reasons = {one.origin: one.detail for one in dataset.adjustments if one.kind == "ignored-region"}
    labels = dataset.format, reasons
    if weights is None:
        chosen = load_recipe(recipe)
        strides = default_anchors(chosen.model).strides
        size = require_side(image_size or chosen.image_size, strides[-1], f"model {chosen.model}")
        sized = chosen.model_copy(update={"image_size": size})
        anchors, sentence = choose_anchors(sized, dataset.split("train"))
        sentences = (sentence, f"ratio limit {chosen.loss.ratio_limit:g}: recipe {chosen.name}")
        limit = chosen.loss.ratio_limit
        return ExplainSettings(dataset.class_names, anchors, size, limit, None, None, sentences, *labels)
    detector, info = load_weights(weights)
    remedy = "leave --weights out to see the assignment alone, or explain them on data of their own"
    require_classes(weights, info.class_names, dataset.root, dataset.class_names, remedy)
    size = require_side(image_size or info.image_size, info.anchors.strides[-1], str(weights))
    beside = weights.parent / "recipe.yaml"
    if recipe is not None:
        chosen, where = load_recipe(recipe), f"recipe {recipe}"
    elif beside.is_file():
        chosen, where = load_recipe(beside), "recipe.yaml beside the weights"
    else:
        chosen = load_recipe()
        where = f"recipe {chosen.name}, for there is no recipe.yaml beside the weights"
    # The loss as training had it: gains scaled for the size that the weights were trained at.
    num_classes = len(info.class_names)
    config = chosen.loss.scaled(info.anchors.num_levels, num_classes, info.image_size)
    criterion = DetectionLoss(info.anchors, num_classes, config).eval()
    balance = ", ".join(f"{value:g}" for value in criterion.balance.tolist())
    sentences = (
        f"anchors and classes: of the weights {weights.name}",
        f"loss settings: {where}; effective gains: box {config.box_gain:.4g}, objectness {config.objectness_gain:.4g}, "
        f"class {config.class_gain:.4g}; balance of the levels {balance}"
        + (" (as at the start of training)" if config.automatic_balance else ""),
    )
    limit = config.ratio_limit
    return ExplainSettings(info.class_names, info.anchors, size, limit, detector, criterion, sentences, *labels)


def find_images(dataset: DatasetIndex, split: str, names: Sequence[str]) -> dict[int, str]:
    """The images of a split with these file names or stems, in the order named: why they are chosen, by their index.

    Raises InputError for a name that no image has, suggesting similar names, or the split that has it.
    """
    known = {
        other: [(record.path.name, record.path.stem) for record in records] for other, records in dataset.splits.items()
    }
    found: dict[int, str] = {}
    for name in names:
        matching = [index for index, pair in enumerate(known[split]) if name in pair]
        if not matching:
            files = {stem: file for file, stem in known[split]} | {file: file for file, _ in known[split]}
            near = dict.fromkeys(files[one] for one in difflib.get_close_matches(name, files, _NUM_NEAR))
            hint = (
                f"near are {', '.join(near)}" if near else f"it has such as {', '.join([*files.values()][:_NUM_NEAR])}"
            )
            for other, pairs in known.items():
                if any(name in pair for pair in pairs):
                    hint = f"it is in split {other}: add --split {other}"
            raise InputError(f"--image {name}: no image of split {split} has this name; {hint}")
        found |= dict.fromkeys(matching, "named by --image")
    if len(found) > MOST_NAMED:
        raise InputError(f"--image: {len(found)} images for one page; name at most {MOST_NAMED}")
    return found


def choose_images(records: Sequence[Record], setting: ExplainSettings, most: int = MOST_CHOSEN) -> dict[int, str]:
    """Why they are chosen, by index, of up to `most` images of N: in turn those with most unmatched boxes, collisions,
    boxes and ignored regions.

    Only labels and sizes are read, no pixel. The same split gives the same choice.
    """
    boxes, unmatched, collisions, regions = _counts(records, setting)
    rankings = [
        (unmatched, "box that no anchor matches", "boxes that no anchor matches"),
        (collisions, "anchor cell assigned to several boxes", "anchor cells assigned to several boxes"),
        (boxes, "box", "boxes"),
        (regions, "ignored region", "ignored regions"),
    ]
    orders = [iter(np.argsort(-counts, kind="stable").tolist()) for counts, _, _ in rankings]
    chosen: dict[int, str] = {}
    for (counts, one, several), order in [*zip(rankings, orders, strict=True)] * most:
        index = next((index for index in order if counts[index] and index not in chosen), None)
        if index is not None:
            chosen[index] = f"{counts[index]} {one if counts[index] == 1 else several}"
    others = dict.fromkeys((index for index in range(len(records)) if index not in chosen), "no boxes")
    return dict(islice((chosen | others).items(), most))


def _counts(records: Sequence[Record], setting: ExplainSettings) -> NDArray[np.int64]:
    """(4, N) numbers of boxes, of those that no anchor matches, of anchor cells assigned to more than one box, and of
    ignored regions."""
    counts = np.zeros((4, len(records)), np.int64)
    counts[3] = [record.ignored.sum() for record in records]
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
        unmatched = np.ones(len(targets), bool)
        grid_sizes = [(height // stride, width // stride) for stride in strides]
        for level in assign(targets, setting.anchors, grid_sizes, setting.ratio_limit):
            unmatched[level.target.numpy()] = False
            pairs = torch.stack([level.image, level.anchor, level.row, level.column, level.target], dim=1)
            cells, num_boxes = np.unique(np.unique(pairs.numpy(), axis=0)[:, :4], axis=0, return_counts=True)
            np.add.at(counts[2], indices[cells[num_boxes > 1, 0]], 1)
        np.add.at(counts[0], image_of, 1)
        np.add.at(counts[1], image_of[unmatched], 1)
    return counts


def explain(
    records: Sequence[Record],
    chosen: Mapping[int, str],
    setting: ExplainSettings,
    title: str,
    notes: Sequence[str] = (),
    *,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, dict[str, Any], list[str]]:
    """The page of images of a split, as HTML; what it shows, as plain data without the pictures; and sentences on the
    images that were left out because they cannot be read.

    chosen: why each is shown, by its index; notes: how they were chosen, shown with the setting's sentences. progress:
    called with (images done, images in all). Raises InputError naming an image that cannot be decoded, unless
    skip_unreadable, or when none is left; DivergedError when the network's output is not finite.
    """
    explained: list[tuple[dict[str, Any], NDArray[np.uint8]]] = []
    left_out: list[str] = []
    num_bytes = 0
    for number, (index, reason) in enumerate(chosen.items(), 1):
        try:
            image, picture = _explain_image(records[index], reason, setting)
            num_bytes += len(script_json(image))
            if explained and num_bytes > MAX_PAGE_BYTES:  # thousands of boxes an image
                names = ", ".join(records[index].path.name for index in list(chosen)[number - 1 :])
                left_out.append(f"{names}: the page would grow too large; name them alone by --image")
                break
            explained.append((image, picture))
        except InputError as error:
            if not skip_unreadable:
                raise InputError(f"{error}\n--skip-bad leaves such images out") from error
            left_out.append(str(error))
        if progress is not None:
            progress(number, len(chosen))
    if not explained:
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
        "images": [image for image, _ in explained],
    }
    context = {
        "title": title,
        "notes": [*notes, *setting.sentences, *(f"left out: {reason}" for reason in left_out)],
        "version": __version__,
        "with_costs": setting.criterion is not None,
    }

    def render(data: dict[str, Any]) -> str:
        return render_page("explain.html.j2", context, styles=_STYLES, scripts=_SCRIPTS, data=data)

    room = max((MAX_PAGE_BYTES - len(render(facts).encode("utf-8"))) // len(explained), _LEAST_PICTURE_BYTES)
    shown = []
    for image, picture in explained:
        for scale, quality in _PICTURE_SIZES:
            uri = jpeg_uri(picture, scale * min(_LONGEST_PX, max(picture.shape[:2])), quality)
            if len(uri) <= room:
                break
        shown.append({**image, "uri": uri})
    return render({**facts, "images": shown}), facts, left_out


def _explain_image(record: Record, reason: str, setting: ExplainSettings) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The facts of one image, and its letterboxed picture (H, W, 3). Targets and ignored regions are (cx, cy, w, h) of
    0..1 in float64, each with class (of a region None where any) and origin, targets with their weight, regions with
    the reason."""
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
    batch = LetterboxedBatch(network_input, (transform,), torch.tensor([0]))
    targets, coverage = batch_targets([record], batch), batch_coverage([record], batch)
    # Of an origin, file and line without the folders, which the page need not reveal.
    origins = [origin.replace("\\", "/").rsplit("/", 1)[-1] for origin in record.origins]
    labels = zip(np.flatnonzero(~record.ignored).tolist(), targets.rows[:, 2:].double().tolist(), strict=True)
    rows = None if coverage is None else coverage.ignore_regions
    regions = [] if rows is None else rows[:, 1:].double().tolist()
    ignored = zip(np.flatnonzero(record.ignored).tolist(), regions, strict=True)
    source = record.source
    facts: dict[str, Any] = {
        "name": record.path.name,
        "reason": reason,
        "source": [record.width, record.height],
        "width": size_hw[1],
        "height": size_hw[0],
        "targets": [
            {"class": int(record.class_ids[index]), "box": box, "origin": origins[index]}
            | {"weight": _rounded(record.weights[index])}
            for index, box in labels
        ],
        "regions": [
            {"class": None if record.class_ids[index] == NO_CLASS else int(record.class_ids[index]), "box": box}
            | {"origin": origins[index], "why": _why_ignored(record, index, setting)}
            for index, box in ignored
        ],
        "labels": {
            "source": source.name,
            "uncovered": [] if source.covered is None else [k for k, flag in enumerate(source.covered) if not flag],
            "background": source.background_weight,
        },
    }
    if setting.detector is not None and setting.criterion is not None:
        name = str(record.path)
        facts["costs"] = image_costs(setting.detector, setting.criterion, network_input, targets, name, coverage)
    # Where the file is larger, the picture has twice the network input's pixels.
    is_larger = max(image.shape[:2]) >= 1.5 * max(size_hw)
    return facts, letterbox(image, (2 * size_hw[0], 2 * size_hw[1]))[0] if is_larger else canvas


def _why_ignored(record: Record, index: int, setting: ExplainSettings) -> str:
    """What an ignored region is, as far as the labels tell."""
    if (detail := setting.not_understood.get(record.origins[index])) is not None:
        return f"not understood: {detail}"
    if record.class_ids[index] == NO_CLASS:
        return "ignored class"
    return {"coco": "crowd", "voc": "difficult"}.get(setting.format, "crowd or difficult")


def image_costs(
    detector: Detector,
    criterion: DetectionLoss,
    image: Tensor,
    targets: Targets,
    name: str,
    coverage: LabelCoverage | None = None,
) -> dict[str, Any]:
    """Plain numbers for the page: terms, levels, anchor cells, background of one image (1, 3, H, W) uint8.

    The loss is that of a batch of this image alone, in float64 from the network's float32 logits. Of a level, spared is
    what its background would cost besides if the labels knew everything. Raises DivergedError naming the image when the
    network's output is not finite.
    """
    with torch.no_grad():
        outputs = detector(image.float() / 255)
    require_finite(outputs, [name])
    logits = [level.double().requires_grad_() for level in outputs]
    terms = criterion(logits, targets, coverage)
    gradients = torch.autograd.grad(terms.total, logits)
    logits = [level.detach() for level in logits]
    breakdowns = break_down(criterion, logits, targets, coverage)
    known = breakdowns if coverage is None else break_down(criterion, logits, targets)
    levels, anchor_cells, unmatched_costs = [], [], []
    for number, (level, of_known, gradient) in enumerate(zip(breakdowns, known, gradients, strict=True)):
        found = level.assignment
        unmatched = torch.ones_like(level.objectness, dtype=torch.bool)
        unmatched[found.image, found.anchor, found.row, found.column] = False
        unmatched_costs.append(level.objectness.where(unmatched, -1))
        numbers = {
            "box": level.box.sum(),
            "objectness": level.objectness.sum(),
            "background": level.objectness[unmatched].sum(),
            "spared": (of_known.objectness - level.objectness)[unmatched].sum(),
            "not_counted": (level.objectness_weight[unmatched] == 0).sum(),
            "classification": level.classification.sum(),
            "gradient": gradient.norm(),
            **{f"gradient_{part}": gradient[:, :, channels].norm() for part, channels in _PARTS.items()},
        }
        levels.append({name: _rounded(number) for name, number in numbers.items()})
        anchor_cells += _anchor_cells(number, level, logits[number], criterion)
    return {
        "terms": {term: _rounded(value.detach()) for term, value in terms._asdict().items()},
        "levels": levels,
        "anchor_cells": anchor_cells,
        "background": _background(unmatched_costs, logits, criterion, targets),
    }


def _rounded(value: Tensor | float) -> float:
    """Six significant digits: more than a page can show, and short to write."""
    return float(f"{float(value):.6g}")


def _anchor_cells(number: int, level: LevelBreakdown, logits: Tensor, criterion: DetectionLoss) -> list[list[float]]:
    """A row for each of P anchor cells: level, anchor, row, column, target, IoU, objectness target, predicted
    objectness, predicted probability of the true class, costs of box, objectness and class, whether the objectness
    target is this object's IoU, and the predicted box (cx, cy, w, h) in pixels.

    Where several objects have an anchor cell, its objectness cost counts for the one whose IoU is the target there.
    """
    found, stride = level.assignment, criterion.anchors.strides[number]
    cells = (found.image, found.anchor, found.row, found.column)
    predicted = logits[found.image, found.anchor, :, found.row, found.column].sigmoid()
    own_class = predicted[torch.arange(len(predicted)), 5 + found.class_index]
    corners = torch.stack([found.column, found.row], dim=1)
    boxes = torch.cat([level.predicted[:, :2] + corners, level.predicted[:, 2:]], dim=1) * stride
    whole = torch.stack([torch.full_like(found.row, number), found.anchor, found.row, found.column, found.target], 1)
    # The last object of a cell, or by its collision rule the one with the highest IoU.
    is_best = criterion.config.collision == "best"
    order = level.iou.clamp(min=0).argsort(stable=True) if is_best else torch.arange(len(whole))
    winner = {tuple(whole[p, 1:4].tolist()): p for p in order.tolist()}
    wins = torch.zeros(len(whole))
    wins[list(winner.values())] = 1
    costs = [level.box, level.objectness[cells] * wins, level.classification]
    values = torch.stack([level.iou, level.objectness_target[cells], predicted[:, 4], own_class, *costs], 1)
    return [
        [*ints, *map(_rounded, floats), int(win), *(round(side, 1) for side in box)]
        for ints, floats, win, box in zip(whole.tolist(), values.tolist(), wins.tolist(), boxes.tolist(), strict=True)
    ]


def _background(
    costs: list[Tensor], logits: list[Tensor], criterion: DetectionLoss, targets: Targets
) -> list[dict[str, Any]]:
    """The unmatched anchor cells with the highest objectness cost of all levels, most expensive first. costs: of each
    level (1, A, H, W), -1 where an anchor cell is matched."""
    strides = criterion.anchors.strides
    height, width = (logits[0].shape[axis] * strides[0] for axis in (3, 4))
    labels_px = cxcywh_to_xyxy(targets.rows[:, 2:].double() * torch.tensor([width, height, width, height]))
    found = []
    for number, anchors in enumerate(criterion.anchors.cells(torch.float64)):
        boxes, others = decode_level(logits[number], anchors, strides[number])
        top = costs[number].flatten().topk(min(_NUM_BACKGROUND, costs[number].numel()))
        _, _, rows, columns = costs[number].shape
        for cost, cell in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if cost <= 0:
                continue
            box, probabilities = boxes[0, cell], others[0, cell].sigmoid()
            near = pairwise_iou_xyxy(cxcywh_to_xyxy(box[None]), labels_px)[0]
            likeliest = int(probabilities[1:].argmax())
            found.append(
                {
                    "level": number,
                    "anchor": cell // (rows * columns),
                    "row": cell // columns % rows,
                    "column": cell % columns,
                    "cost": _rounded(cost),
                    "predicted": _rounded(probabilities[0]),
                    "class": likeliest,
                    "class_predicted": _rounded(probabilities[1 + likeliest]),
                    "box": [round(side, 1) for side in box.tolist()],
                    "near": int(near.argmax()) if len(near) else None,
                    "near_iou": _rounded(near.max()) if len(near) else 0,
                }
            )
    return sorted(found, key=lambda one: -one["cost"])[:_NUM_BACKGROUND]
