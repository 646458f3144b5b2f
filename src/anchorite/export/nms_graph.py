"""Non-maximum suppression inside an ONNX model: from boxes and scores of all anchor cells to a table of detections.

Legend: B images, N anchor cells, K classes, C classes that suppression tells apart, S boxes that survive it in the
whole batch, M most detections of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anchorite.errors import InputError, import_extra
from anchorite.export.exported import DENSE_OUTPUTS, SUPPRESSED_OUTPUTS
from anchorite.predict import PredictConfig

if TYPE_CHECKING:
    from onnx import ModelProto

_PREFIX = "suppression_"

# Which score counts, (B, C, N), and which class an anchor cell has, (B, N), by how classes compete.
_OF_ALL_CLASSES = """
    competing = Transpose <perm = [0, 2, 1]> (scores)
"""
_OF_THE_BEST_CLASS = """
    best_class = ArgMax <axis = 2, keepdims = 1> (scores)
    class_numbers = Range (zero_class, num_classes, one_class)
    is_best = Equal (best_class, class_numbers)
    only_best = Where (is_best, scores, lowest)
    competing = Transpose <perm = [0, 2, 1]> (only_best)
"""
_OF_ANY_CLASS = """
    best_class = ArgMax <axis = 2, keepdims = 0> (scores)
    best_score = ReduceMax <keepdims = 0> (scores, last_axis)
    competing = Unsqueeze (best_score, middle_axis)
"""
# The survivors (S, 3) are image, class and anchor cell. Each image picks its M best among them all; behind them are M
# empty rows, so that there always are M. Where an image has fewer, the empty rows that it picks score -1 and become 0.
_BEST_OF_EACH_IMAGE = """
    survivors = NonMaxSuppression (boxes, competing, most, iou_threshold, least_score)
    cells = Gather <axis = 1> (survivors, image_and_cell)
    survivor_scores = GatherND (competing, survivors)
    survivor_boxes = GatherND (boxes, cells)
    survivor_classes = {classes}
    float_classes = Cast <to = 1> (survivor_classes)
    score_column = Unsqueeze (survivor_scores, last_of_two)
    class_column = Unsqueeze (float_classes, last_of_two)
    rows = Concat <axis = 1> (survivor_boxes, score_column, class_column)
    filled_rows = Concat <axis = 0> (rows, empty_rows)
    survivor_images = Gather <axis = 1> (survivors, first)
    filled_images = Concat <axis = 0> (survivor_images, no_image)
    filled_scores = Concat <axis = 0> (survivor_scores, no_score)
    shape = Shape <start = 0, end = 1> (boxes)
    num_images = Squeeze (shape)
    images = Range (zero, num_images, one)
    image_column = Unsqueeze (images, last_of_two)
    is_of_image = Equal (image_column, filled_images)
    scores_by_image = Where (is_of_image, filled_scores, lowest)
    best_scores, chosen = TopK <axis = 1, largest = 1, sorted = 1> (scores_by_image, most)
    chosen_rows = Gather <axis = 0> (filled_rows, chosen)
    is_there = GreaterOrEqual (best_scores, zero_score)
    is_there_column = Unsqueeze (is_there, last_axis)
    detections = Where (is_there_column, chosen_rows, zero_score)
    ones = Cast <to = 7> (is_there)
    counts = ReduceSum <keepdims = 0> (ones, last_of_two)
"""
_MODEL = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
suppression (float[batch, cells, 4] boxes, float[batch, cells, {classes}] scores)
    => (float[batch, {most}, 6] detections, int64[batch] counts)
{{{body}}}
"""


def with_suppression(model: ModelProto, limits: PredictConfig, num_classes: int) -> ModelProto:
    """A model of outputs `boxes` and `scores` followed by suppression: outputs `detections` and `counts`.

    detections: (B, M, 6) float32: x1, y1, x2, y2 in pixels, score, class; the best first, zeros behind the last.
    counts: (B,) int64. limits: as for prediction, M = max_detections; max_candidates does not apply. Raises InputError
    for multi_label together with class_agnostic.
    """
    onnx = import_extra("onnx", "export")
    tail = suppression_model(limits, num_classes, model.ir_version, model.opset_import[0].version)
    ends = [(name, name) for name in DENSE_OUTPUTS]
    merged = onnx.compose.merge_models(
        model, tail, ends, prefix2=_PREFIX, name="detector", producer_name=model.producer_name
    )
    outputs = {_PREFIX + name: name for name in SUPPRESSED_OUTPUTS}
    for output in merged.graph.output:
        output.name = outputs[output.name]
    for node in merged.graph.node:
        node.output[:] = [outputs.get(name, name) for name in node.output]
    onnx.checker.check_model(merged, full_check=True)
    return merged


def refuse_unbuildable(limits: PredictConfig) -> None:
    """Raise InputError for limits that cannot be built in."""
    if limits.multi_label and limits.class_agnostic:
        raise InputError("--multi-label and --class-agnostic cannot both be built in; leave one of them out")


def suppression_model(limits: PredictConfig, num_classes: int, ir_version: int, opset: int) -> ModelProto:
    """The suppression alone, inputs `boxes` (B, N, 4) and `scores` (B, N, K)."""
    onnx = import_extra("onnx", "export")
    refuse_unbuildable(limits)
    if limits.class_agnostic:
        choice, classes = _OF_ANY_CLASS, "GatherND (best_class, cells)"
    else:
        choice = _OF_ALL_CLASSES if limits.multi_label else _OF_THE_BEST_CLASS
        classes = "Gather <axis = 1> (survivors, second)"
    most = limits.max_detections
    body = choice + _BEST_OF_EACH_IMAGE.format(classes=classes)
    model = onnx.parser.parse_model(
        _MODEL.format(ir_version=ir_version, opset=opset, classes=num_classes, most=most, body=body)
    )
    constants = {  # whole numbers become int64, others float32
        "zero": 0, "one": 1, "zero_class": 0, "one_class": 1, "num_classes": num_classes, "first": 0, "second": 1,
        "image_and_cell": [0, 2], "last_axis": [2], "middle_axis": [1], "last_of_two": [1], "lowest": -1.0,
        "zero_score": 0.0, "most": [most], "iou_threshold": [float(limits.iou_threshold)],
        # The operator keeps what is above its threshold, prediction what reaches it.
        "least_score": np.nextafter(np.array([limits.confidence], np.float32), np.float32(-1)),
        "empty_rows": np.zeros((most, 6)), "no_image": [-1] * most, "no_score": [-1.0] * most,
    }  # fmt: skip
    named = {name for node in model.graph.node for name in node.input}
    for name, constant in constants.items():
        if name in named:
            value = np.asarray(constant)
            value = value.astype(np.int64 if value.dtype.kind == "i" else np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.checker.check_model(model, full_check=True)
    return model
