"""Starts the process that reads a checkpoint, and checks what it answers. Nothing of the file is run in either."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from anchorite.errors import AnchoriteError, InputError, UnsafeFileError
from anchorite.model.foreign.reader import MAX_ANSWER_BYTES, SECONDS_LIMIT

WAIT_SECONDS = 600
"""Longest wait for the process, whose time on the processor is limited by itself: the disk may be slow."""

# Isolated, so that no variable, no folder and no start-up file of the user's decides what it imports; the standard
# library comes first, then the folder that this package lies in.
_START = "import sys; sys.path.append(sys.argv[1]); from anchorite.model.foreign.reader import main; main()"
_PACKAGE_FOLDER = Path(__file__).resolve().parents[3]
_REFUSALS: dict[str, type[AnchoriteError]] = {error.__name__: error for error in (InputError, UnsafeFileError)}

Count = Annotated[int, Field(ge=0)]


class TensorPlace(BaseModel):
    """Where the file has a tensor; see `contents.Place`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dtype: str
    shape: list[Count]
    strides: list[Count]
    offset: Count
    first_byte: Count
    num_bytes: Count
    crc: Count


class Found(BaseModel):
    """What a checkpoint holds.

    part: "ema" or "model", whichever is described; tensors by foreign name; layers: class and settings by foreign path;
    strides: the tensor that holds them; class_names and image_size: None where the checkpoint does not say.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    part: str
    has_both: bool
    tensors: dict[str, TensorPlace]
    layers: dict[str, dict[str, Any]]
    strides: TensorPlace | None
    class_names: list[str] | None
    image_size: int | None


class Answer(BaseModel):
    """What the process says: one of the two."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    found: Found | None = None
    refused: str | None = None
    message: str = ""


def read_in_sandbox(path: Path, file: BinaryIO) -> Found:
    """What the open file holds, read by a process with little memory that ends before this returns.

    Raises InputError when it is no checkpoint of the family or is damaged, and UnsafeFileError naming what would run
    code, or take more memory or time than it should.
    """
    file.seek(0)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _START, str(_PACKAGE_FOLDER)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnsafeFileError(f"{path}: was not read within {WAIT_SECONDS} s; nothing of it was run") from error
    if done.returncode:
        raise UnsafeFileError(f"{path}: {_ending(done.returncode)}; nothing of it was run")
    answer = parsed_answer(path, done.stdout)
    if answer.found is None:
        raise _REFUSALS.get(answer.refused or "", UnsafeFileError)(f"{path}: {answer.message}")
    return answer.found


def parsed_answer(path: Path, text: bytes) -> Answer:
    """The answer in JSON, checked; UnsafeFileError when it is none."""
    if len(text) <= MAX_ANSWER_BYTES:
        try:
            return Answer.model_validate(json.loads(text))  # not by pydantic, which refuses half a surrogate pair
        except (ValueError, RecursionError):
            pass
    raise UnsafeFileError(f"{path}: was read, but what came of it is not understood; nothing of it was run")


def _ending(code: int) -> str:
    # Python's Windows has no such signal, nor the limit that sends it.
    if hasattr(signal, "SIGXCPU") and code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes more than {SECONDS_LIMIT} s of processor time, or more memory than there is, to read"
    return f"the process that read it ended with code {code}"
