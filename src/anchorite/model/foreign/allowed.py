"""The globals that a checkpoint of the original family may name, and what each stands for here: never the thing itself.

A pickle asks for functions and classes by name. Nothing is imported for it: a name becomes a `Global`, a plain value
that says what the machine does where the pickle calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from anchorite.errors import UnsafeFileError

_SHOWN_LENGTH = 120

STORAGE_TYPES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""torch's names of storages, and the type of number that each holds."""


class Kind(Enum):
    """What a global stands for."""

    STORAGE_TYPE = auto()
    TENSOR = auto()
    PARAMETER = auto()
    MAPPING = auto()
    COLLECTION = auto()
    SIZE = auto()
    OBJECT = auto()  # keeps its state
    FORGOTTEN = auto()  # its arguments and its state are dropped


@dataclass(frozen=True)
class Global:
    """A name that the pickle asked for, and the kind of value that comes of it."""

    module: str
    name: str
    kind: Kind


_EXACT = {
    ("collections", "OrderedDict"): Kind.MAPPING,
    ("__builtin__", "set"): Kind.COLLECTION,
    ("builtins", "set"): Kind.COLLECTION,
    ("torch._utils", "_rebuild_tensor_v2"): Kind.TENSOR,
    ("torch._utils", "_rebuild_parameter"): Kind.PARAMETER,
    ("torch", "Size"): Kind.SIZE,
    ("argparse", "Namespace"): Kind.OBJECT,
    # What a model is wrapped in for training on several devices: it holds the model as its layer "module".
    ("torch.nn.parallel.data_parallel", "DataParallel"): Kind.OBJECT,
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): Kind.OBJECT,
    # A score, a date's text or a path beside the weights, as NumPy, Python 2's protocol and pathlib store them.
    ("numpy", "dtype"): Kind.FORGOTTEN,
    ("numpy.core.multiarray", "scalar"): Kind.FORGOTTEN,
    ("numpy._core.multiarray", "scalar"): Kind.FORGOTTEN,
    ("_codecs", "encode"): Kind.FORGOTTEN,
    ("pathlib", "Path"): Kind.FORGOTTEN,
    ("pathlib", "PosixPath"): Kind.FORGOTTEN,
    ("pathlib", "WindowsPath"): Kind.FORGOTTEN,
    ("torch", "device"): Kind.FORGOTTEN,
} | {("torch", name): Kind.STORAGE_TYPE for name in STORAGE_TYPES}

# By where a function lies, or lay in Python 2, whose names the protocol of torch.save keeps to.
_BETTER_KNOWN = {"posix": "os", "nt": "os", "__builtin__": "builtins", "commands": "subprocess", "copy_reg": "copyreg"}

_MODULES_OF_CLASSES = ("models.yolo", "models.common")
_TORCH_LAYERS = "torch.nn.modules."


def allowed_global(module: Any, name: Any) -> Global:
    """The global, if it is one of a checkpoint of the family; else UnsafeFileError naming it."""
    module, name = str(module), str(name)
    kind = _EXACT.get((module, name))
    if kind is None and _is_layer_class(module, name):
        kind = Kind.OBJECT
    if kind is not None:
        return Global(module, name, kind)
    # A layer whose forward was replaced by another of its methods is stored with a call of getattr.
    fused = "; a model that was fused before it was saved asks for it: give the checkpoint from before that"
    why = fused if name == "getattr" and _BETTER_KNOWN.get(module, module) == "builtins" else ""
    known_as = f" ({shown(f'{_BETTER_KNOWN[module]}.{name}')})" if module in _BETTER_KNOWN else ""
    raise UnsafeFileError(
        f"asks for {shown(f'{module}.{name}')}{known_as}, which could run code; nothing of it was run{why}"
    )


def shown(text: str) -> str:
    """A text out of the file, fit for a message: printable ASCII on one line, not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN_LENGTH])
    return plain.encode("ascii", "backslashreplace").decode() + ("..." if len(text) > _SHOWN_LENGTH else "")


def _is_layer_class(module: str, name: str) -> bool:
    """Whether it is called like a class of layers; a dot in `name` would reach for an attribute of one."""
    known = module in _MODULES_OF_CLASSES or module.startswith(_TORCH_LAYERS)
    return known and name.isidentifier() and name[0].isupper()
