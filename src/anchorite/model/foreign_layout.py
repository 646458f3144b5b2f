"""How the original family lays out a model: its layers, their settings and the names of its tensors, mapped to ours.

Legend: L levels, A anchors per level, K classes. Foreign names are those of the checkpoint's layers and tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError
from anchorite.model.blocks import Bottleneck
from anchorite.model.detector import Detector
from anchorite.model.sizes import FIRST_LEVEL, SIZES, plan
from anchorite.model.weights import WeightsInfo

MAX_CLASSES = 10_000

_NUM_SHOWN, _SHOWN_LENGTH = 5, 120
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
_REPEATED_BUFFER = "anchor_grid"  # written by early versions; the same numbers as the anchors'


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
    size = _size(found)
    anchors = _anchors(found, size)
    num_classes = _num_classes(found, size, anchors.num_anchors)
    with torch.device("meta"):
        detector = Detector(size, num_classes, anchors)
    _check_tensors(found, detector)
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


def _size(found: CheckpointContents) -> str:
    """The size whose head has the number and whose stem the width that the checkpoint has."""
    stem = found.tensors.get("model.0.conv.weight")
    heads = [size for size in SIZES if foreign_anchors_name(size) in found.tensors]
    if stem is None or stem.ndim != 4 or not heads:
        missing = "model.0.conv.weight" if heads else foreign_anchors_name("n")
        raise InputError(
            f"is of another architecture: no tensor {missing} as sizes {', '.join(SIZES)} have it; "
            f"it has {', '.join(shown(name) for name in list(found.tensors)[:_NUM_SHOWN]) or 'none'}"
        )
    size = next((size for size in heads if plan(size).stem_width == stem.shape[0]), None)
    if size is None:
        widths = ", ".join(f"{plan(size).stem_width} ({size})" for size in heads)
        raise InputError(
            f"is of another width: model.0.conv.weight has {stem.shape[0]} channels, the sizes have {widths}"
        )
    return size


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


def _num_classes(found: CheckpointContents, size: str, num_anchors: int) -> int:
    name = foreign_names(f"head.predictors.p{FIRST_LEVEL}.bias", size)[0]
    bias = found.tensors.get(name)
    channels = len(bias) if bias is not None and bias.ndim else 0
    num_classes = channels // num_anchors - 5
    if channels % num_anchors or not 1 <= num_classes <= MAX_CLASSES:
        raise InputError(
            f"{name} has {channels} channels, which are not 5 and 1 to {MAX_CLASSES} classes for {num_anchors} anchors"
        )
    return num_classes


def _check_tensors(found: CheckpointContents, detector: Detector) -> None:
    """Raise InputError unless the foreign tensors are those of the detector, each of the shape that it should have."""
    anchors_name = foreign_anchors_name(detector.size)
    faults, used = [], {anchors_name, anchors_name.replace("anchors", _REPEATED_BUFFER)}
    for own_name, expected in detector.state_dict().items():
        names = foreign_names(own_name, detector.size)
        used.update(names)
        shape = [expected.shape[0] // len(names), *expected.shape[1:]] if expected.ndim else []
        for name in names:
            tensor = found.tensors.get(name)
            if tensor is None:
                faults.append(f"{name} is missing")
            elif list(tensor.shape) != shape:
                faults.append(f"{name} has the shape {listed(tensor.shape)} instead of {shape}")
            elif tensor.is_floating_point() != expected.is_floating_point():
                faults.append(f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}")
    faults += [f"{shown(name)} is unknown" for name in found.tensors if name not in used]
    is_folded = not any(".bn." in name for name in found.tensors)
    why = "; BatchNorm is folded into its convolutions: give the checkpoint from before that" if is_folded else ""
    _refuse_faults(f"is not quite of size {detector.size} with {detector.num_classes} classes", faults, why)


def _other_settings(layers: Mapping[str, Mapping[str, Any]], detector: Detector) -> list[str]:
    """A line for each setting that differs from the detector's; one that the file does not state counts as equal."""
    expected = dict(_expected_settings(detector))
    faults = []
    for path, layer in layers.items():
        for name, value in {**SETTINGS.get(layer["kind"], {}), **expected.get(path, {})}.items():
            is_pair = isinstance(layer.get(name), list) and not isinstance(value, list)  # for both directions
            values = layer[name] if is_pair else [layer.get(name, value)]
            if value is not ... and (any(each != value for each in values) or (is_pair and len(values) != 2)):
                faults.append(f"{shown(path)} has {name} {shown(str(layer[name]))} instead of {value}")
    return faults


def _expected_settings(detector: Detector) -> Iterator[tuple[str, dict[str, Any]]]:
    """Foreign path and settings of every layer that has some of its own."""
    size = detector.size
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | Bottleneck):
            tensor, ending = f"{name}.weight", ".weight"
            if isinstance(module, nn.Conv2d):
                settings: dict[str, Any] = {"stride": module.stride[0], "padding": module.padding[0]}
            elif isinstance(module, nn.BatchNorm2d):
                settings = {"eps": module.eps}
            else:
                tensor, ending = f"{name}.mix.convolution.weight", ".cv1.conv.weight"
                settings = {"add": module.shortcut}
            for foreign in foreign_names(tensor, size):
                yield foreign.removesuffix(ending), settings
    with_tensors = {foreign.split(".")[1] for name in detector.state_dict() for foreign in foreign_names(name, size)}
    for index, sources in foreign_sources(size).items():
        kind = {} if str(index) in with_tensors else {"kind": "Concat" if isinstance(sources, list) else "Upsample"}
        yield f"model.{index}", {"sources": sources, **kind}


def _refuse_faults(what: str, faults: Sequence[str], why: str = "") -> None:
    if faults:
        more = f" and {len(faults) - _NUM_SHOWN} more" if len(faults) > _NUM_SHOWN else ""
        raise InputError(f"{what}: {'; '.join(faults[:_NUM_SHOWN])}{more}{why}")


# Names: by the number of the part in its list, where ours go by role


def foreign_names(own_name: str, size: str) -> tuple[str, ...]:
    """The foreign tensors that make up our tensor `own_name` of a detector of `size`; see `joined`.

    There are two for the entry of a cross-stage block (its two branches, "cv1" and "cv2") and one for all others.
    Raises KeyError for a name that no detector has.
    """
    path = own_name.split(".")
    if path[0] == "head" and path[1] == "predictors":
        return (f"model.{_head_index(size)}.m.{int(path[2][1:]) - FIRST_LEVEL}.{path[3]}",)
    indices = _part_indices(size)
    length = next((n for n in (3, 2) if ".".join(path[:n]) in indices), None)
    if length is None:
        raise KeyError(own_name)
    *inner, layer, tensor = path[length:]
    layer = {"convolution": "conv", "norm": "bn"}[layer]
    return tuple(f"model.{indices['.'.join(path[:length])]}{block}.{layer}.{tensor}" for block in _blocks(inner))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Our tensor of the foreign ones that `foreign_names` names, in that order: joined along the output channels."""
    # Batch counters have no channels; branches that run together have counted the same.
    return torch.cat(list(tensors)) if tensors[0].ndim else tensors[0]


def foreign_anchors_name(size: str) -> str:
    """The foreign buffer of anchors, (L, A, 2) in cells, which no tensor of ours holds: we have an `AnchorSet`."""
    return f"model.{_head_index(size)}.anchors"


def foreign_sources(size: str) -> dict[int, list[int] | int]:
    """By number of a foreign part, the numbers of those it takes its input from; -1 is the one before it."""
    last, indices = plan(size).last_level, _part_indices(size)
    sources: dict[int, list[int] | int] = dict.fromkeys(range(_head_index(size)), -1)
    outputs = [indices[f"neck.top_down.p{FIRST_LEVEL}"]]
    for level in range(FIRST_LEVEL, last):
        # The concatenation lies between the upsampling or the downsampling, and the merge.
        sources[indices[f"neck.top_down.p{level}"] - 1] = [-1, indices[f"backbone.stage{level}.cross_stage"]]
        sources[indices[f"neck.bottom_up.p{level + 1}"] - 1] = [-1, indices[f"neck.lateral.p{level + 1}"]]
        outputs.append(indices[f"neck.bottom_up.p{level + 1}"])
    sources[_head_index(size)] = outputs
    return sources


def _blocks(inner: list[str]) -> tuple[str, ...]:
    """Where a convolution block lies within its foreign part; ours is `inner`."""
    match inner:
        case ["bottlenecks", number, "mix" | "look" as name]:
            return (f".m.{number}.{'cv1' if name == 'mix' else 'cv2'}",)
        case _:
            known = {
                "": ("",),
                "entry": (".cv1", ".cv2"),
                "merge": (".cv3",),
                "narrow": (".cv1",),
                "combine": (".cv2",),
            }
            return known[".".join(inner)]


def _part_indices(size: str) -> dict[str, int]:
    """The foreign number of every part of backbone and neck.

    The backbone counts the stem 0, then two parts a stage, then the pool. On the way down each step has four parts
    (narrow, upsample, concatenate, merge), on the way up three (downsample, concatenate, merge).
    """
    last = plan(size).last_level
    indices = {"backbone.stem": 0, "backbone.pool": 2 * last - 1}
    for level in range(2, last + 1):
        indices[f"backbone.stage{level}.downsample"] = 2 * level - 3
        indices[f"backbone.stage{level}.cross_stage"] = 2 * level - 2
    index = 2 * last
    for level in range(last, FIRST_LEVEL, -1):
        indices[f"neck.lateral.p{level}"] = index
        indices[f"neck.top_down.p{level - 1}"] = index + 3
        index += 4
    for level in range(FIRST_LEVEL, last):
        indices[f"neck.downsample.p{level}"] = index
        indices[f"neck.bottom_up.p{level + 1}"] = index + 2
        index += 3
    return indices


def _head_index(size: str) -> int:
    last = plan(size).last_level
    return 2 * last + 7 * (last - FIRST_LEVEL)


def shown(text: str) -> str:
    """A text out of the file, fit for a message: printable ASCII on one line, not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN_LENGTH])
    return plain.encode("ascii", "backslashreplace").decode() + ("..." if len(text) > _SHOWN_LENGTH else "")


def listed(numbers: Sequence[int]) -> str:
    """A shape out of the file, fit for a message."""
    return shown(str(list(numbers[:8])))
