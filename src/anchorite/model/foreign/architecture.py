"""Whether the layers of a checkpoint compute what our detector of a size computes, apart from their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from anchorite.model.blocks import Bottleneck
from anchorite.model.detector import Detector
from anchorite.model.foreign.allowed import shown
from anchorite.model.foreign_names import foreign_names, foreign_sources

# Those that only hold others or do what their settings and tensors say, which are compared one by one.
_KNOWN_KINDS = frozenset(
    {"Model", "DetectionModel", "Sequential", "ModuleList", "Conv", "Conv2d", "BatchNorm2d", "SiLU", "C3", "Bottleneck"}
    | {"SPPF", "MaxPool2d", "Upsample", "Concat", "Detect"}
)
_ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "Conv2d": {"dilation": 1, "groups": 1, "padding_mode": "zeros"},
    "MaxPool2d": {"kernel_size": 5, "stride": 1, "padding": 2, "dilation": 1},
    "Upsample": {"size": None, "scale_factor": 2.0, "mode": "nearest"},
    "Concat": {"d": 1},
}


def unknown_kinds(layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each layer of a class that no detector of ours has."""
    return [
        f"{shown(path) or 'the model'} is a {shown(str(layer['kind']))}"
        for path, layer in layers.items()
        if layer["kind"] not in _KNOWN_KINDS
    ]


def other_settings(layers: Mapping[str, Mapping[str, Any]], detector: Detector) -> list[str]:
    """A line for each setting that differs from the detector's; one that the file does not state counts as equal."""
    expected = dict(_expected_by_path(detector))
    faults = []
    for path, layer in layers.items():
        wanted = {**_ALWAYS.get(layer["kind"], {}), **expected.get(path, {})}
        for name, value in wanted.items():
            if name in layer and not _same(layer[name], value):
                faults.append(f"{shown(path)} has {name} {shown(str(layer[name]))} instead of {value}")
    return faults


def _expected_by_path(detector: Detector) -> Iterator[tuple[str, dict[str, Any]]]:
    """Foreign path and settings of every layer that has some of its own."""
    size = detector.size
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d):
            for path in _paths(f"{name}.weight", size, ".weight"):
                yield path, {"stride": module.stride[0], "padding": module.padding[0]}
        elif isinstance(module, nn.BatchNorm2d):
            for path in _paths(f"{name}.weight", size, ".weight"):
                yield path, {"eps": module.eps}
        elif isinstance(module, Bottleneck):
            for path in _paths(f"{name}.mix.convolution.weight", size, ".cv1.conv.weight"):
                yield path, {"add": module.shortcut}
    with_tensors = {path.split(".")[1] for name in detector.state_dict() for path in foreign_names(name, size)}
    for index, sources in foreign_sources(size).items():
        kind = {} if str(index) in with_tensors else {"kind": "Concat" if isinstance(sources, list) else "Upsample"}
        yield f"model.{index}", {"sources": sources, **kind}


def _paths(own_name: str, size: str, ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in foreign_names(own_name, size)]


def _same(value: Any, expected: Any) -> bool:
    """Whether a setting is `expected`: also as a pair for both directions, or a number written in another way."""
    if isinstance(expected, list) or not isinstance(value, list):
        return bool(value == expected)
    return len(value) == 2 and all(each == expected for each in value)
