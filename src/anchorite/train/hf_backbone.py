"""The backbone of the transformers library that a run starts with, if it has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model import Detector, HFBackboneSource, config_from_noted, read_backbone
from anchorite.model.hf_backbone import HFBackbone
from anchorite.train.pretrained import PretrainedWeights
from anchorite.train.recipe import Recipe


def read_hf_backbone(recipe: Recipe, start: PretrainedWeights | None) -> HFBackboneSource | None:
    """The backbone that the recipe names, or else that of the weights to start from; None for our own.

    Raises InputError where both are given, and what `read_backbone` raises.
    """
    if recipe.backbone is not None:
        if start is not None:
            raise InputError(
                f"backbone {recipe.backbone} and weights {recipe.weights}: weights have a backbone already; leave "
                "one of them out"
            )
        return read_backbone(recipe.backbone)
    if start is None or start.info.borrowed is None:
        return None
    config = start.info.borrowed
    return HFBackboneSource(config, f"backbone {config.model_type} of the weights")


def noted_backbone(borrowed: HFBackboneSource | None) -> dict[str, Any] | None:
    """What a run's facts say of its backbone: enough to build it again without the folder that it came from."""
    if borrowed is None:
        return None
    return {"config": borrowed.config.model_dump(mode="json"), "sha256": borrowed.sha256}


def reread_hf_backbone(
    recipe: Recipe, facts: Mapping[str, Any], start: PretrainedWeights | None, starts_over: bool
) -> HFBackboneSource | None:
    """The backbone of a run that goes on, by what the run noted: all its tensors are in the checkpoint.

    Only a run that has saved nothing yet is begun again, with what its recipe names.
    """
    noted = facts.get("borrowed")
    if noted is None:
        return None
    config = config_from_noted(noted["config"], "run.json: borrowed")
    if starts_over:
        again = read_hf_backbone(recipe, start)
        if again is None or (again.config, again.sha256) != (config, noted["sha256"]):
            raise InputError(
                f"backbone {recipe.backbone}: the run was stopped before its first checkpoint, so it begins again with "
                f"the backbone that it was started from (SHA-256 {noted['sha256'][:12] or 'none: random weights'}), "
                "and this is another; put that one back, or start a new run"
            )
        return again
    return HFBackboneSource(config, f"backbone {config.model_type} of the run")


def new_detector(recipe: Recipe, num_classes: int, anchors: AnchorSet, start: HFBackboneSource | None) -> Detector:
    """A detector of the recipe's size; with a borrowed backbone and its weights, where there is one."""
    if start is None:
        return Detector(recipe.model, num_classes, anchors)
    detector = Detector(recipe.model, num_classes, anchors, start.config)
    backbone = detector.backbone
    assert isinstance(backbone, HFBackbone)
    backbone.normalise_by(start.mean, start.std)
    if start.tensors is not None:
        backbone.load_body(start.tensors, start.where)
    return detector
