"""Checkpoints of the original family as real files: whole ones, and hostile ones put together by hand.

The classes that such a file names do not exist here. They are made for the moment of saving, out of the names that the
specification lists, and hold nothing but tensors and settings.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.model import Detector, default_anchors, torch_checkpoint
from anchorite.model.foreign_layout import foreign_anchors_name, foreign_names, foreign_parts
from anchorite.model.sizes import plan
from tests.model.oracle import randomise_norms

CLASSES = {
    "models.yolo": ("DetectionModel", "Detect"),
    "models.common": ("Conv", "C3", "Bottleneck", "SPPF", "Concat", "Focus"),
}


def read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that reads checkpoints, whose import of torch takes seconds; any other error fails a test."""
    monkeypatch.setattr(torch_checkpoint, "read_in_sandbox", torch_checkpoint.answer)


def part(module: str, name: str) -> Any:
    """An empty layer of a class that is not there."""
    kind = type(name, (nn.Module,), {"__module__": module})
    return kind()


@contextmanager
def classes_at_hand(*models: nn.Module) -> Iterator[None]:
    """While the classes of the models' layers can be found by name, as pickling wants them."""
    modules = {name: types.ModuleType(name) for name in ("models", *CLASSES)}
    for layer in (layer for model in models for layer in model.modules()):
        kind = type(layer)
        if kind.__module__ in modules:
            layer.__class__ = modules[kind.__module__].__dict__.setdefault(kind.__name__, kind)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def random_detector(size: str = "n", num_classes: int = 3, anchors: AnchorSet | None = None, seed: int = 0) -> Detector:
    """A detector whose tensors half precision holds exactly."""
    torch.manual_seed(seed)
    detector = Detector(size, num_classes, anchors or default_anchors(size))
    randomise_norms(detector, seed)
    return detector.half().float().eval()


def foreign_state(detector: Detector) -> dict[str, Tensor]:
    """The detector's tensors by their foreign names, in half precision."""
    state = {foreign_anchors_name(detector.size): detector.anchors.cells().half()}
    for name, tensor in detector.state_dict().items():
        names = foreign_names(name, detector.size)
        pieces = tensor.chunk(len(names)) if tensor.ndim else [tensor] * len(names)
        stored = [piece.half() if piece.is_floating_point() else piece for piece in pieces]
        state.update(zip(names, [piece.clone() for piece in stored], strict=True))
    return state


def foreign_model(detector: Detector, names: Any) -> nn.Module:
    """A model of the family with the detector's tensors: layers by number, with the settings that they would have."""
    state = foreign_state(detector)
    parts = foreign_parts(detector.size)
    head = len(parts) - 1
    settings = {
        path.removesuffix(".weight"): module
        for own_name, module in detector.named_modules()
        if isinstance(module, nn.Conv2d)
        for path in foreign_names(f"{own_name}.weight", detector.size)
    }
    root = part("models.yolo", "DetectionModel")
    root.model = nn.Sequential()
    for index, (_, sources) in enumerate(parts):
        paths = [name for name in state if name.startswith(f"model.{index}.")]
        layer = _numbered(index == head, paths, sources)
        layer.f, layer.i = sources, index
        root.model.add_module(str(index), layer)
    for name, tensor in state.items():
        _put(root, name.split("."), tensor, settings)
    for index in range(head):
        for layer in root.model[index].modules():
            if type(layer).__name__ == "Bottleneck":
                layer.add = index < 2 * plan(detector.size).last_level  # in the backbone
            elif type(layer).__name__ == "SPPF":
                layer.m = nn.MaxPool2d(5, 1, 2)
    root.model[head].stride = torch.tensor([float(stride) for stride in detector.strides])
    root.names = names
    return root


def _numbered(is_head: bool, paths: list[str], sources: Any) -> Any:
    if is_head:
        return part("models.yolo", "Detect")
    if not paths:
        return part("models.common", "Concat") if isinstance(sources, list) else nn.Upsample(None, 2, "nearest")
    kinds = {"conv": "Conv", "cv3": "C3"}
    return part("models.common", next((kinds[k] for k in kinds if f".{k}." in paths[-1]), "SPPF"))


def _put(root: Any, path: list[str], tensor: Tensor, settings: Mapping[str, nn.Conv2d]) -> None:
    """Put a tensor at its place, with the layers that lie on the way there."""
    layer = root
    for depth, name in enumerate(path[:-1]):
        if name not in layer._modules:
            layer.add_module(name, _inner(".".join(path[: depth + 1]), name, tensor, settings))
        layer = layer._modules[name]
    if path[-1] in layer._parameters:
        layer._parameters[path[-1]] = nn.Parameter(tensor, requires_grad=False)
    else:
        layer.register_buffer(path[-1], tensor)


def _inner(path: str, name: str, tensor: Tensor, settings: Mapping[str, nn.Conv2d]) -> nn.Module:
    if path in settings:
        own = settings[path]
        return nn.Conv2d(
            own.in_channels, own.out_channels, own.kernel_size, own.stride, own.padding, bias=own.bias is not None
        ).half()
    if name == "bn":
        return nn.BatchNorm2d(len(tensor), eps=1e-3, momentum=0.03).half()
    if name == "m":
        return nn.ModuleList() if f"{path}.0" in settings else nn.Sequential()
    return part("models.common", "Bottleneck" if name.isdigit() else "Conv")


def save_checkpoint(path: Path, model: nn.Module, **others: Any) -> Path:
    """A training checkpoint with the model, as torch.save writes it."""
    with classes_at_hand(model, *(other for other in others.values() if isinstance(other, nn.Module))):
        torch.save({"epoch": -1, "best_fitness": None, "model": model, "ema": None, **others}, path)
    return path


def zip_of(path: Path, records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip as torch.save lays it out, with any records; names are taken as they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return path


def with_pickle(path: Path, content: bytes, **records: bytes) -> Path:
    """A checkpoint whose pickle is `content`; records are its storages, called data0, data1 and so on."""
    stored = {name.replace("data", "data/"): value for name, value in records.items()}
    return zip_of(path, {"data.pkl": content, "version": b"3\n", "byteorder": b"little", **stored})


def rewritten(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """A checkpoint again, with its pickle changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("/data.pkl") else content)
    return target


def called(module: str, name: str, arguments: bytes) -> bytes:
    """A pickle that calls a global with the pickled tuple of arguments, and is the result in a checkpoint's dict."""
    return b"\x80\x02}X\x05\x00\x00\x00model" + b"c%s\n%s\n" % (module.encode(), name.encode()) + arguments + b"Rs."


def text(value: str) -> bytes:
    """A pickled text."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def integer(value: int) -> bytes:
    """A pickled whole number of any size."""
    return pickle.dumps(value, 2)[2:-1]


def integers(*values: int) -> bytes:
    """A pickled tuple of whole numbers."""
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def tensor_call(
    num_items: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], kind: str = "FloatStorage"
) -> bytes:
    """A pickle whose model is a tensor of storage 0, as the rebuilding function takes it."""
    storage = b"(" + text("storage") + b"ctorch\n%s\n" % kind.encode() + text("0") + text("cpu") + integer(num_items)
    arguments = b"(" + storage + b"tQ" + integer(offset) + integers(*shape) + integers(*strides) + b"\x89)t"
    return called("torch._utils", "_rebuild_tensor_v2", arguments)


def legacy_bytes(value: Any) -> bytes:
    """What torch.save wrote before version 1.6."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()
