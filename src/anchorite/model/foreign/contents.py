"""What a checkpoint of the original family holds: which model, its layers, tensors, class names and image size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from anchorite.errors import InputError, UnsafeFileError
from anchorite.model.foreign.allowed import shown
from anchorite.model.foreign.machine import Inert
from anchorite.model.foreign.tensors import View

MAX_LAYERS = 20_000
MAX_DEPTH = 12
MAX_CLASSES = 10_000
MAX_NAME_LENGTH = 200
_MAX_CHILDREN = 1_000

MODEL_PARTS = ("ema", "model")
"""Where a checkpoint keeps models, the better one (the average over training) first."""

# The settings of layers that change what they compute, by class; those of a tensor's shape are seen there.
_SETTINGS = {
    "Conv2d": ("stride", "padding", "dilation", "groups", "padding_mode"),
    "BatchNorm2d": ("eps",),
    "Bottleneck": ("add",),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation"),
    "Upsample": ("size", "scale_factor", "mode"),
    "Concat": ("d",),
}
_WRAPPED = "module."  # before the name of each tensor of a wrapped model
_SOURCES = "f"  # the numbers of the layers that a numbered layer takes its input from


@dataclass(frozen=True)
class Place:
    """Where the file has a tensor: item `offset` of a record is its first entry, `strides` are counted in items."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    first_byte: int
    num_bytes: int
    crc: int


def described(checkpoint: Any) -> dict[str, Any]:
    """What `sandbox.Found` holds, as plain values, of an unpickled checkpoint.

    Raises InputError when it is none of the family, and UnsafeFileError when it would take too much to go through.
    """
    if _is_state_dict(checkpoint) and not any(part in checkpoint for part in MODEL_PARTS):
        raise InputError(_about_state_dict("it", checkpoint))
    if not isinstance(checkpoint, dict):
        raise InputError("no training checkpoint: not a dict with a model; give the .pt file that training wrote")
    part = next((part for part in MODEL_PARTS if checkpoint.get(part) is not None), None)
    if part is None:
        keys = ", ".join(shown(str(key)) for key in list(checkpoint)[:10])
        raise InputError(f"no training checkpoint: no model in it, only {keys or 'nothing'}")
    model = _unwrapped(checkpoint[part])
    if _is_state_dict(model):
        raise InputError(_about_state_dict(f"its {part}", model))
    if not isinstance(model, Inert):
        raise InputError(f"its {part} is a {type(model).__name__}, not a model of the original family")
    tensors: dict[str, dict[str, Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    strides = None
    for path, layer in _layers(model):
        layers[path] = {"kind": layer.kind.name, **_settings(layer)}
        tensors |= {_joined(path, name): asdict(_place(tensor)) for name, tensor in _own_tensors(layer)}
        if len(tensors) > MAX_LAYERS:
            raise UnsafeFileError(f"holds more than {MAX_LAYERS} tensors; nothing was read")
        if layer.kind.name == "Detect" and isinstance(layer.state.get("stride"), View):
            strides = asdict(_place(layer.state["stride"]))
    return {
        "part": part,
        "has_both": all(checkpoint.get(each) is not None for each in MODEL_PARTS),
        "tensors": tensors,
        "layers": layers,
        "strides": strides,
        "class_names": _class_names(model.state.get("names")),
        "image_size": _image_size(checkpoint.get("opt")),
    }


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, View) for each in value.values())


def _about_state_dict(what: str, tensors: dict[Any, View]) -> str:
    """What a state dict is, what it lacks, and what to give instead."""
    names = [str(name) for name in tensors]
    is_wrapped = all(name.startswith(_WRAPPED) for name in names)
    plain = {name.removeprefix(_WRAPPED) if is_wrapped else name for name in names}
    is_family = "model.0.conv.weight" in plain
    said = [f"{what} is a state dict: {len(names)} tensors by name, without class names and the layers' settings"]
    said += ["its names begin with module., as after training on several devices"] if is_wrapped else []
    if not is_family:
        said.append(f"they are not named as the original family does, but {', '.join(map(shown, names[:3]))}")
    elif "model.0.conv.bias" in plain:
        said.append("BatchNorm is folded into its convolutions")
    return f"{'; '.join(said)}. Give the .pt file that training wrote (best.pt, last.pt), which holds the whole model"


def _unwrapped(model: Any) -> Any:
    """The model itself, where it is wrapped for training on several devices as the only layer, "module"."""
    for _ in range(MAX_DEPTH):
        if not isinstance(model, Inert) or model.kind.module.partition("parallel")[0] != "torch.nn.":
            break
        layers = _part(model, "_modules")
        if [name for name, _ in layers] != [_WRAPPED[:-1]] or any(True for _ in _own_tensors(model)):
            break
        model = layers[0][1]
    return model


def _layers(model: Inert) -> Iterator[tuple[str, Inert]]:
    """Every layer with its path, the model itself first, by "": outer ones before inner ones."""
    waiting: list[tuple[str, int, Inert]] = [("", 0, model)]
    number = 0
    while waiting:
        path, depth, layer = waiting.pop()
        number += 1
        # Layers that hold each other, or the same one twice over and over, would never come to an end.
        if number + len(waiting) > MAX_LAYERS or depth > MAX_DEPTH:
            raise UnsafeFileError(f"its layers go on beyond {MAX_LAYERS} or {MAX_DEPTH} deep; nothing was read")
        yield path, layer
        children = [(name, child) for name, child in _part(layer, "_modules") if child is not None]
        for name, child in reversed(children):
            if not isinstance(child, Inert):
                raise InputError(f"its layer {shown(_joined(path, name))} is a {type(child).__name__}; it is damaged")
            waiting.append((_joined(path, name), depth + 1, child))


def _own_tensors(layer: Inert) -> Iterator[tuple[str, View]]:
    for part in ("_parameters", "_buffers"):
        for name, tensor in _part(layer, part):
            if isinstance(tensor, View):
                yield name, tensor
            elif tensor is not None:
                raise InputError(f"its tensor {shown(name)} is a {type(tensor).__name__}; it is damaged")


def _part(layer: Inert, name: str) -> list[tuple[str, Any]]:
    part = layer.state.get(name, {})
    if isinstance(part, dict) and len(part) > _MAX_CHILDREN:
        raise UnsafeFileError(f"one of its layers holds {len(part)} others or tensors; nothing was read")
    if not isinstance(part, dict) or not all(type(key) is str and len(key) <= MAX_NAME_LENGTH for key in part):
        raise InputError(f"its {shown(layer.kind.name)} has {name} that are none; it is damaged")
    return list(part.items())


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _place(view: View) -> Place:
    record = view.storage.record
    return Place(
        dtype=view.storage.dtype,
        shape=view.shape,
        strides=view.strides,
        offset=view.offset,
        first_byte=record.first_byte,
        num_bytes=record.num_bytes,
        crc=record.crc,
    )


def _settings(layer: Inert) -> dict[str, Any]:
    found = {name: layer.state[name] for name in _SETTINGS.get(layer.kind.name, ()) if name in layer.state}
    if _SOURCES in layer.state:
        found["sources"] = layer.state[_SOURCES]
    return {name: list(value) if _is_row(value) else _scalar(value) for name, value in found.items()}


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) < 10 and all(type(each) in (int, float) for each in value)


def _scalar(value: Any) -> Any:
    """The value itself where it is plain, otherwise a word that fits nothing that is expected."""
    return value if type(value) in (int, float, bool, type(None)) else shown(str(value)) if type(value) is str else "?"


def _class_names(names: Any) -> list[str] | None:
    """K names out of a list, or a dict by number; None where there are none."""
    if names is None:
        return None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise InputError("its class names are not numbered from 0 up; give a checkpoint with the names of training")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list | tuple) or len(names) > MAX_CLASSES:
        raise InputError(f"its class names are no list of at most {MAX_CLASSES}; it is damaged")
    if not all(type(name) in (str, int, float) and len(str(name)) <= MAX_NAME_LENGTH for name in names):
        raise InputError(f"its class names are no texts of at most {MAX_NAME_LENGTH} letters; it is damaged")
    return [str(name) for name in names]


def _image_size(options: Any) -> int | None:
    """The side in pixels that it was trained at, from the options of its training, where they say so."""
    values = options.state if isinstance(options, Inert) else options
    if not isinstance(values, dict):
        return None
    size = values.get("imgsz", values.get("img_size"))
    if isinstance(size, list | tuple) and size:
        size = size[0]
    return size if type(size) is int else None
