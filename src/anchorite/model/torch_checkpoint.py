"""Import of training checkpoints (.pt) of the original family, without running anything of them.

A process of its own, with limited memory and time, checks the zip and every global that the pickle names, then reads it
by torch.load(weights_only=True) with inert stand-ins for the classes of layers, and answers with the bytes of a weight
file of ours. Only that answer, read like any other weight file, reaches the process that asked.

Legend: L levels, A anchors per level, K classes. Foreign names are those of the checkpoint's layers and tensors.
"""

from __future__ import annotations

import json
import os
import pickletools
import signal
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from torch import Tensor, nn

from anchorite.anchors import AnchorSet
from anchorite.errors import AnchoriteError, InputError, StorageError, UnsafeFileError
from anchorite.model.blocks import Bottleneck
from anchorite.model.detector import Detector
from anchorite.model.sizes import FIRST_LEVEL, SIZES, plan
from anchorite.model.weights import MAX_IMAGE_SIZE, WeightsInfo, load_weights, weight_file_bytes

MEMORY_LIMIT_BYTES = 512 << 20
"""Address space for reading, beside that of the libraries and one mapping of the file."""
SECONDS_LIMIT = 60
"""Processor time of the reading process; torch's import takes two or three seconds of it."""
WAIT_SECONDS = 600
"""Longest wait for the process, whose processor time has a limit of its own: the disk may be slow."""
MAX_FILE_BYTES = 4 << 30
"""Longest file that is read: the largest size with its optimizer's state in float32 takes half of it."""
MAX_PICKLE_BYTES = 16 << 20
"""Longest pickle within it; that of size n takes 88 kB."""
MAX_STEPS = 1_000_000
"""Most instructions of a pickle; that of size n takes 36 000."""
MAX_RECORDS = 20_000
MAX_LAYERS = 20_000

_BYTES_PER_FILE_BYTE = 10  # memory for tensors: float32 copies of half precision, twice more while they are written
_MAX_DEPTH, _MAX_CHILDREN = 12, 1_000
_MAX_CLASSES, _MAX_NAME_LENGTH = 10_000, 200
_NUM_SHOWN, _SHOWN_LENGTH = 5, 120
_AGAIN = "copy or download it again"
_PARTS = ("ema", "model")  # where a checkpoint keeps models, the average over training first

_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_NUMBERS = ("Half", "BFloat16", "Float", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_BUILT_BY_TORCH = {("torch", name) for name in (*(f"{kind}Storage" for kind in _NUMBERS), "Size", "device")} | {
    ("collections", "OrderedDict"),
    ("__builtin__", "set"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("_codecs", "encode"),
}
_STAND_INS = {
    ("argparse", "Namespace"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),  # holds the model as its layer "module"
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    *(("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath")),
}
# Where a function is today, by where Python 2 had it, whose names the protocol of torch.save uses.
_TODAY = {"posix": "os", "nt": "os", "__builtin__": "builtins", "commands": "subprocess", "copy_reg": "copyreg"}
_INSTRUCTIONS = frozenset((
    "PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID", "MARK", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST",
    "EMPTY_DICT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT",
))  # fmt: skip
"""What torch.save writes and torch.load(weights_only=True) reads."""

_KNOWN_LAYERS = frozenset((
    "Model", "DetectionModel", "Sequential", "ModuleList", "Conv", "Conv2d", "BatchNorm2d", "SiLU", "C3", "Bottleneck",
    "SPPF", "MaxPool2d", "Upsample", "Concat", "Detect",
))  # fmt: skip
# The settings that change what a layer computes and that its tensors do not show, with the only value where it is one.
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "Conv2d": {"stride": ..., "padding": ..., "dilation": 1, "groups": 1, "padding_mode": "zeros"},
    "BatchNorm2d": {"eps": ...},
    "Bottleneck": {"add": ...},
    "MaxPool2d": {"kernel_size": 5, "stride": 1, "padding": 2, "dilation": 1},
    "Upsample": {"size": None, "scale_factor": 2.0, "mode": "nearest"},
    "Concat": {"d": 1},
}
_REPEATED_BUFFER = "anchor_grid"  # written by early versions; the same numbers as the anchors'


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A detector from a foreign checkpoint, float32 on the CPU and in evaluation mode.

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


# In the process that asks

# Isolated, so that no variable, no folder and no start-up file of the user's decides what it imports.
_START = "import sys; sys.path += sys.argv[2:]; from anchorite.model.torch_checkpoint import main; main(sys.argv[1])"


def import_checkpoint(source: Path) -> ImportedCheckpoint:
    """The detector of a checkpoint (.pt) of the original family, of which nothing is executed.

    Raises UnsafeFileError, naming what it asks for or the excess, for a file that could run code or exhaust memory;
    InputError when it is damaged, no such checkpoint, or of another architecture; StorageError when it cannot be read.
    """
    try:
        if not stat.S_ISREG(source.stat().st_mode):  # not a folder, nor a pipe that would never end
            raise InputError(f"{source}: not a file; give a .pt file of the original family")
        with source.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{source}: no such file; give a .pt file of the original family") from error
    except OSError as error:
        raise StorageError(
            f"{source}: cannot be read: {error.strerror or error}; check the permissions and the disk"
        ) from error
    first_line, _, weights = read_in_sandbox(source).partition(b"\n")
    unclear = UnsafeFileError(f"{source}: what came of reading it is not understood; nothing of it was run")
    try:
        told = json.loads(first_line)
        refusal = f"{source}: {told['message']}" if "refused" in told else ""
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise unclear from error
    if refusal:
        raise (InputError if told["refused"] == InputError.__name__ else UnsafeFileError)(refusal)
    try:
        with tempfile.TemporaryDirectory(prefix="anchorite-") as folder:
            file = Path(folder) / "imported.safetensors"
            file.write_bytes(weights)
            detector, info = load_weights(file)
        imported = ImportedCheckpoint(detector, info, **told)
    except (InputError, TypeError) as error:
        raise unclear from error
    detector.requires_grad_(True)
    return imported


def read_in_sandbox(path: Path) -> bytes:
    """What `answer` says of the file, by a process with little memory that ends before this returns.

    Raises UnsafeFileError when it takes more memory or time than it should.
    """
    folders = [folder for folder in sys.path if Path(folder).is_absolute() and Path(folder) != Path.cwd()]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _START, str(path.absolute()), *folders],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnsafeFileError(f"{path}: was not read within {WAIT_SECONDS} s; nothing of it was run") from error
    if done.returncode:
        stopped = hasattr(signal, "SIGXCPU") and done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        ending = (
            f"takes more than {SECONDS_LIMIT} s of processor time, or more memory than there is, to read"
            if stopped
            else f"the process that read it ended with code {done.returncode}"
        )
        raise UnsafeFileError(f"{path}: {ending}; nothing of it was run")
    return done.stdout


# In the process that reads: limits, the zip, the pickle


def main(path: str) -> None:
    """Read the checkpoint under limits; write to the standard output what it holds, or why it is refused."""
    torch.set_num_threads(1)
    allow_tensors = _limit_resources(min(Path(path).stat().st_size, MAX_FILE_BYTES))
    sys.stdout.buffer.write(answer(Path(path), allow_tensors))
    sys.stdout.buffer.flush()
    os._exit(0)  # without taking apart, object by object, what a hostile file had put together


def answer(path: Path, allow_tensors: Callable[[], None] = lambda: None) -> bytes:
    """One line of JSON, and a weight file: the facts of `ImportedCheckpoint`, or the kind and message of a refusal.

    allow_tensors: called when all is known to be in order, before memory is taken for the tensors.
    """
    try:
        found = _read(path)
        allow_tensors()
        detector, info, facts = _build(found)
        return json.dumps(facts).encode() + b"\n" + weight_file_bytes(detector, info)
    except AnchoriteError as error:
        kind = InputError if isinstance(error, InputError) else UnsafeFileError
        return json.dumps({"refused": kind.__name__, "message": str(error)}).encode()
    except MemoryError:
        excess = f"takes more than {MEMORY_LIMIT_BYTES >> 20} MB of memory to read; nothing of it was run"
    except RecursionError:
        excess = "is nested too deeply to read; nothing of it was run"
    return json.dumps({"refused": UnsafeFileError.__name__, "message": excess}).encode()


def _limit_resources(num_file_bytes: int) -> Callable[[], None]:
    """Limit memory, time and files written; returns what allows more memory, for copies of tensors of a file as long.

    Python's Windows has no such limits: there, those on sizes and steps must do.
    """
    try:
        import resource

        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return lambda: None
    most = in_use + MEMORY_LIMIT_BYTES + _BYTES_PER_FILE_BYTE * num_file_bytes
    limits = [
        (resource.RLIMIT_AS, in_use + MEMORY_LIMIT_BYTES + num_file_bytes, most),
        (resource.RLIMIT_CPU, SECONDS_LIMIT, SECONDS_LIMIT),
        (resource.RLIMIT_FSIZE, 0, 0),  # no file of any length can be written
        (resource.RLIMIT_CORE, 0, 0),
    ]
    for kind, soft, hard in limits:
        _, allowed = resource.getrlimit(kind)
        if allowed != resource.RLIM_INFINITY:
            soft, hard = min(soft, allowed), min(hard, allowed)
        resource.setrlimit(kind, (soft, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)


@dataclass(frozen=True)
class _Found:
    """What a checkpoint holds: tensors by foreign name, classes and settings of layers by foreign path."""

    part: str
    has_both: bool
    tensors: dict[str, Tensor]
    layers: dict[str, dict[str, Any]]
    strides: list[float] | None
    class_names: list[str] | None
    image_size: int | None


def _read(path: Path) -> _Found:
    """Raises InputError when it is no checkpoint of the family or damaged, UnsafeFileError when it is hostile."""
    _refuse_other_formats(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked_entries(archive.infolist(), path.stat().st_size)
            order = entries.get("byteorder")
            if order and (order.file_size > 16 or archive.read(order).strip() != b"little"):
                raise InputError("was saved on a big-endian machine; save it again on a little-endian one")
            pickled = archive.read(entries["data.pkl"])
    except KeyError as error:
        raise InputError(
            f"a zip without {error.args[0]}, so no checkpoint; give a .pt file of the original family"
        ) from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError) as error:
        if isinstance(error, AnchoriteError):
            raise
        raise InputError(f"cut off or damaged ({shown(str(error))}); {_AGAIN}") from error
    wanted = _checked_globals(pickled)
    stand_ins: list[Any] = [
        (type(name, (StandIn,), {"__module__": module}), f"{module}.{name}") for module, name in wanted
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RecursionError:
        raise
    except (UnpicklingError, RuntimeError) as error:
        reason = shown(str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0])
        if "PytorchStreamReader" in str(error):  # a record is missing
            raise InputError(f"damaged ({reason}); {_AGAIN}") from error
        raise UnsafeFileError(f"asks for what torch.load refuses ({reason}); nothing of it was run") from error
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, EOFError) as error:
        raise InputError(f"its pickle is damaged ({shown(str(error))}); {_AGAIN}") from error
    return _described(checkpoint, {(entry.file_size, entry.CRC) for entry in entries.values()}, path.stat().st_size)


def _refuse_other_formats(path: Path) -> None:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise InputError(f"is empty; {_AGAIN}")
    if num_bytes > MAX_FILE_BYTES:
        raise UnsafeFileError(f"takes {num_bytes} bytes, more than the {MAX_FILE_BYTES} that are read")
    if start.startswith(_LEGACY_START):
        raise UnsafeFileError(
            "in torch's format from before version 1.6, one pickle without a zip, which is not read; "
            "where you trust it, save it again with a newer torch"
        )
    if start.startswith(_PICKLE_STARTS):
        raise UnsafeFileError(
            "a bare pickle, which could run code when read, so it is not read; give the .pt file that torch.save wrote"
        )
    if start[8:9] == b"{":
        raise InputError("by content a safetensors file already; use it as it is")
    if not start.startswith(b"PK\x03\x04"):
        raise InputError("no checkpoint: it does not begin as a zip does; give a .pt file of the original family")


def _checked_entries(entries: Sequence[zipfile.ZipInfo], num_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The records by their names within the one folder that they are all in; nothing is unpacked.

    What torch.save writes is stored as it is, so no record takes more memory than the file is long.
    """
    inside = {entry.filename.partition("/")[2]: entry for entry in entries}
    if any(name.startswith(("code/", "constants.pkl")) for name in inside):
        raise UnsafeFileError(
            "a TorchScript archive, which holds code; give the checkpoint that training wrote, not an exported model"
        )
    if len(entries) > MAX_RECORDS:
        raise UnsafeFileError(f"holds {len(entries)} records, more than the {MAX_RECORDS} that are read")
    for entry in entries:
        name = shown(entry.orig_filename)
        parts = entry.orig_filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or parts[0][1:] == ":" or "\0" in entry.orig_filename:
            raise UnsafeFileError(f"holds a record {name}, which leads out of it; nothing was unpacked")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise UnsafeFileError(
                f"its record {name} would grow from {entry.compress_size} to {entry.file_size} bytes, "
                "and what torch.save writes is never compressed; nothing was unpacked"
            )
    total = sum(entry.file_size for entry in entries)
    if total > num_bytes:
        raise UnsafeFileError(f"its records claim {total} bytes, more than the {num_bytes} of the file")
    if len({entry.filename.partition("/")[0] for entry in entries}) != 1:
        raise InputError("a zip of other things than one checkpoint; give a .pt file of the original family")
    if len(inside) != len(entries):
        raise InputError(f"damaged: it holds a record twice; {_AGAIN}")
    if "data.pkl" in inside and inside["data.pkl"].file_size > MAX_PICKLE_BYTES:
        size = inside["data.pkl"].file_size
        raise UnsafeFileError(f"its data.pkl takes {size} bytes, more than the {MAX_PICKLE_BYTES} that are read")
    return inside


def _checked_globals(pickled: bytes) -> set[tuple[str, str]]:
    """Module and name of what needs a stand-in, of a pickle that names nothing but what checkpoints of the family do.

    Raises UnsafeFileError naming any other global, and for instructions that torch.save never writes. This is stricter
    than torch's own list, which has functions that no checkpoint of the family calls.
    """
    wanted, texts, other = set(), deque([""] * 2, maxlen=2), ""
    try:
        for step, (instruction, argument, _) in enumerate(pickletools.genops(pickled)):
            if step >= MAX_STEPS:
                raise UnsafeFileError(f"its pickle has more than {MAX_STEPS} steps; nothing of it was run")
            if instruction.name in ("GLOBAL", "STACK_GLOBAL"):
                module, name = argument.split(" ", 1) if argument else texts
                if _needs_stand_in(module, name):
                    wanted.add((module, name))
            elif isinstance(argument, str):
                texts.append(argument)
            if instruction.name not in _INSTRUCTIONS or (instruction.name == "PROTO" and argument != 2):
                other = other or instruction.name
    except AnchoriteError:
        raise
    except ValueError as error:
        raise InputError(f"its pickle is cut off or damaged ({shown(str(error))}); {_AGAIN}") from error
    if other:
        raise UnsafeFileError(
            f"its pickle has an instruction {other}, which torch.save does not write in its own protocol, 2; "
            "nothing of it was run"
        )
    return wanted


def _needs_stand_in(module: str, name: str) -> bool:
    """False for what torch builds itself; UnsafeFileError naming a global that no checkpoint of the family names."""
    if (module, name) in _BUILT_BY_TORCH:
        return False
    is_layer = module in ("models.yolo", "models.common") or module.startswith("torch.nn.modules.")
    # A dot in the name would reach for an attribute.
    if (module, name) in _STAND_INS or (is_layer and name.isidentifier() and name[0].isupper()):
        return True
    today = _TODAY.get(module, module)
    known_as = f" ({shown(f'{today}.{name}')})" if today != module else ""
    # A layer whose forward was replaced by another of its methods is stored with a call of getattr.
    fused = "; a model that was fused before it was saved asks for it: give the checkpoint from before that"
    raise UnsafeFileError(
        f"asks for {shown(f'{module}.{name}')}{known_as}, which could run code; nothing of it was run"
        f"{fused if (today, name) == ('builtins', 'getattr') else ''}"
    )


class StandIn:
    """In place of an object of the file: takes any arguments, does nothing, and holds its state."""

    state: dict[str, Any]

    def __new__(cls, *_: Any) -> Self:
        """With an empty state until the pickle gives it one."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Take a state that is a dict; that of values which are not needed is dropped."""
        if isinstance(state, dict):
            self.state = state


def shown(text: str) -> str:
    """A text out of the file, fit for a message: printable ASCII on one line, not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN_LENGTH])
    return plain.encode("ascii", "backslashreplace").decode() + ("..." if len(text) > _SHOWN_LENGTH else "")


# In the process that reads: what the checkpoint holds


def _described(checkpoint: Any, records: Collection[tuple[int, int]], num_bytes: int) -> _Found:
    """records: size in bytes and CRC-32 of each record of the zip; num_bytes: of the file."""
    if _is_state_dict(checkpoint) and not any(part in checkpoint for part in _PARTS):
        raise InputError(_about_state_dict("it", checkpoint))
    if not isinstance(checkpoint, dict):
        raise InputError("no training checkpoint: not a dict with a model; give the .pt file that training wrote")
    part = next((part for part in _PARTS if checkpoint.get(part) is not None), None)
    if part is None:
        keys = ", ".join(_named(key) for key in list(checkpoint)[:10])
        raise InputError(f"no training checkpoint: no model in it, only {keys or 'nothing'}")
    model = _unwrapped(checkpoint[part])
    if _is_state_dict(model):
        raise InputError(_about_state_dict(f"its {part}", model))
    if not isinstance(model, StandIn):
        raise InputError(f"its {part} is a {type(model).__name__}, not a model of the original family")
    layers: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    strides = None
    for path, layer in _layers(model):
        layers[path] = {"kind": type(layer).__name__, **_settings(layer)}
        for name, tensor in _own_tensors(layer):
            full_name = f"{path}.{name}" if path else name
            tensors[full_name] = _checked_tensor(full_name, tensor, records)
        if len(tensors) > MAX_LAYERS or sum(tensor.nbytes for tensor in tensors.values()) > num_bytes:
            raise UnsafeFileError(f"holds more than {MAX_LAYERS} tensors, or more data than the file; nothing was read")
        if type(layer).__name__ == "Detect" and isinstance(layer.state.get("stride"), Tensor):
            strides = _checked_tensor("stride", layer.state["stride"], records).flatten()[:100].tolist()
    return _Found(
        part,
        all(checkpoint.get(each) is not None for each in _PARTS),
        tensors,
        layers,
        strides or None,
        _class_names(model.state.get("names")),
        _image_size(checkpoint.get("opt")),
    )


def _checked_tensor(name: str, tensor: Tensor, records: Collection[tuple[int, int]]) -> Tensor:
    """The tensor, of which is known that it is all of a record of the zip, undamaged."""
    storage = tensor.untyped_storage()
    num_bytes, num_stored = tensor.numel() * tensor.element_size(), storage.nbytes()
    if num_bytes > num_stored:
        raise UnsafeFileError(
            f"{shown(name)} has {tensor.numel()} entries of shape {_listed(tensor.shape)}, but its storage only "
            f"{num_stored} bytes; it was not made"
        )
    content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    if num_bytes != num_stored or (num_stored, zlib.crc32(content.data)) not in records:
        raise InputError(f"the data of {shown(name)} is damaged: it is no whole record with its checksum; {_AGAIN}")
    return tensor.detach()


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _about_state_dict(what: str, tensors: Mapping[Any, Tensor]) -> str:
    """What a state dict is, what it lacks, and what to give instead."""
    names = [str(name) for name in tensors]
    is_wrapped = all(name.startswith("module.") for name in names)
    plain = {name.removeprefix("module.") if is_wrapped else name for name in names}
    facts = [f"{what} is a state dict: {len(names)} tensors by name, without class names and the layers' settings"]
    facts += ["its names begin with module., as after training on several devices"] if is_wrapped else []
    if "model.0.conv.weight" not in plain:
        facts.append(f"they are not named as the original family does, but {', '.join(map(shown, names[:3]))}")
    elif "model.0.conv.bias" in plain:
        facts.append("BatchNorm is folded into its convolutions")
    return f"{'; '.join(facts)}. Give the .pt file that training wrote (best.pt, last.pt), which holds the whole model"


def _unwrapped(model: Any) -> Any:
    """The model itself, where it is wrapped for training on several devices as the only layer, "module"."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(model, StandIn) or not type(model).__module__.startswith("torch.nn.parallel."):
            break
        layers = _children(model, "_modules")
        if [name for name, _ in layers] != ["module"] or any(True for _ in _own_tensors(model)):
            break
        model = layers[0][1]
    return model


def _layers(model: StandIn) -> Iterator[tuple[str, StandIn]]:
    """Every layer with its path, the model itself first, by "": outer ones before inner ones."""
    waiting: list[tuple[str, int, StandIn]] = [("", 0, model)]
    number = 0
    while waiting:
        path, depth, layer = waiting.pop()
        number += 1
        # Layers that hold each other, or the same one twice over and over, would never come to an end.
        if number + len(waiting) > MAX_LAYERS or depth > _MAX_DEPTH:
            raise UnsafeFileError(f"its layers go on beyond {MAX_LAYERS} or {_MAX_DEPTH} deep; nothing was read")
        yield path, layer
        for name, child in reversed(
            [(name, child) for name, child in _children(layer, "_modules") if child is not None]
        ):
            inner = f"{path}.{name}" if path else name
            if not isinstance(child, StandIn):
                raise InputError(f"its layer {shown(inner)} is a {type(child).__name__}; it is damaged")
            waiting.append((inner, depth + 1, child))


def _own_tensors(layer: StandIn) -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _children(layer, kind):
            if isinstance(tensor, Tensor):
                yield name, tensor
            elif tensor is not None:
                raise InputError(f"its tensor {shown(name)} is a {type(tensor).__name__}; it is damaged")


def _children(layer: StandIn, kind: str) -> list[tuple[str, Any]]:
    children = layer.state.get(kind, {})
    if isinstance(children, dict) and len(children) > _MAX_CHILDREN:
        raise UnsafeFileError(f"one of its layers holds {len(children)} others or tensors; nothing was read")
    if not isinstance(children, dict) or not all(type(key) is str and len(key) <= _MAX_NAME_LENGTH for key in children):
        raise InputError(f"its {shown(type(layer).__name__)} has {kind} that are none; it is damaged")
    return list(children.items())


def _settings(layer: StandIn) -> dict[str, Any]:
    """The settings that matter, and as "sources" the numbers of the layers that a numbered layer takes input from."""
    names = {name: name for name in _SETTINGS.get(type(layer).__name__, {})} | {"f": "sources"}
    return {ours: _plain(layer.state[name]) for name, ours in names.items() if name in layer.state}


def _plain(value: Any) -> Any:
    """Numbers, rows of numbers and texts; for anything else a word that fits nothing that is expected."""
    if isinstance(value, list | tuple) and len(value) < 10 and all(type(each) in (int, float) for each in value):
        return list(value)
    return value if type(value) in (int, float, bool, str, type(None)) else "?"


def _class_names(names: Any) -> list[str] | None:
    """K names from a list, or a dict by number; None where there are none."""
    if names is None:
        return None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise InputError("its class names are not numbered from 0 up; give a checkpoint with the names of training")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list | tuple) or len(names) > _MAX_CLASSES:
        raise InputError(f"its class names are no list of at most {_MAX_CLASSES}; it is damaged")
    if not all(type(name) in (str, int, float) and len(str(name)) <= _MAX_NAME_LENGTH for name in names):
        raise InputError(f"its class names are no texts of at most {_MAX_NAME_LENGTH} letters; it is damaged")
    return [str(name) for name in names]


def _image_size(options: Any) -> int | None:
    """The side in pixels that it was trained at, from the options of its training, where they have it."""
    values = options.state if isinstance(options, StandIn) else options
    if not isinstance(values, dict):
        return None
    size = values.get("imgsz", values.get("img_size"))
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if type(size) is int and 0 < size <= MAX_IMAGE_SIZE else None


def _named(value: Any) -> str:
    return shown(value) if isinstance(value, str) else type(value).__name__


def _listed(numbers: Sequence[int]) -> str:
    return shown(str(list(numbers[:8])))


# In the process that reads: the detector


def _build(found: _Found) -> tuple[Detector, WeightsInfo, dict[str, Any]]:
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
    facts = {
        "part": found.part,
        "has_both": found.has_both,
        "num_tensors": len(found.tensors),
        "names_are_stored": found.class_names is not None,
        "image_size_is_stored": found.image_size is not None,
    }
    return detector, WeightsInfo(size, tuple(class_names), anchors, image_size), facts


def _size(found: _Found) -> str:
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


def _anchors(found: _Found, size: str) -> AnchorSet:
    """The anchors in pixels, of the buffer (L, A, 2) in cells, and the size's strides, which must be the file's."""
    strides = plan(size).strides
    if found.strides is not None and found.strides != list(strides):
        raise InputError(f"predicts at strides {found.strides}; size {size} does at {list(strides)}")
    name = foreign_anchors_name(size)
    cells = found.tensors[name]
    if cells.ndim != 3 or len(cells) != len(strides) or cells.shape[2] != 2 or not 1 <= cells.shape[1] <= 100:
        raise InputError(
            f"{name} has the shape {_listed(cells.shape)} instead of {len(strides)} levels of (width, height)"
        )
    pixels = cells.double() * torch.tensor(strides, dtype=torch.float64).view(-1, 1, 1)
    return AnchorSet(tuple(tuple((w, h) for w, h in level) for level in pixels.tolist()), strides)


def _num_classes(found: _Found, size: str, num_anchors: int) -> int:
    name = foreign_names(f"head.predictors.p{FIRST_LEVEL}.bias", size)[0]
    bias = found.tensors.get(name)
    channels = len(bias) if bias is not None and bias.ndim else 0
    num_classes = channels // num_anchors - 5
    if channels % num_anchors or not 1 <= num_classes <= _MAX_CLASSES:
        raise InputError(
            f"{name} has {channels} channels, which are not 5 and 1 to {_MAX_CLASSES} classes for {num_anchors} anchors"
        )
    return num_classes


def _check_tensors(found: _Found, detector: Detector) -> None:
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
                faults.append(f"{name} has the shape {_listed(tensor.shape)} instead of {shape}")
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
        for name, value in {**_SETTINGS.get(layer["kind"], {}), **expected.get(path, {})}.items():
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


# Foreign names: by the number of the part in its list, where ours go by role


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
