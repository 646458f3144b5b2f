"""Programs of torch.export in a file (.pt2): for C++ and compilers; loading one trusts its writer."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.export.exported import ExportedRuntime
from anchorite.export.metadata import ExportInfo, to_texts

if TYPE_CHECKING:
    from torch.export import ExportedProgram

METADATA_FILE = "anchorite.json"
"""Name of the file inside a .pt2 that holds our metadata as one JSON object of texts."""


def program_bytes(program: ExportedProgram, info: ExportInfo) -> bytes:
    """The bytes of a .pt2 file."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(to_texts(info), sort_keys=True)})
    return file.getvalue()


def program_runtime(path: object, content: bytes, info: ExportInfo) -> ExportedRuntime:
    """A .pt2 file that this very process has written, ready to run.

    Never for a file from elsewhere: torch.export.load may unpickle what it finds, so prediction does not take .pt2.
    """
    module = torch.export.load(io.BytesIO(content)).module()

    def compute(images: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(images))]

    return ExportedRuntime(path, info, "torch.export cpu", compute)
