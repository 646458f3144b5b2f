"""Makes a detector of a checkpoint of the original family.

Legend: L levels, A anchors per level, K classes.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError, StorageError
from anchorite.model.detector import Detector
from anchorite.model.foreign.allowed import shown
from anchorite.model.foreign.architecture import other_settings, unknown_kinds
from anchorite.model.foreign.placed import read_tensor
from anchorite.model.foreign.sandbox import Found, read_in_sandbox
from anchorite.model.foreign_names import foreign_anchors_name, foreign_names, joined
from anchorite.model.table import SIZES, plan
from anchorite.model.weights import MAX_IMAGE_SIZE, WeightsInfo

_MAX_CLASSES = 10_000
_FLOATING = ("float16", "bfloat16", "float32", "float64")
_NUM_SHOWN = 5
# Written by early versions, and the same numbers as the anchors'.
_REPEATED_BUFFER = "anchor_grid"


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A detector out of a foreign checkpoint, float32 on the CPU and in evaluation mode.

    part: "ema" (the average over training) or "model", whichever it was made of; has_both: whether there were both;
    num_tensors: foreign tensors that went into it; names_are_stored, image_size_is_stored: whether class names and
    image size come from the checkpoint rather than from a default.
    """

    detector: Detector
    info: WeightsInfo
    part: str
    has_both: bool
    num_tensors: int
    names_are_stored: bool
    image_size_is_stored: bool


def import_checkpoint(source: Path) -> ImportedCheckpoint:
    """The detector of a checkpoint (.pt) of the original family, of which nothing is executed.

    Raises UnsafeFileError, naming what it asks for or the excess, for a file that could run code or exhaust memory;
    InputError when it is damaged, no such checkpoint, or of another architecture; StorageError when it cannot be read.
    """
    try:
        if not stat.S_ISREG(source.stat().st_mode):  # not a folder, nor a pipe that would never end
            raise InputError(f"{source}: not a file; give a .pt file of the original family")
        with source.open("rb") as file:
            found = read_in_sandbox(source, file)
            try:
                return _made(found, file)
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{source}: no such file; give a .pt file of the original family") from error
    except OSError as error:
        raise StorageError(
            f"{source}: cannot be read: {error.strerror or error}; check the permissions and the disk"
        ) from error


def _made(found: Found, file: BinaryIO) -> ImportedCheckpoint:
    _refuse_faults("is of another architecture", unknown_kinds(found.layers))
    size = _size(found)
    strides = _strides(found, size, file)
    anchors = _anchors(found, size, strides, file)
    num_classes = _num_classes(found, size, anchors.num_anchors)
    with torch.device("meta"):
        detector = Detector(size, num_classes, anchors)
    _check_tensors(found, detector)
    _refuse_faults("is of another architecture", other_settings(found.layers, detector))
    names = found.class_names
    if names is not None and len(names) != num_classes:
        raise InputError(f"has {len(names)} class names, but its head predicts {num_classes} classes")
    tensors = _loaded(found, detector, file)
    detector.load_state_dict(tensors, assign=True)
    detector.requires_grad_(True)
    image_size = _usable_image_size(found.image_size, strides[-1])
    return ImportedCheckpoint(
        detector=detector.eval(),
        info=WeightsInfo(
            size=size,
            class_names=tuple(names or (f"class {number}" for number in range(num_classes))),
            anchors=anchors,
            image_size=image_size or (1280 if plan(size).last_level == 6 else 640),
        ),
        part=found.part,
        has_both=found.has_both,
        num_tensors=len(found.tensors),
        names_are_stored=names is not None,
        image_size_is_stored=image_size is not None,
    )


def _size(found: Found) -> str:
    """The size whose head has the number and whose stem the width that the checkpoint has."""
    stem = found.tensors.get("model.0.conv.weight")
    heads = [size for size in SIZES if foreign_anchors_name(size) in found.tensors]
    if stem is None or len(stem.shape) != 4 or not heads:
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


def _strides(found: Found, size: str, file: BinaryIO) -> tuple[int, ...]:
    """The strides of the size, with which those of the checkpoint must agree where it has them."""
    expected = plan(size).strides
    if found.strides is not None and found.strides.shape:
        if found.strides.shape != [len(expected)]:
            raise InputError(f"has {found.strides.shape} strides; size {size} has {len(expected)}")
        stored = read_tensor("stride", found.strides, file).tolist()
        if stored != list(expected):
            raise InputError(f"predicts at strides {stored}; size {size} does at {list(expected)}")
    return expected


def _anchors(found: Found, size: str, strides: tuple[int, ...], file: BinaryIO) -> AnchorSet:
    """The anchors in pixels, of the buffer (L, A, 2) in cells."""
    name = foreign_anchors_name(size)
    place = found.tensors[name]
    if len(place.shape) != 3 or place.shape[0] != len(strides) or place.shape[2] != 2 or not 1 <= place.shape[1] <= 100:
        raise InputError(f"{name} has the shape {place.shape} instead of {len(strides)} levels of (width, height)")
    pixels = read_tensor(name, place, file).double() * torch.tensor(strides, dtype=torch.float64).view(-1, 1, 1)
    return AnchorSet(tuple(tuple((w, h) for w, h in level) for level in pixels.tolist()), strides)


def _num_classes(found: Found, size: str, num_anchors: int) -> int:
    name = foreign_names(f"head.predictors.p{plan(size).levels[0]}.bias", size)[0]
    place = found.tensors.get(name)
    channels = place.shape[0] if place is not None and place.shape else 0
    num_classes = channels // num_anchors - 5
    if channels % num_anchors or not 1 <= num_classes <= _MAX_CLASSES:
        raise InputError(
            f"{name} has {channels} channels, which are not 5 and 1 to {_MAX_CLASSES} classes for {num_anchors} anchors"
        )
    return num_classes


def _check_tensors(found: Found, detector: Detector) -> None:
    """Raise InputError unless the foreign tensors are those of the detector, each of the shape that it should have."""
    anchors_name = foreign_anchors_name(detector.size)
    faults, used = [], {anchors_name, anchors_name.replace("anchors", _REPEATED_BUFFER)}
    for own_name, tensor in detector.state_dict().items():
        names = foreign_names(own_name, detector.size)
        used.update(names)
        shape = list(tensor.shape)
        if shape:
            shape[0] //= len(names)
        for name in names:
            place = found.tensors.get(name)
            if place is None:
                faults.append(f"{name} is missing")
            elif place.shape != shape:
                faults.append(f"{name} has the shape {place.shape[:8]} instead of {shape}")
            elif (place.dtype in _FLOATING) != tensor.is_floating_point():
                faults.append(f"{name} is of type {place.dtype}")
    faults += [f"{shown(name)} is unknown" for name in found.tensors if name not in used]
    is_folded = not any(".bn." in name for name in found.tensors)
    why = "; BatchNorm is folded into its convolutions: give the checkpoint from before that" if is_folded else ""
    _refuse_faults(f"is not quite of size {detector.size} with {detector.num_classes} classes", faults, why)


def _refuse_faults(what: str, faults: list[str], why: str = "") -> None:
    if faults:
        more = f" and {len(faults) - _NUM_SHOWN} more" if len(faults) > _NUM_SHOWN else ""
        raise InputError(f"{what}: {'; '.join(faults[:_NUM_SHOWN])}{more}{why}")


def _loaded(found: Found, detector: Detector, file: BinaryIO) -> Mapping[str, Tensor]:
    """The detector's tensors; floating point ones as float32, in which half precision is exact."""
    tensors: dict[str, Tensor] = {}
    for own_name, expected in detector.state_dict().items():
        names = foreign_names(own_name, detector.size)
        tensor = joined([read_tensor(name, found.tensors[name], file) for name in names]).to(expected.dtype)
        if expected.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{names[0]} holds values that are infinite or no numbers; give an earlier checkpoint")
        tensors[own_name] = tensor
    return tensors


def _usable_image_size(stored: int | None, stride: int) -> int | None:
    """The stored side where a detector can take it; a multiple of the coarsest stride, as training rounds it up to."""
    if stored is None or not 0 < stored <= MAX_IMAGE_SIZE:
        return None
    return -(-stored // stride) * stride
