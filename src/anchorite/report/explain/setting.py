"""What is explained: anchors, network input, the rule's limit and, with weights, the loss they are trained by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anchorite.anchors import AnchorSet
from anchorite.data import DatasetIndex
from anchorite.evaluate import require_classes, require_side
from anchorite.loss import DetectionLoss
from anchorite.model import Detector, WeightsInfo, default_anchors, load_weights
from anchorite.train import Recipe, load_recipe
from anchorite.train.setup import choose_anchors


@dataclass(frozen=True)
class Setting:
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
) -> Setting:
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
        records = dataset.split("train")
        anchors, sentence = choose_anchors(sized, records)
        sentences = (sentence, f"ratio limit {chosen.loss.ratio_limit:g}: recipe {chosen.name}")
        return Setting(dataset.class_names, anchors, size, chosen.loss.ratio_limit, None, None, sentences)
    detector, info = load_weights(weights)
    remedy = "leave --weights out to see the assignment alone, or explain them on data of their own"
    require_classes(weights, info.class_names, dataset.root, dataset.class_names, remedy)
    size = require_side(image_size or info.image_size, info.anchors.strides[-1], str(weights))
    chosen, where = _recipe_of(weights, recipe)
    criterion = _criterion(chosen, info)
    gains = criterion.config
    sentences = (
        f"anchors and classes: of the weights {weights.name}",
        f"loss settings: {where}; effective gains: box {gains.box_gain:.4g}, objectness {gains.objectness_gain:.4g}, "
        f"class {gains.class_gain:.4g}; balance of the levels "
        + ", ".join(f"{value:g}" for value in criterion.balance.tolist())
        + (" (as at the start of training)" if gains.automatic_balance else ""),
    )
    return Setting(info.class_names, info.anchors, size, gains.ratio_limit, detector, criterion, sentences)


def _recipe_of(weights: Path, recipe: str | Path | None) -> tuple[Recipe, str]:
    """The recipe with the loss of these weights, and in words where it comes from."""
    if recipe is not None:
        return load_recipe(recipe), f"recipe {recipe}"
    beside = weights.parent / "recipe.yaml"
    if beside.is_file():
        return load_recipe(beside), "recipe.yaml beside the weights"
    chosen = load_recipe()
    return chosen, f"recipe {chosen.name}, for there is no recipe.yaml beside the weights"


def _criterion(recipe: Recipe, info: WeightsInfo) -> DetectionLoss:
    """The loss as training had it: gains scaled for the size that the weights were trained at."""
    num_classes = len(info.class_names)
    config = recipe.loss.scaled(info.anchors.num_levels, num_classes, info.image_size)
    return DetectionLoss(info.anchors, num_classes, config).eval()
