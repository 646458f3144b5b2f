"""The network as it is exported, and programs of torch.export (.pt2), for C++ and compilers.

Legend: B images, H, W of the input in pixels, N anchor cells of all levels, K classes.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anchorite.anchors import decode_level
from anchorite.boxes import cxcywh_to_xyxy
from anchorite.export.exported import ExportedRuntime, ExportInfo, as_input, to_texts
from anchorite.model import Detector, fold_batch_norm

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_METADATA_FILE = "anchorite.json"  # inside a .pt2: our metadata as one JSON object of texts


class DecodedNetwork(nn.Module):
    """Images in, boxes and scores of every anchor cell out; convolutions in `dtype`, the decoding in float32.

    takes_bytes: images are uint8 (B, H, W, 3) in 0..255 instead of float32 (B, 3, H, W) in 0..1.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype = torch.float32, takes_bytes: bool = False) -> None:
        super().__init__()
        self.detector = fold_batch_norm(detector).to(dtype=dtype).requires_grad_(False)
        self.dtype = dtype
        self.takes_bytes = takes_bytes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 4), xyxy in pixels of the input, and scores (B, N, K), objectness times class; float32.

        Anchor cells are ordered by level, anchor, row and column.
        """
        if self.takes_bytes:
            images = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits = self.detector(images.to(self.dtype))
        boxes, scores = [], []
        # Pixels of the input do not fit half precision: beyond 512 its steps are half a pixel.
        for level, anchors, stride in zip(
            logits, self.detector.anchors.cells().unbind(), self.detector.strides, strict=True
        ):
            boxes_px, others = decode_level(level.to(torch.float32), anchors, stride)
            probabilities = others.sigmoid()
            boxes.append(cxcywh_to_xyxy(boxes_px))
            scores.append(probabilities[..., :1] * probabilities[..., 1:])
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def traced(detector: Detector, info: ExportInfo) -> ExportedProgram:
    """The decoded network as a program of torch.export: its shapes free, H and W in multiples of the stride, or fixed.

    Of a suppression or int8, which ONNX adds later, it has nothing.
    """
    dtype = torch.float16 if info.precision == "fp16" else torch.float32
    network = DecodedNetwork(detector, dtype, info.takes_bytes).eval()
    stride, shapes = detector.strides[-1], None
    if info.fixed_shape is None:
        height, width = (stride * torch.export.Dim(name) for name in ("rows", "columns"))
        first = 1 if info.takes_bytes else 2
        shapes = ({0: torch.export.Dim("batch"), first: height, first + 1: width},)
    # Two of each and not square: whatever equals 1, or each other, would be taken for a constant.
    batch, rows, columns = info.fixed_shape or (2, 2 * stride, 3 * stride)
    example = as_input(torch.zeros((batch, 3, rows, columns), dtype=torch.uint8), info.takes_bytes)
    with quiet(), torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)


def program_bytes(program: ExportedProgram, info: ExportInfo) -> bytes:
    """The bytes of a .pt2 file."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={_METADATA_FILE: json.dumps(to_texts(info), sort_keys=True)})
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


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say about packages that are not needed, and advice that changes nothing here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
