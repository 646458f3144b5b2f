"""Weight files: safetensors with a JSON header that says which detector they belong to.

Nothing in such a file is ever executed. Every tensor is compared with the detector that the header describes before
any is read. Legend: K classes, L levels, A anchors per level.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from anchorite.anchors import AnchorSet
from anchorite.errors import AnchoriteError, InputError, StorageError, UnsafeFileError
from anchorite.files import StrPath, write_bytes_atomically
from anchorite.model.detector import Detector, is_folded
from anchorite.model.hf_backbone import BackboneConfig
from anchorite.reading import printable, shorten, validation_faults

FORMAT_VERSION = 3  # the newest that this release reads; written for backbones of transformers alone

MAX_IMAGE_SIZE = 8192
"""Longest side in pixels that a detector is trained at."""
MAX_CLASSES = 100_000
MAX_NAME_LENGTH = 10_000  # letters of a class name
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # of protocol 2 to 5

_OWN_BACKBONE = 1  # version of all other files, which earlier releases read; 2 called the backbone "borrowed"
_METADATA_KEY = "anchorite"
_NUM_SHOWN = 5
_WEIGHTS = (
    "weights are the best.safetensors or last.safetensors of a run, or what anchorite import makes of a checkpoint"
)
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class WeightsInfo:
    """What a weight file says of its detector.

    size: "n" to "x6"; class_names: K names, any text; anchors: pixels of the network input; image_size: side in
    pixels of the square network input that it was trained for; backbone_config: its backbone, where it is one of
    transformers.
    """

    size: str
    class_names: tuple[str, ...]
    anchors: AnchorSet
    image_size: int
    backbone_config: BackboneConfig | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what could be written but not read again: found before a run, not at its first save."""
        longest = max(map(len, self.class_names), default=0)
        if not 1 <= len(self.class_names) <= MAX_CLASSES or longest > MAX_NAME_LENGTH:
            raise InputError(
                f"{len(self.class_names)} classes, the longest name of {longest} letters: a weight file has 1 to "
                f"{MAX_CLASSES} classes with names of at most {MAX_NAME_LENGTH} letters; shorten or merge them"
            )


class DetectorHeader(BaseModel):
    """The fields by which a file of ours, a weight file or an export, describes its detector."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    newest: ClassVar[int]

    format_version: int
    size: Annotated[str, Field(max_length=8)]
    class_names: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    anchors: Annotated[
        list[Annotated[list[Annotated[float, Field(le=1e6, allow_inf_nan=False)]], Field(max_length=200)]],
        Field(max_length=8),
    ]
    strides: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(max_length=8)]
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]

    @classmethod
    def read(cls, fields: Any) -> Self:
        """The header of these values; InputError for a newer version, saying which, and for what makes no sense."""
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if type(version) is not int or version < 1:
            raise InputError(f"no format version but {shorten(version)}")
        if version > cls.newest:
            raise InputError(
                f"format version {shorten(version)}, but this release reads up to {cls.newest}; upgrade anchorite"
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise InputError(validation_faults(error)) from None

    def info(self, backbone_config: BackboneConfig | None = None) -> WeightsInfo:
        """Raises ValueError where the anchors make no sense."""
        # Not by from_rows, which would turn round what the writer had in an unusual order.
        sizes_px = tuple(tuple(zip(row[::2], row[1::2], strict=True)) for row in self.anchors)
        anchors = AnchorSet(sizes_px, tuple(self.strides))
        return WeightsInfo(self.size, tuple(self.class_names), anchors, self.image_size, backbone_config)


def header_fields(info: WeightsInfo) -> dict[str, Any]:
    """The fields of `DetectorHeader` but the version."""
    return {
        "size": info.size,
        "class_names": list(info.class_names),
        "anchors": info.anchors.to_rows(),
        "strides": list(info.anchors.strides),
        "image_size": info.image_size,
    }


class _Header(DetectorHeader):
    """The JSON in the metadata of a weight file."""

    newest = FORMAT_VERSION

    backbone: Annotated[BackboneConfig | None, Field(validation_alias=AliasChoices("backbone", "borrowed"))] = None

    @model_validator(mode="after")
    def _of_its_version(self) -> _Header:
        if (self.backbone is None) != (self.format_version == _OWN_BACKBONE):
            raise ValueError(f"format version {self.format_version} goes with a backbone of transformers from 2 on")
        return self


def save_weights(path: StrPath, detector: Detector, info: WeightsInfo) -> None:
    """Write the detector's parameters and buffers, floating point ones as float32, atomically.

    Raises StorageError when the disk or a permission refuses; what stood at `path` before is then untouched.
    """
    if is_folded(detector):
        raise InputError(f"{path}: folded weights cannot be trained on; save the detector before fold_batch_norm")
    # Written by Python: safetensors would report a full disk by an error of its own that names neither path nor space.
    write_bytes_atomically(Path(path), weight_file_bytes(detector, info))


def weight_file_bytes(detector: Detector, info: WeightsInfo) -> bytes:
    """The content of a weight file."""
    described = _description(info)
    actual = (detector.size, detector.num_classes, detector.anchors, detector.backbone_config)
    assert described == actual, f"info is of another detector: {described}, not {actual}"
    version = _OWN_BACKBONE if info.backbone_config is None else FORMAT_VERSION
    header = _Header(format_version=version, **header_fields(info), backbone=info.backbone_config)
    # ASCII JSON, because safetensors wants UTF-8 and a class name may hold a character that has none.
    text = json.dumps(header.model_dump(exclude_none=True), ensure_ascii=True)
    tensors = {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
    tensors = {name: (one.float() if one.is_floating_point() else one).contiguous() for name, one in tensors.items()}
    return save(tensors, {_METADATA_KEY: text})


def load_weights(path: StrPath) -> tuple[Detector, WeightsInfo]:
    """The detector, float32 on the CPU and in evaluation mode, and what the file says of it.

    Raises UnsafeFileError for a pickle, StorageError when the file cannot be read, and InputError when it is cut off,
    no weight file of ours, of a newer format, or holds other tensors than its detector has, and when it has a backbone
    of transformers, which is not installed.
    """
    path = Path(path)
    try:
        with path.open("rb") as opened:
            start = opened.read(512)
        _refuse_pickle(path, start)
        with safe_open(path, framework="pt", device="cpu") as file:
            info = _read_info(path, file.metadata() or {})
            try:
                with torch.device("meta"):  # no memory for tensors yet
                    detector = Detector(*_description(info))
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            _check_tensors(path, detector.state_dict(), file)
            # Cloned, because these tensors map the file: whoever cuts it off later would take the process with it.
            tensors = {name: file.get_tensor(name).clone() for name in detector.state_dict()}
    except SafetensorError as error:
        raise InputError(f"{path}: {_what_else(start, printable(str(error), 200))}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if info.backbone_config is not None:  # only now that its size is known to be the file's: the library has own tables
        detector = Detector(*_description(info))
    detector.load_state_dict(tensors, assign=True)
    return detector.eval(), info


def _description(info: WeightsInfo) -> tuple[str, int, AnchorSet, BackboneConfig | None]:
    return info.size, len(info.class_names), info.anchors, info.backbone_config


def _refuse_pickle(path: Path, start: bytes) -> None:
    if start.startswith(b"PK\x03\x04"):
        what = "by content a zip, as torch.save writes it around a pickle"
    elif start.startswith(PICKLE_STARTS) or path.suffix.lower() in _PICKLE_SUFFIXES:
        what = "by content or name a pickle"
    else:
        return
    out = path.stem + ("-imported" if path.suffix == ".safetensors" else "") + ".safetensors"
    raise UnsafeFileError(
        f"{path}: {what}, which could run code when read, so it is not read; "
        "use a .safetensors file written by anchorite, or make one of a checkpoint of the original family by "
        f"anchorite import {shlex.quote(str(path))} {shlex.quote(out)}"
    )


def _what_else(start: bytes, reason: str) -> str:
    """What a file is that safetensors cannot read, as far as its start tells, and what to do."""
    if not start:
        return f"cut off or no safetensors file (it is empty); copy or download it again; {_WEIGHTS}"
    if start.startswith(b"version https://git-lfs"):
        return "no safetensors file but the pointer of Git LFS to one; fetch the file itself by git lfs pull"
    # UTF-8, cut anywhere, with white space as the only control characters. Of fewer than 8 bytes one cannot tell:
    # those are the length of a safetensors header, with zeros in it.
    text = start.decode("utf-8", "ignore").strip()
    is_whole = len(start) >= 8 and len(text.encode()) >= len(start.strip()) - 3
    if is_whole and all(letter.isprintable() or letter.isspace() for letter in text):
        page = text.lower().startswith(("<!doctype", "<html"))
        kind = "a web page, saved in place of a download" if page else f"a text that begins with {shorten(text, 40)}"
        return f"no safetensors file but {kind}; {_WEIGHTS}"
    if start.startswith(_IMAGE_STARTS):
        return f"no safetensors file but an image; the weights come first, then the images; {_WEIGHTS}"
    return f"cut off or no safetensors file ({reason}); copy or download it again; {_WEIGHTS}"


def _unreadable(path: Path, error: OSError) -> AnchoriteError:
    if isinstance(error, IsADirectoryError):
        inside = path / "best.safetensors"
        what = inside if inside.is_file() else "the path of a .safetensors file"
        return InputError(f"{path}: a folder, no weight file; give {what}")
    message = f"{path}: cannot be read: {error.strerror or error}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        where = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
        return InputError(f"{message}{where}; give the path of a .safetensors file; nothing is ever downloaded")
    return StorageError(f"{message}; check the permissions and the disk")


def _read_info(path: Path, metadata: Mapping[str, str]) -> WeightsInfo:
    if _METADATA_KEY not in metadata:
        raise InputError(
            f"{path}: no metadata {_METADATA_KEY!r}, so not a weight file of anchorite (it has "
            f"{shorten(sorted(metadata)[:_NUM_SHOWN], 200)}); give a run's best.safetensors or last.safetensors"
        )
    try:
        header = _Header.read(json.loads(metadata[_METADATA_KEY]))
        return header.info(header.backbone)
    except (ValueError, RecursionError) as error:  # json.JSONDecodeError, too
        raise InputError(f"{path}: metadata {_METADATA_KEY!r}: {printable(str(error), 1200)}") from error


def _check_tensors(path: Path, expected: Mapping[str, Tensor], file: Any) -> None:
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{printable(name, 100)} is unknown" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        wanted = f"{'F32' if expected[name].is_floating_point() else 'I64'} {list(expected[name].shape)}"
        is_now = f"{found[name].get_dtype()} {found[name].get_shape()}"
        if is_now != wanted:
            faults.append(f"{name} is {printable(is_now, 70)} instead of {wanted}")
    if faults:
        shown = "; ".join(sorted(faults)[:_NUM_SHOWN])
        raise InputError(f"{path}: {len(faults)} tensors do not fit its detector: {shown}")
