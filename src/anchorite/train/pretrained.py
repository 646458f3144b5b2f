"""What a run starts from: pre-trained weights or a backbone of transformers, and which parts of the network are frozen.

Legend: K classes, A anchors per level.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anchorite.errors import InputError, UnsafeFileError
from anchorite.model import (
    Detector,
    HFBackboneSource,
    WeightsInfo,
    default_anchors,
    import_checkpoint,
    load_weights,
    parse_backbone_config,
    read_backbone,
)
from anchorite.reading import one_line, shorten
from anchorite.train.optim import OptimizerConfig, parts_by_depth
from anchorite.train.recipe import Recipe, with_settings

_EXPORTS = (".onnx", ".xml", ".bin", ".pt2")
_NUM_BEFORE_CLASSES = 5  # rows of an anchor: the box, then objectness
_NUM_SHOWN = 5


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights to start from. path: as the recipe has it; sha256: of the file, in hexadecimal digits.

    class_names: empty where the file names no classes; origin: how they were read, where they are a checkpoint of the
    original family, else empty.
    """

    path: str
    sha256: str
    detector: Detector
    info: WeightsInfo
    class_names: tuple[str, ...]
    origin: str


def read_pretrained(recipe: Recipe) -> tuple[Recipe, PretrainedWeights | None]:
    """The recipe with the size of the weights that it names, and those; the same recipe and None where it names none.

    A checkpoint of the original family is imported, which runs nothing of it. Raises InputError where the recipe was
    given another size than the weights have, or they are an export; what `load_weights` and `import_checkpoint` raise.
    """
    if recipe.weights is None:
        return recipe, None
    start = _read(recipe.weights)
    size = start.info.size
    if recipe.model == size:
        return recipe, start
    if "model" in recipe.model_fields_set:
        raise InputError(
            f"weights {start.path} are of size {size}, and the model is to be of size {recipe.model}: the tensors of "
            f"one do not fit the other. Leave the model out, or say {size}, or start from weights of size "
            f"{recipe.model}"
        )
    return with_settings(recipe, {"model": size}), start


def _read(path: str) -> PretrainedWeights:
    file = Path(path)
    if file.suffix.lower() in _EXPORTS:
        raise InputError(
            f"weights {path}: an export, which holds no weights that can be trained on; give the .safetensors file "
            "that it was made of, such as a run's best.safetensors"
        )
    try:
        detector, info = load_weights(file)
        names, origin = info.class_names, ""
    except UnsafeFileError:  # a pickle, of which import_checkpoint runs nothing
        imported = import_checkpoint(file)
        detector, info = imported.detector, imported.info
        names = info.class_names if imported.names_are_stored else ()
        origin = f"imported from its {imported.part}, nothing of it was run"
    for name, tensor in detector.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"weights {path}: {name} holds values that are infinite or no numbers; give earlier ones")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return PretrainedWeights(path, digest, detector, info, names, origin)


@torch.no_grad()
def load_matching(detector: Detector, start: PretrainedWeights, class_names: Sequence[str]) -> str:
    """Copy the weights that fit into a new detector of these classes, in place; a sentence on which did.

    Of backbone and neck that are all tensors of equal name and shape. Of the head it is, for an equal number of
    anchors, the rows of box and objectness, and those of the classes that have the same name in both; all others stay
    as new. Raises InputError where not all of the backbone fits.
    """
    ours, theirs, other = detector.state_dict(), start.detector.state_dict(), start.detector
    head = [name for name in ours if name.startswith("head.")]
    body = [name for name in ours if name not in head]
    kept = [name for name in body if name in theirs and theirs[name].shape == ours[name].shape]
    of_backbone = [name for name in body if name.startswith("backbone.")]
    if lost := set(of_backbone) - set(kept):
        kinds = [
            f"size {one.size}{f' with a backbone {one.backbone_config.model_type}' if one.backbone_config else ''}"
            for one in (other, detector)
        ]
        raise InputError(
            f"weights {start.path}: {len(of_backbone) - len(lost)} of {len(of_backbone)} tensors of the backbone fit; "
            f"they are of {kinds[0]} and the run's detector is of {kinds[1]}; start from weights of the same size and "
            "backbone, or without any"
        )
    for name in kept:
        ours[name].copy_(theirs[name])
    pairs, num_anchors = _same_classes(class_names, start.class_names), detector.anchors.num_anchors
    head_fits = num_anchors == other.anchors.num_anchors and all(
        name in theirs and theirs[name].shape[1:] == ours[name].shape[1:] for name in head
    )
    if head_fits:
        new = [*range(_NUM_BEFORE_CLASSES), *(_NUM_BEFORE_CLASSES + number for number, _ in pairs)]
        old = [*range(_NUM_BEFORE_CLASSES), *(_NUM_BEFORE_CLASSES + number for _, number in pairs)]
        for name in head:
            ours[name].unflatten(0, (num_anchors, -1))[:, new] = theirs[name].unflatten(0, (num_anchors, -1))[:, old]
        if new == old and len(pairs) == detector.num_classes == other.num_classes:
            kept += head
    return (
        f"weights {one_line(start.path)} (size {start.info.size}, {other.num_classes} classes"
        f"{', ' + start.origin if start.origin else ''}): {len(kept)} of {len(ours)} tensors kept; head: "
        f"{_describe_head(head_fits, [class_names[new] for new, _ in pairs], detector, other)}"
    )


def _same_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Numbers of the classes that have one name, here and in the weights. With a single class the loss has no class
    term, so its row was or will never be trained: it is no class then."""
    if 1 in (len(ours), len(theirs)) and tuple(ours) != tuple(theirs):
        return []
    here, there = Counter(ours), Counter(theirs)
    return [(ours.index(name), theirs.index(name)) for name in here if here[name] == there[name] == 1]


def _describe_head(kept: bool, classes: Sequence[str], detector: Detector, other: Detector) -> str:
    """In words, where the rows of these classes and those before them were kept, or nothing."""
    ours, theirs, total = detector.anchors, other.anchors, detector.num_classes
    if not kept:
        return f"new, for {ours.num_anchors} anchors a level, where that of the weights has {theirs.num_anchors}"
    named = ", ".join(shorten(name, 40)[1:-1] for name in classes[:_NUM_SHOWN])
    named += ", ..." if len(classes) > _NUM_SHOWN else ""
    if len(classes) == total:
        rows = f"and of all {total} classes by name"
    elif classes:
        rows = f"and of {len(classes)} of {total} classes by name ({named}), those of the others are new"
    elif total > 1:
        rows = f"those of the {total} classes are new, for none has its name there"
    else:
        rows = "that of the class new"
    learned = "" if ours == theirs else "; they were learned for other anchors than the run's"
    return f"rows of box and objectness kept, {rows}{learned}"


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
    if start is None or start.info.backbone_config is None:
        return None
    config = start.info.backbone_config
    return HFBackboneSource(config, f"backbone {config.model_type} of the weights")


def reread_start(
    recipe: Recipe, facts: Mapping[str, Any], starts_over: bool
) -> tuple[PretrainedWeights | None, HFBackboneSource | None]:
    """What a resumed run starts from, by run.json: no weights, and of a backbone the config, since all the tensors are
    in the checkpoint; but both, as they were, where the run has saved nothing yet and `starts_over`.

    The recipe may name another path of the same file by now. Raises InputError where the file is not there any more, or
    is another.
    """
    weights, backbone = facts.get("start"), facts.get("backbone")
    begins = "the run was stopped before its first checkpoint, so it begins again with the"
    remedy, start = "or start a new run", None
    if starts_over and weights is not None:
        path = recipe.weights or weights["weights"]
        why = f"weights {path}: {begins} file that it was started from (SHA-256 {weights['sha256'][:12]}...)"
        try:
            start = _read(path)
        except InputError as error:
            raise InputError(f"{why}. It cannot be read; put it back, {remedy}: {error}") from error
        if start.sha256 != weights["sha256"]:
            raise InputError(f"{why}, and this is another; put it back, {remedy}")
    if backbone is None:
        return start, None
    config = parse_backbone_config(backbone["config"], "run.json: backbone")
    if not starts_over:
        return start, HFBackboneSource(config, f"backbone {config.model_type} of the run")
    again = read_hf_backbone(recipe, start)
    if again is None or (again.config, again.sha256) != (config, backbone["sha256"]):
        raise InputError(
            f"backbone {recipe.backbone}: {begins} backbone that it was started from (SHA-256 "
            f"{backbone['sha256'][:12] or 'none: random weights'}), and this is another; put that one back, {remedy}"
        )
    return start, again


def freeze(detector: Detector, names: Sequence[str]) -> None:
    """Take gradients from the parts of these names, and hold them in evaluation mode from now on.

    Names are those of modules, with all that is in them: "backbone", "backbone.stage2", "neck.lateral.p5". Raises
    InputError, with the names that there are, for any other, and where nothing would be left to train.
    """
    _refuse_unknown(detector, names)
    for name in names:
        detector.get_submodule(name).requires_grad_(False)
    detector.frozen = tuple(names)
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        raise InputError(
            f"optimizer.freeze {list(names)}: nothing is left to train; leave out one of "
            f"{', '.join(name for name, _ in detector.named_children())}"
        )


def refuse_early(size: str, names: Sequence[str]) -> None:
    """Raise what `freeze` raises for unknown names, before there is a detector; not for names within a backbone."""
    if names:  # even on the meta device a network takes a second, most of it torch's imports
        with torch.device("meta"):
            _refuse_unknown(Detector(size, 1, default_anchors(size)), [one for one in names if "backbone." not in one])


def _refuse_unknown(detector: nn.Module, names: Sequence[str]) -> None:
    known = [name for name, _ in detector.named_modules() if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            parts = ", ".join(one for one in known if one.count(".") <= 1)
            raise InputError(
                f"optimizer.freeze: the network has no part {shorten(name)}"
                f"{f'; did you mean {close[0]}?' if close else '.'} It has {parts}, and parts of these"
            )


def describe_frozen(detector: nn.Module, config: OptimizerConfig, has_weights: bool) -> list[str]:
    """A sentence on what is frozen, and one on rates that differ by depth; none where neither is so.

    has_weights: the network started from weights, else from random values, but for a backbone's body, of transformers.
    """
    sentences = []
    if config.freeze:
        still = sum(parameter.numel() for parameter in detector.parameters() if not parameter.requires_grad)
        total = sum(parameter.numel() for parameter in detector.parameters())
        sentences.append(
            f"frozen: {', '.join(config.freeze)}; {still} of {total} parameters keep their values, and normalisation "
            "there its statistics"
        )
        random = [name for name in config.freeze if not has_weights and not name.startswith("backbone.body")]
        if random:
            sentences.append(f"warning: {', '.join(random)} will keep random values: nothing was learned there before")
    if config.layer_decay != 1:
        shown = ", ".join(f"{name} {factor:.4g}" for name, _, factor in reversed(parts_by_depth(detector, config)))
        sentences.append(f"rates by depth: {shown} times the rate")
    return sentences
