"""Post-training quantisation of an ONNX model to int8, by onnxruntime's own tool.

Activations become uint8 and weights int8, per output channel, with scales from the extremes seen on calibration images.
The last convolution of each level and the decoding stay float32: boxes would lose whole pixels there.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from anchorite.errors import InputError
from anchorite.export.extras import needed
from anchorite.export.metadata import INPUT
from anchorite.export.network import as_input

if TYPE_CHECKING:
    from onnx import ModelProto

# All of the network's operators: where one stays float32, each of its tensors is converted there and back.
_OPERATORS = ("Conv", "Mul", "Sigmoid", "Add", "Concat", "MaxPool", "Resize")


def quantised(model: ModelProto, calibration: Iterable[Tensor], takes_bytes: bool) -> ModelProto:
    """The model with int8 convolutions; its inputs and outputs stay as they are.

    calibration: uint8 RGB images (B, 3, H, W), such as it will see. Raises InputError when there are none.
    """
    onnx, quantization = needed("onnx", "export"), needed("onnxruntime.quantization", "export")
    batches = (as_input(images, takes_bytes).numpy() for images in calibration)
    first = next(batches, None)
    if first is None:
        raise InputError("--calibrate: there are no images; name a dataset with a train split, or another --split")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.waiting = [first]

        def get_next(self) -> dict[str, object] | None:
            batch = self.waiting.pop() if self.waiting else next(batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory(prefix="anchorite-") as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            type(model).FromString(model.SerializeToString()),  # it is changed in place
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_exclude=_after_the_features(model),
        )
        result: ModelProto = onnx.load(target)
    result.producer_name = model.producer_name
    del result.graph.value_info[:]
    used = {node.domain for node in result.graph.node}
    own = [opset for opset in result.opset_import if opset.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(own)
    return result


def _after_the_features(model: ModelProto) -> list[str]:
    """Names of the last convolutions and of all that comes after them."""
    before_convolutions: set[str] = set()
    names = []
    for node in reversed(model.graph.node):
        if before_convolutions.isdisjoint(node.output):
            names.append(node.name)
            if node.op_type != "Conv":
                continue
        before_convolutions.update(node.input)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tool's advice, given by the root logger, to prepare the model in a way that changes nothing here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
