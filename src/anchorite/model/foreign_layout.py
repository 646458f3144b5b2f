"""How the original family lays out a model: its layers, their settings and the names of its tensors, mapped to ours.

Legend: L levels, A anchors per level, K classes. Foreign names are those of the checkpoint's layers and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model.blocks import Bottleneck
from anchorite.model.detector import Detector
from anchorite.model.sizes import FIRST_LEVEL, SIZES, plan
from anchorite.model.weights import WeightsInfo
from anchorite.reading import printable

_MAX_CLASSES = 10_000
_NUM_SHOWN = 5
_KNOWN_LAYERS = frozenset((
    "Model", "DetectionModel", "Sequential", "ModuleList", "Conv", "Conv2d", "BatchNorm2d", "SiLU", "C3", "Bottleneck",
    "SPPF", "MaxPool2d", "Upsample", "Concat", "Detect",
))  # fmt: skip
# The settings that change what a layer computes and that its tensors do not show, with the only value where it is one.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "Conv2d": {"stride": ..., "padding": ..., "dilation": 1, "groups": 1, "padding_mode": "zeros"},
    "BatchNorm2d": {"eps": ...},
    "Bottleneck": {"add": ...},
    "MaxPool2d": {"kernel_size": 5, "stride": 1, "padding": 2, "dilation": 1},
    "Upsample": {"size": None, "scale_factor": 2.0, "mode": "nearest"},
    "Concat": {"d": 1},
}
# The foreign blocks that make up one of ours within its part, and what they call a block's layers.
_BLOCKS = {
    "": ("",), "entry": (".cv1", ".cv2"), "merge": (".cv3",), "narrow": (".cv1",), "combine": (".cv2",),
    "mix": (".cv1",), "look": (".cv2",),
}  # fmt: skip
_LAYERS = {"convolution": "conv", "norm": "bn"}


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint holds: tensors by foreign name, classes and settings of layers by foreign path."""

    part: str
    has_both: bool
    tensors: dict[str, Tensor]
    layers: dict[str, dict[str, Any]]
    strides: list[float] | None
    class_names: list[str] | None
    image_size: int | None


def build_detector(found: CheckpointContents) -> tuple[Detector, WeightsInfo]:
    """Raises InputError unless layers, settings and tensors are those of one of our sizes."""
    other = [
        f"{shown(path) or 'the model'} is a {shown(layer['kind'])}"
        for path, layer in found.layers.items()
        if layer["kind"] not in _KNOWN_LAYERS
    ]
    _refuse_faults("is of another architecture", other)
    size = _size(found.tensors)
    anchors = _anchors(found, size)
    bias_name = foreign_names(f"head.predictors.p{FIRST_LEVEL}.bias", size)[0]
    num_channels = found.tensors[bias_name].numel() if bias_name in found.tensors else 0
    num_classes, rest = divmod(num_channels - 5 * anchors.num_anchors, anchors.num_anchors)
    if rest or not 1 <= num_classes <= _MAX_CLASSES:
        raise InputError(
            f"{bias_name} has {num_channels} channels, which are not 5 and 1 to {_MAX_CLASSES} classes for "
            f"{anchors.num_anchors} anchors"
        )
    with torch.device("meta"):
        detector = Detector(size, num_classes, anchors)
    _check_tensors(found.tensors, detector)
    _refuse_faults("is of another architecture", _other_settings(found.layers, detector))
    if found.class_names is not None and len(found.class_names) != num_classes:
        raise InputError(f"has {len(found.class_names)} class names, but its head predicts {num_classes} classes")
    tensors: dict[str, Tensor] = {}
    for own_name, expected in detector.state_dict().items():  # floating point as float32, in which half is exact
        names = foreign_names(own_name, size)
        tensor = joined([found.tensors[name] for name in names]).to(expected.dtype)
        if expected.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{names[0]} holds values that are infinite or no numbers; give an earlier checkpoint")
        tensors[own_name] = tensor
    detector.load_state_dict(tensors, assign=True)
    stride = anchors.strides[-1]
    default = 1280 if plan(size).last_level == 6 else 640
    image_size = -(-found.image_size // stride) * stride if found.image_size else default
    class_names = found.class_names or [f"class {number}" for number in range(num_classes)]
    return detector, WeightsInfo(size, tuple(class_names), anchors, image_size)


def _size(tensors: Mapping[str, Tensor]) -> str:
    """The size whose head has the number and whose stem the width that the checkpoint has."""
    stem = tensors.get("model.0.conv.weight")
    widths = {size: plan(size).stem_width for size in SIZES if foreign_anchors_name(size) in tensors}
    if stem is None or stem.ndim != 4 or not widths:
        missing = "model.0.conv.weight" if widths else foreign_anchors_name("n")
        raise InputError(
            f"is of another architecture: no tensor {missing} as sizes {', '.join(SIZES)} have it; "
            f"it has {', '.join(shown(name) for name in list(tensors)[:_NUM_SHOWN]) or 'none'}"
        )
    for size, width in widths.items():
        if width == stem.shape[0]:
            return size
    there = ", ".join(f"{width} ({size})" for size, width in widths.items())
    raise InputError(f"is of another width: model.0.conv.weight has {stem.shape[0]} channels, the sizes have {there}")


def _anchors(found: CheckpointContents, size: str) -> AnchorSet:
    """The anchors in pixels, of the buffer (L, A, 2) in cells, and the size's strides, which must be the file's."""
    strides = plan(size).strides
    if found.strides is not None and found.strides != list(strides):
        raise InputError(f"predicts at strides {found.strides}; size {size} does at {list(strides)}")
    name = foreign_anchors_name(size)
    cells = found.tensors[name]
    if cells.ndim != 3 or len(cells) != len(strides) or cells.shape[2] != 2 or not 1 <= cells.shape[1] <= 100:
        raise InputError(
            f"{name} has the shape {listed(cells.shape)} instead of {len(strides)} levels of (width, height)"
        )
    pixels = cells.double() * torch.tensor(strides, dtype=torch.float64).view(-1, 1, 1)
    return AnchorSet(tuple(tuple((w, h) for w, h in level) for level in pixels.tolist()), strides)


def _check_tensors(tensors: Mapping[str, Tensor], detector: Detector) -> None:
    """Raise InputError unless the foreign tensors are those of the detector, each of the shape that it should have."""
    anchors_name = foreign_anchors_name(detector.size)
    # Early versions wrote "anchor_grid", too: the same numbers as the anchors'.
    faults, used = [], {anchors_name, anchors_name.replace("anchors", "anchor_grid")}
    for own_name, expected in detector.state_dict().items():
        names = foreign_names(own_name, detector.size)
        used.update(names)
        shape = [expected.shape[0] // len(names), *expected.shape[1:]] if expected.ndim else []
        for name in names:
            tensor = tensors.get(name)
            if tensor is None:
                faults.append(f"{name} is missing")
            elif list(tensor.shape) != shape:
                faults.append(f"{name} has the shape {listed(tensor.shape)} instead of {shape}")
            elif tensor.is_floating_point() != expected.is_floating_point():
                faults.append(f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}")
    faults += [f"{shown(name)} is unknown" for name in tensors if name not in used]
    is_folded = not any(".bn." in name for name in tensors)
    why = "; BatchNorm is folded into its convolutions: give the checkpoint from before that" if is_folded else ""
    _refuse_faults(f"is not quite of size {detector.size} with {detector.num_classes} classes", faults, why)


def _other_settings(layers: Mapping[str, Mapping[str, Any]], detector: Detector) -> list[str]:
    """A line for each setting that differs from the detector's; one that the file does not state counts as equal."""
    expected: dict[str, dict[str, Any]] = {}
    for name, module in detector.named_modules():
        settings: dict[str, Any]
        if isinstance(module, nn.Conv2d):
            settings = {"stride": module.stride[0], "padding": module.padding[0]}
        elif isinstance(module, nn.BatchNorm2d):
            settings = {"eps": module.eps}
        elif isinstance(module, Bottleneck):
            settings, name = {"add": module.shortcut}, f"{name}.mix.convolution"
        else:
            continue
        ending = ".cv1.conv.weight" if "add" in settings else ".weight"
        for foreign in foreign_names(f"{name}.weight", detector.size):
            expected[foreign.removesuffix(ending)] = settings
    for index, (part, sources) in enumerate(foreign_parts(detector.size)):
        kind = {"kind": part} if part in ("Concat", "Upsample") else {}
        expected[f"model.{index}"] = {"sources": sources, **kind}
    faults = []
    for path, layer in layers.items():
        for name, value in {**SETTINGS.get(layer["kind"], {}), **expected.get(path, {})}.items():
            is_pair = isinstance(layer.get(name), list) and not isinstance(value, list)  # for both directions
            values = layer[name] if is_pair else [layer.get(name, value)]
            if value is not ... and (any(each != value for each in values) or (is_pair and len(values) != 2)):
                faults.append(f"{shown(path)} has {name} {shown(str(layer[name]))} instead of {value}")
    return faults


def _refuse_faults(what: str, faults: Sequence[str], why: str = "") -> None:
    if faults:
        more = f" and {len(faults) - _NUM_SHOWN} more" if len(faults) > _NUM_SHOWN else ""
        raise InputError(f"{what}: {'; '.join(faults[:_NUM_SHOWN])}{more}{why}")


# Names: by the number of the part in its list, where ours go by role


@cache
def foreign_parts(size: str) -> tuple[tuple[str, int | list[int]], ...]:
    """Our name of each numbered foreign part, and the numbers of those it takes its input from; -1: the one before it.

    Parts without tensors, which ours do not name, go by their kind.
    """
    last = plan(size).last_level
    parts: list[tuple[str, int | list[int]]] = [("backbone.stem", -1)]
    for level in range(2, last + 1):
        parts += [(f"backbone.stage{level}.downsample", -1), (f"backbone.stage{level}.cross_stage", -1)]
    parts.append(("backbone.pool", -1))
    numbers = {part: number for number, (part, _) in enumerate(parts)}
    for level in range(last, FIRST_LEVEL, -1):
        numbers[f"neck.lateral.p{level}"] = len(parts)
        parts += [
            (f"neck.lateral.p{level}", -1),
            ("Upsample", -1),
            ("Concat", [-1, numbers[f"backbone.stage{level - 1}.cross_stage"]]),
            (f"neck.top_down.p{level - 1}", -1),
        ]
    outputs = [len(parts) - 1]
    for level in range(FIRST_LEVEL, last):
        parts += [
            (f"neck.downsample.p{level}", -1),
            ("Concat", [-1, numbers[f"neck.lateral.p{level + 1}"]]),
            (f"neck.bottom_up.p{level + 1}", -1),
        ]
        outputs.append(len(parts) - 1)
    return (*parts, ("head", outputs))


def foreign_names(own_name: str, size: str) -> tuple[str, ...]:
    """The foreign tensors that make up our tensor `own_name` of a detector of `size`; see `joined`.

    There are two for the entry of a cross-stage block (its two branches, "cv1" and "cv2") and one for all others.
    Raises KeyError for a name that no detector has.
    """
    for number, (part, _) in enumerate(foreign_parts(size)):
        if own_name.startswith(f"{part}."):
            *inner, layer, tensor = own_name.removeprefix(f"{part}.").split(".")
            if part == "head":  # head.predictors.p3.weight
                return (f"model.{number}.m.{int(layer[1:]) - FIRST_LEVEL}.{tensor}",)
            block = inner.pop() if inner else ""
            bottleneck = f".m.{inner[1]}" if inner else ""
            return tuple(f"model.{number}{bottleneck}{one}.{_LAYERS[layer]}.{tensor}" for one in _BLOCKS[block])
    raise KeyError(own_name)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Our tensor of the foreign ones that `foreign_names` names, in that order: joined along the output channels."""
    # Batch counters have no channels; branches that run together have counted the same.
    return torch.cat(list(tensors)) if tensors[0].ndim else tensors[0]


def foreign_anchors_name(size: str) -> str:
    """The foreign buffer of anchors, (L, A, 2) in cells, which no tensor of ours holds: we have an `AnchorSet`."""
    return f"model.{len(foreign_parts(size)) - 1}.anchors"


def shown(text: str) -> str:
    """A text out of the file, fit for a message: printable ASCII on one line, not too long."""
    return printable(ascii(text)[1:-1], 120)


def listed(numbers: Sequence[int]) -> str:
    """A shape out of the file, fit for a message."""
    return shown(str(list(numbers[:8])))
