"""The errors that a user can cause or must act on, each with the exit code of the command line.

They are `ValueError`s, so that library users can catch them as usual; the command line prints their message alone
(no traceback unless --debug) and exits with `exit_code`. A message names file, line, value and remedy.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

FROM_RANK = "from rank "
"""Begins the note on an error that one rank alone has met; an error without it is met by all ranks alike."""


def accepts_iou_limit(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """A decorator: the keyword `iou_threshold` is accepted by its earlier name `iou_limit` as well."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        if "iou_limit" in kwargs:
            kwargs["iou_threshold"] = kwargs.pop("iou_limit")
        return function(*args, **kwargs)

    return call


class AnchoriteError(ValueError):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 2


class InputError(AnchoriteError):
    """Bad input or usage: a label, a recipe key, a path, a flag."""


class DivergedError(AnchoriteError):
    """Training diverged: loss or gradients stayed non-finite."""

    exit_code = 3


class StorageError(AnchoriteError):
    """The disk or a permission prevented it; no existing file was harmed."""

    exit_code = 4


class NoMemoryError(AnchoriteError):
    """Memory ran out, or would; what is on disk is unchanged, and a run can be resumed."""

    exit_code = 4


class UnsafeFileError(AnchoriteError):
    """A file was refused because reading it could run code or exhaust memory."""

    exit_code = 5


class WorkerError(AnchoriteError):
    """A data worker or a rank died, hung or raised."""

    exit_code = 6


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's and NumPy's error, CUDA's, the system's, or that of torch's CPU allocator."""
    if isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        told = str(error)
        return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in told or "_ALLOC_FAILED" in told
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


class ReportedByPeer(WorkerError):
    """Another rank has reported the error that ends this one already; exit_code is that of the cause."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("reported by another rank")
        self.exit_code = exit_code


def import_extra(package: str, extra: str) -> Any:
    """A package that only an extra of ours installs, imported; InputError with the remedy where it is missing.

    Packages that would report their use over the network are told not to, unless the user's environment says otherwise.
    """
    for variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):  # each is read when its package is loaded
        os.environ.setdefault(variable, "1")
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"this needs the package {package} ({error}); install it: pip install 'anchorite[{extra}]'"
        ) from error
