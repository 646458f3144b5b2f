"""Import of training checkpoints (.pt) of the original family, without running anything of them.

A process of its own, with limited memory and time, checks the zip and every global that the pickle names, then reads it
by torch.load(weights_only=True) with inert stand-ins for the classes of layers, and answers with the bytes of a weight
file of ours. Only that answer, read like any other weight file, reaches the process that asked.

Legend: K classes. Foreign names are those of the checkpoint's layers and tensors.
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
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from torch import Tensor

from anchorite.errors import AnchoriteError, InputError, StorageError, UnsafeFileError
from anchorite.files import StrPath
from anchorite.model.detector import Detector
from anchorite.model.foreign_layout import SETTINGS, CheckpointContents, build_detector, listed, shown
from anchorite.model.weights import MAX_IMAGE_SIZE, PICKLE_STARTS, WeightsInfo, load_weights, weight_file_bytes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEMORY_LIMIT_BYTES = 512 << 20  # address space for reading, beside that of the libraries and a mapping of the file
SECONDS_LIMIT = 60  # of processor time for reading; torch's import takes two or three seconds of it
WAIT_SECONDS = 600  # for the process, whose processor time has a limit of its own: the disk may be slow
MAX_FILE_BYTES = 4 << 30  # the largest size with its optimizer's state in float32 takes half of it
MAX_STEPS = 1_000_000  # instructions of a pickle; that of size n takes 36 000
MAX_PICKLE_BYTES = 16 << 20  # that of size n takes 88 kB
MAX_LAYERS = 20_000  # of a model; also its tensors, and the records of the file
_BYTES_PER_FILE_BYTE = 10  # memory for tensors: float32 copies of half precision, twice more while they are written
_MAX_DEPTH, _MAX_CHILDREN = 12, 1_000
_GIVE = "give a .pt file of the original family"
_AGAIN = "copy or download it again"
_NOTHING = "nothing of it was run"
_PARTS = ("ema", "model")  # where a checkpoint keeps models, the average over training first

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


def import_checkpoint(source: StrPath) -> ImportedCheckpoint:
    """The detector of a checkpoint (.pt) of the original family, of which nothing is executed.

    Raises UnsafeFileError, naming what it asks for or the excess, for a file that could run code or exhaust memory;
    InputError when it is damaged, no such checkpoint, or of another architecture; StorageError when it cannot be read.
    """
    source = Path(source)
    try:
        if not stat.S_ISREG(source.stat().st_mode):  # not a folder, nor a pipe that would never end
            raise InputError(f"{source}: not a file; {_GIVE}")
        source.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{source}: no such file; {_GIVE}") from error
    except OSError as error:
        raise StorageError(
            f"{source}: cannot be read: {error.strerror or error}; check the permissions and the disk"
        ) from error
    first_line, _, weights = read_in_sandbox(source).partition(b"\n")
    try:
        told = json.loads(first_line)
        if "refused" not in told:
            with tempfile.TemporaryDirectory(prefix="anchorite-") as folder:
                file = Path(folder) / "imported.safetensors"
                file.write_bytes(weights)
                detector, info = load_weights(file)
            detector.requires_grad_(True)
            return ImportedCheckpoint(detector, info, **told)
        refusal = f"{source}: {told['message']}"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsafeFileError(
            f"{source}: the answer of the process that read it is not understood; {_NOTHING}"
        ) from error
    raise (InputError if told["refused"] == InputError.__name__ else UnsafeFileError)(refusal)


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
        raise UnsafeFileError(f"{path}: was not read within {WAIT_SECONDS} s; {_NOTHING}") from error
    if done.returncode:
        stopped = hasattr(signal, "SIGXCPU") and done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        ending = (
            f"takes more than {SECONDS_LIMIT} s of processor time, or more memory than there is, to read"
            if stopped
            else f"the process that read it ended with code {done.returncode}"
        )
        raise UnsafeFileError(f"{path}: {ending}; {_NOTHING}")
    return done.stdout


# In the process that reads: limits, the zip, the pickle


def main(path: str) -> None:
    """Read the checkpoint under limits; write to the standard output what it holds, or why it is refused."""
    torch.set_num_threads(1)
    _limit_resources(min(Path(path).stat().st_size, MAX_FILE_BYTES))
    sys.stdout.buffer.write(answer(Path(path)))
    sys.stdout.buffer.flush()
    os._exit(0)  # without freeing, object by object, what a hostile file had put together


def answer(path: Path) -> bytes:
    """One line of JSON, and a weight file: the facts of `ImportedCheckpoint`, or the kind and message of a refusal."""
    try:
        found = _read(path)
        soft, hard = (0, 0) if resource is None else resource.getrlimit(resource.RLIMIT_AS)
        if soft != hard:  # all is known to be in order: now memory for the tensors, too
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        detector, info = build_detector(found)
        facts = {
            "part": found.part,
            "has_both": found.has_both,
            "num_tensors": len(found.tensors),
            "names_are_stored": found.class_names is not None,
            "image_size_is_stored": found.image_size is not None,
        }
        return json.dumps(facts).encode() + b"\n" + weight_file_bytes(detector, info)
    except AnchoriteError as error:
        kind, refusal = InputError if isinstance(error, InputError) else UnsafeFileError, str(error)
    except MemoryError:
        kind, refusal = UnsafeFileError, f"takes more than {MEMORY_LIMIT_BYTES >> 20} MB of memory to read; {_NOTHING}"
    except RecursionError:
        kind, refusal = UnsafeFileError, f"is nested too deeply to read; {_NOTHING}"
    return json.dumps({"refused": kind.__name__, "message": refusal}).encode()


def _limit_resources(num_file_bytes: int) -> None:
    """Limit memory, time and files written; the hard limit on memory leaves room for copies of a file's tensors."""
    try:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # Windows has no such limits: there, those on sizes and steps must do
        return
    most = in_use + MEMORY_LIMIT_BYTES + num_file_bytes
    for kind, soft, hard in (
        (resource.RLIMIT_AS, most, most + (_BYTES_PER_FILE_BYTE - 1) * num_file_bytes),
        (resource.RLIMIT_CPU, SECONDS_LIMIT, SECONDS_LIMIT),
        (resource.RLIMIT_FSIZE, 0, 0),  # no file of any length can be written
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, allowed = resource.getrlimit(kind)
        if allowed != resource.RLIM_INFINITY:
            soft, hard = min(soft, allowed), min(hard, allowed)
        resource.setrlimit(kind, (soft, hard))


def _read(path: Path) -> CheckpointContents:
    """Raises InputError when it is no checkpoint of the family or damaged, UnsafeFileError when it is hostile."""
    num_bytes = path.stat().st_size
    _check_start(path, num_bytes)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked_entries(archive.infolist(), num_bytes)
            order = entries.get("byteorder")
            if order and (order.file_size > 16 or archive.read(order).strip() != b"little"):
                raise InputError("was saved on a big-endian machine; save it again on a little-endian one")
            pickled = archive.read(entries["data.pkl"])
            if damaged := archive.testzip():
                raise InputError(f"its record {shown(damaged)} is damaged: its checksum is wrong; {_AGAIN}")
    except AnchoriteError:
        raise
    except KeyError as error:
        raise InputError(f"a zip without {error.args[0]}, so no checkpoint; {_GIVE}") from error
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OverflowError) as error:  # RuntimeError: encrypted
        raise InputError(f"cut off or damaged ({shown(str(error))}); {_AGAIN}") from error
    stand_ins: list[Any] = [
        (type(name, (StandIn,), {"__module__": module}), f"{module}.{name}")
        for module, name in _checked_globals(pickled)
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RecursionError:
        raise
    except (UnpicklingError, RuntimeError) as error:
        reason = shown(str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0])
        if "PytorchStreamReader" in str(error):  # a record is missing
            raise InputError(f"damaged ({reason}); {_AGAIN}") from error
        raise UnsafeFileError(f"asks for what torch.load refuses ({reason}); {_NOTHING}") from error
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, EOFError) as error:
        raise InputError(f"its pickle is damaged ({shown(str(error))}); {_AGAIN}") from error
    return _contents(checkpoint, num_bytes)


def _check_start(path: Path, num_bytes: int) -> None:
    """Refuse other formats, told by the first bytes, and files too long to read."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise InputError(f"is empty; {_AGAIN}")
    if num_bytes > MAX_FILE_BYTES:
        raise UnsafeFileError(f"takes {num_bytes} bytes, more than the {MAX_FILE_BYTES} that are read")
    if start.startswith(PICKLE_STARTS):
        raise UnsafeFileError(
            "a bare pickle, as torch wrote it before version 1.6, which could run code when read, so it is not read; "
            "give the .pt file that torch.save wrote, or where you trust it, save it again with a newer torch"
        )
    if start[8:9] == b"{":
        raise InputError("by content a safetensors file already; use it as it is")
    if not start.startswith(b"PK\x03\x04"):
        raise InputError(f"no checkpoint: it does not begin as a zip does; {_GIVE}")


def _checked_entries(entries: Sequence[zipfile.ZipInfo], num_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The records by their names within the one folder that they are all in; nothing is unpacked."""
    inside = {entry.filename.partition("/")[2]: entry for entry in entries}
    if any(name.startswith(("code/", "constants.pkl")) for name in inside):
        raise UnsafeFileError(
            "a TorchScript archive, which holds code; give the checkpoint that training wrote, not an exported model"
        )
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
    num_pickled = inside["data.pkl"].file_size if "data.pkl" in inside else 0
    limits = ("records", len(entries), MAX_LAYERS), ("bytes of pickle", num_pickled, MAX_PICKLE_BYTES)
    for what, number, most in limits:
        if number > most:  # also where the process has no limits on memory and time
            raise UnsafeFileError(f"has {number} {what}, more than the {most} that are read; {_NOTHING}")
    total = sum(entry.file_size for entry in entries)
    if total > num_bytes:
        raise UnsafeFileError(f"its records claim {total} bytes, more than the {num_bytes} of the file")
    if len({entry.filename.partition("/")[0] for entry in entries}) != 1:
        raise InputError(f"a zip of other things than one checkpoint; {_GIVE}")
    if len(inside) != len(entries):
        raise InputError(f"damaged: it holds a record twice; {_AGAIN}")
    return inside


def _checked_globals(pickled: bytes) -> set[tuple[str, str]]:
    """Module and name of what needs a stand-in, of a pickle that names nothing but what checkpoints of the family do.

    Raises UnsafeFileError naming any other global. This is stricter than torch's own list, which has functions that no
    checkpoint of the family calls; instructions that torch.save never writes are left for torch to refuse.
    """
    wanted, texts = set(), deque([""] * 2, maxlen=2)
    try:
        for step, (instruction, argument, _) in enumerate(pickletools.genops(pickled)):
            if step >= MAX_STEPS:
                raise UnsafeFileError(f"its pickle has more than {MAX_STEPS} steps; {_NOTHING}")
            if instruction.name in ("GLOBAL", "STACK_GLOBAL"):
                module, name = argument.split(" ", 1) if argument else texts
                if _needs_stand_in(module, name):
                    wanted.add((module, name))
            elif isinstance(argument, str):
                texts.append(argument)
    except AnchoriteError:
        raise
    except ValueError as error:
        raise InputError(f"its pickle is cut off or damaged ({shown(str(error))}); {_AGAIN}") from error
    return wanted


def _needs_stand_in(module: str, name: str) -> bool:
    """False for what torch builds itself; UnsafeFileError naming a global that no checkpoint of the family names."""
    is_layer = module in ("models.yolo", "models.common") or module.startswith("torch.nn.modules.")
    # A dot in the name would reach for an attribute.
    if (module, name) in _STAND_INS or (is_layer and name.isidentifier() and name[0].isupper()):
        return True
    if (module, name) in _BUILT_BY_TORCH:
        return False
    today = _TODAY.get(module, module)
    known_as = f" ({shown(f'{today}.{name}')})" if today != module else ""
    # A layer whose forward was replaced by another of its methods is stored with a call of getattr.
    fused = "; a model that was fused before it was saved asks for it: give the checkpoint from before that"
    raise UnsafeFileError(
        f"asks for {shown(f'{module}.{name}')}{known_as}, which could run code; {_NOTHING}"
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


# In the process that reads: what the checkpoint holds


def _contents(checkpoint: Any, num_bytes: int) -> CheckpointContents:
    """What torch made of a file of so many bytes, checked."""
    if not isinstance(checkpoint, dict):
        raise InputError("no training checkpoint: not a dict with a model; give the .pt file that training wrote")
    part = next((part for part in _PARTS if checkpoint.get(part) is not None), None)
    if part is None:
        _refuse_state_dict("it", checkpoint)
        keys = ", ".join(shown(key) if isinstance(key, str) else type(key).__name__ for key in list(checkpoint)[:10])
        raise InputError(f"no training checkpoint: no model in it, only {keys or 'nothing'}")
    model = checkpoint[part]
    # Within what training on several devices wraps around it, whose only layer is the model.
    while isinstance(model, StandIn) and type(model).__module__.startswith("torch.nn.parallel."):
        inner = _held(model, "_modules")
        if list(inner) != ["module"] or _held(model, "_parameters") or _held(model, "_buffers"):
            break
        model = inner["module"]
    _refuse_state_dict(f"its {part}", model)
    if not isinstance(model, StandIn):
        raise InputError(f"its {part} is a {type(model).__name__}, not a model of the original family")
    layers: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    strides = None
    for number, (path, layer) in enumerate(_layers(model)):
        # Layers that hold each other, or the same one twice over and over, would never come to an end.
        if number > MAX_LAYERS or path.count(".") >= _MAX_DEPTH:
            raise UnsafeFileError(f"its layers go on beyond {MAX_LAYERS} or {_MAX_DEPTH} deep; nothing was read")
        kind = type(layer).__name__
        names = {name: name for name in SETTINGS.get(kind, {})} | {"f": "sources"}  # of the layers it has its input of
        settings = {ours: _plain(layer.state[name]) for name, ours in names.items() if name in layer.state}
        layers[path] = {"kind": kind, **settings}
        for name, tensor in {**_held(layer, "_parameters"), **_held(layer, "_buffers")}.items():
            full_name = f"{path}.{name}" if path else name
            tensors[full_name] = _checked_tensor(full_name, tensor)
        if len(tensors) > MAX_LAYERS or sum(tensor.nbytes for tensor in tensors.values()) > num_bytes:
            raise UnsafeFileError(f"holds more than {MAX_LAYERS} tensors, or more data than the file; nothing was read")
        if kind == "Detect" and isinstance(layer.state.get("stride"), Tensor):
            strides = _checked_tensor("stride", layer.state["stride"]).flatten()[:100].tolist()
    return CheckpointContents(
        part,
        all(checkpoint.get(each) is not None for each in _PARTS),
        tensors,
        layers,
        strides or None,
        _class_names(model.state.get("names")),
        _image_size(checkpoint.get("opt")),
    )


def _refuse_state_dict(what: str, value: Any) -> None:
    """Raise InputError for a state dict, saying what it lacks, and what to give instead."""
    if not isinstance(value, dict) or not value or not all(isinstance(each, Tensor) for each in value.values()):
        return
    names = [str(name) for name in value]
    is_wrapped = all(name.startswith("module.") for name in names)
    plain = {name.removeprefix("module.") if is_wrapped else name for name in names}
    facts = [f"{what} is a state dict: {len(names)} tensors by name, without class names and the layers' settings"]
    facts += ["its names begin with module., as after training on several devices"] if is_wrapped else []
    if "model.0.conv.weight" not in plain:
        facts.append(f"they are not named as the original family does, but {', '.join(map(shown, names[:3]))}")
    elif "model.0.conv.bias" in plain:
        facts.append("BatchNorm is folded into its convolutions")
    raise InputError(
        f"{'; '.join(facts)}. Give the .pt file that training wrote (best.pt, last.pt), which holds the whole model"
    )


def _layers(layer: StandIn, path: str = "") -> Iterator[tuple[str, StandIn]]:
    """Every layer with its path, the model itself first, by "": outer ones before inner ones."""
    yield path, layer
    for name, child in _held(layer, "_modules").items():
        yield from _layers(child, f"{path}.{name}" if path else name)


def _held(layer: StandIn, kind: str) -> dict[str, Any]:
    """The layers or tensors that a layer holds, by name."""
    held = layer.state.get(kind, {})
    if isinstance(held, dict) and len(held) > _MAX_CHILDREN:
        raise UnsafeFileError(f"one of its layers holds {len(held)} others or tensors; nothing was read")
    if not isinstance(held, dict) or not all(type(name) is str for name in held):
        raise InputError(f"its {shown(type(layer).__name__)} has {kind} that are none; it is damaged")
    for name, one in held.items():
        if not isinstance(one, StandIn if kind == "_modules" else Tensor) and one is not None:
            raise InputError(f"its {shown(name)}, of {kind}, is a {type(one).__name__}; it is damaged")
    return {name: one for name, one in held.items() if one is not None}


def _checked_tensor(name: str, tensor: Tensor) -> Tensor:
    """The tensor, which is all of its storage and no more."""
    num_bytes, num_stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if num_bytes > num_stored:
        raise UnsafeFileError(
            f"{shown(name)} has {tensor.numel()} entries of shape {listed(tensor.shape)}, but its storage only "
            f"{num_stored} bytes; it was not made"
        )
    if num_bytes != num_stored:
        raise InputError(f"{shown(name)} is only a part of what is stored for it; {_AGAIN}")
    return tensor.detach()


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
    if not isinstance(names, list | tuple) or not all(type(name) in (str, int, float) for name in names):
        raise InputError("its class names are no list of texts; it is damaged")
    return [str(name) for name in names]


def _image_size(options: Any) -> int | None:
    """The side in pixels that it was trained at, from the options of its training, where they have it."""
    values = options.state if isinstance(options, StandIn) else options
    if not isinstance(values, dict):
        return None
    size = values.get("imgsz", values.get("img_size"))
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if type(size) is int and 0 < size <= MAX_IMAGE_SIZE else None
