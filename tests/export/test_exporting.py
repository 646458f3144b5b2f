"""Every kind of export answers like PyTorch in the runtime it is for, and is refused where it does not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from anchorite.data import open_dataset
from anchorite.errors import InputError
from anchorite.evaluate import ReadConfig, ValidationConfig, Validator
from anchorite.export import (
    ExportDiffersError,
    ExportInfo,
    ExportRequest,
    build,
    drawn_batches,
    export_info,
    exporting,
    load_export,
    write,
)
from anchorite.export.exported import PREFIX
from anchorite.export.onnx_format import onnx_model, openvino_runtime
from anchorite.export.torch_export import DecodedNetwork
from anchorite.model import fold_batch_norm
from anchorite.predict import PredictConfig, Predictor, decoded_detections, detections_from_logits
from tests.cli.commands import data_folder
from tests.export.exports import (
    BYTES,
    CLASS_NAMES,
    INFO,
    LIMITS,
    P5,
    PLAIN,
    SUPPRESSED,
    built,
    built_anew,
    detector,
    images,
    model_of,
    plain_file,
)
from tests.small import short_networks
from tests.unchecked import unchecked_shapes


@pytest.fixture(autouse=True)
def _short_networks() -> Iterator[None]:
    with short_networks():
        yield


def test_the_decoded_network_is_the_detector_with_our_decoding() -> None:
    batch = images()[1]
    with torch.no_grad():
        boxes, scores = DecodedNetwork(detector())(batch.float() / 255)
        logits = fold_batch_norm(detector())(batch.float() / 255)
    for config in (LIMITS, PredictConfig(confidence=0.02, multi_label=True), PredictConfig(confidence=1.0)):
        expected = detections_from_logits(logits, P5, config)
        found = decoded_detections(boxes, scores, config).split()
        assert len(found) == len(expected) == len(batch)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=1e-3)
            torch.testing.assert_close(one.scores, other.scores)
            assert torch.equal(one.class_ids, other.class_ids)


@pytest.mark.parametrize("request_", [PLAIN, SUPPRESSED, BYTES], ids=["plain", "nms", "bytes-half-static"])
def test_onnx_answers_like_pytorch(request_: ExportRequest) -> None:
    parity = built(request_).parity
    assert parity.num_images == 6
    limits = (1e-2, 5e-3) if request_.half else (1e-4, 1e-5)
    assert 0 < parity.box_share < limits[0]
    assert 0 < parity.score < limits[1]
    assert (parity.found or 0) > 50 if request_.suppression is not None else parity.found is None


def test_any_runtime_user_gets_what_the_names_say() -> None:
    """Plain onnxruntime and numpy, without a line of ours."""
    session = onnxruntime.InferenceSession(built(BYTES).files[".onnx"], providers=["CPUExecutionProvider"])
    assert [(one.name, one.type) for one in session.get_inputs()] == [("images", "tensor(uint8)")]
    assert session.get_inputs()[0].shape == [2, 96, 96, 3]
    assert [one.shape for one in session.get_outputs()] == [[2, 567, 4], [2, 567, 5]]
    square = drawn_batches(export_info(INFO, BYTES))[0][:2]
    rgb = square.permute(0, 2, 3, 1).numpy()
    boxes, scores = session.run(["boxes", "scores"], {"images": np.ascontiguousarray(rgb)})
    with torch.no_grad():
        expected_boxes, expected_scores = DecodedNetwork(detector())(square.float() / 255)
    assert np.abs(scores - expected_scores.numpy()).max() < 0.005
    assert np.median(np.abs(boxes - expected_boxes.numpy())) < 0.1
    texts = session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["anchorite.class_names"]) == list(INFO.class_names)
    assert json.loads(texts["anchorite.anchors"]) == P5.to_rows()
    assert json.loads(texts["anchorite.strides"]) == [8, 16, 32]
    assert texts["anchorite.model"] == "n"
    assert texts["anchorite.image_size"] == "96"
    assert texts["anchorite.input"] == "uint8 NHWC RGB"
    assert texts["anchorite.precision"] == "fp16"


def test_shapes_are_free_or_fixed_as_asked() -> None:
    runtime = built(PLAIN).dense
    for batch, height, width in ((1, 32, 32), (1, 64, 224), (5, 96, 32)):
        boxes, scores = runtime.outputs(torch.zeros(batch, 3, height, width, dtype=torch.uint8))
        assert boxes.shape == (batch, 63 * (height // 32) * (width // 32), 4)
        assert scores.shape == (*boxes.shape[:2], 5)
    (entry,) = onnx.load_model_from_string(built(PLAIN).files[".onnx"]).graph.input
    assert [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    fixed = built(BYTES).dense
    square = drawn_batches(export_info(INFO, BYTES))[0]
    # Any number of images goes in, in batches filled up where need be.
    whole = fixed.outputs(square[:5])
    assert len(whole[0]) == 5
    for index in range(5):
        single = fixed.outputs(square[index : index + 1])
        torch.testing.assert_close(whole[1][index], single[1][0], rtol=0, atol=1e-3)
        assert (whole[1][index] - whole[1][index - 1]).abs().max() > 0.01


def test_a_file_tells_nothing_of_the_machine_that_wrote_it() -> None:
    model = onnx.load_model_from_string(built(SUPPRESSED).files[".onnx"])
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # any three letters may stand in random weights
    content = model.SerializeToString()
    for word in (b"/work", b"site-packages", b".py", b"stack_trace", b"nn_module"):
        assert word not in content
    info = export_info(INFO, BYTES)
    with unchecked_shapes():
        again = onnx_model(detector(), info)
    assert again.SerializeToString() == model_of(info).SerializeToString()


def test_predictions_are_those_of_the_weights() -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (70 + 20 * k, 130 - 10 * k, 3), np.uint8) for k in range(3)]
    pictures += [image.permute(1, 2, 0).numpy() for image in images()[2]]
    ours = Predictor(detector(), INFO, "cpu").predict(pictures, confidence=0.06)
    assert sum(map(len, ours)) > 20
    runtimes = [built(PLAIN).dense, load_export(plain_file(), "cpu")]
    for runtime in runtimes:
        theirs = Predictor.of(runtime).predict(pictures, confidence=0.06)
        for one, other in zip(ours, theirs, strict=True):
            assert len(one) == len(other)
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=5e-2)
            assert one.class_names == INFO.class_names
    fixed = Predictor.of(built(BYTES).dense)
    for one, other in zip(ours, fixed.predict(pictures, confidence=0.06), strict=True):
        # Square inputs have more padding, so what is at the edges may be found otherwise; half precision adds its part.
        assert abs(float(one.scores[0]) - float(other.scores[0])) < 0.1
    with pytest.raises(InputError, match="exported for 96 px alone"):
        fixed.predict(pictures[0], image_size=64)
    assert repr(Predictor.of(runtimes[1])).endswith("96 px, onnxruntime cpu fp32)")


def test_measured_is_what_the_weights_find() -> None:
    records = open_dataset(data_folder()).splits["val"]
    for request_, rectangular in ((PLAIN, True), (BYTES, False)):
        validator = Validator(records, CLASS_NAMES, 96, ReadConfig(3))
        ours = validator.run(detector(), ValidationConfig(rectangular=rectangular)).predictions
        theirs = validator.run(built(request_).dense).predictions
        assert min(map(len, ours)) > 100
        for one, other in zip(ours, theirs, strict=True):
            assert abs(len(one) - len(other)) <= (0 if request_ is PLAIN else 5)
            tolerance = 1e-4 if request_ is PLAIN else 5e-3
            np.testing.assert_allclose(one.scores[:50], other.scores[:50], atol=tolerance)
    with pytest.raises(InputError, match="takes 96 px alone"):
        Validator(records, CLASS_NAMES, 64).run(built(BYTES).dense)
    with pytest.raises(InputError, match="knows 5 classes, the dataset has 1"):
        Validator(records, ["one"], 96).run(built(PLAIN).dense)


def test_openvino_answers_like_pytorch_with_suppression_and_without(tmp_path: Path) -> None:
    made = built(replace(SUPPRESSED, format="openvino"))
    assert 0 < made.parity.box_share < 1e-4
    assert (made.parity.found or 0) > 50
    assert list(made.files) == [".bin", ".xml"]  # the graph last, so that a pair is whole once it is there
    paths = write(tmp_path / "a.xml", made)
    assert paths == [tmp_path / "a.bin", tmp_path / "a.xml"]
    loaded = load_export(tmp_path / "a.xml", "cpu")
    assert loaded.export == made.export
    assert loaded.info == INFO
    with pytest.raises(InputError, match=r"cut\.xml: OpenVINO cannot read it"):
        openvino_runtime("cut.xml", made.files[".xml"][:5000], made.files[".bin"])
    with pytest.raises(InputError, match=r"foreign\.xml: no metadata anchorite\.format_version"):
        openvino_runtime("foreign.xml", made.files[".xml"].replace(b"<anchorite>", b"<other>")
                         .replace(b"</anchorite>", b"</other>"), made.files[".bin"])  # fmt: skip


def test_a_program_of_torch_export_answers_like_pytorch() -> None:
    made = built(ExportRequest(format="torch-export", fixed_batch=2))
    assert 0 < made.parity.box_share < 1e-4
    archive = zipfile.ZipFile(BytesIO(made.files[".pt2"]))
    (name,) = [name for name in archive.namelist() if name.endswith("anchorite.json")]
    assert json.loads(archive.read(name))[PREFIX + "model"] == "n"


@pytest.mark.slow
def test_int8_is_smaller_and_close() -> None:
    made = built(ExportRequest(int8=True))
    assert made.num_bytes < 0.35 * built(PLAIN).num_bytes
    model = onnx.load_model_from_string(made.files[".onnx"])
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) > 100
    assert 1e-4 < made.parity.score < 0.7
    assert {opset.domain for opset in model.opset_import} == {""}


def test_what_differs_is_refused_and_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(_: object, info: ExportInfo) -> onnx.ModelProto:
        model = model_of(info)
        for tensor in model.graph.initializer:
            if tensor.dims[:1] == [30] and len(tensor.dims) == 1:
                bias = onnx.numpy_helper.to_array(tensor).copy()
                bias[4] += 0.01
                tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
        return model

    monkeypatch.setattr(exporting, "onnx_model", shifted)
    with pytest.raises(ExportDiffersError, match=r"x\.onnx: differs from PyTorch on 6 images: .* scores by 0\.00"):
        build(detector(), INFO, PLAIN, images(), what="x.onnx")


def test_suppression_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = exporting.with_suppression
    other = LIMITS.model_copy(update={"iou_threshold": 0.6})
    monkeypatch.setattr(exporting, "with_suppression", lambda model, _, classes: honest(model, other, classes))
    with pytest.raises(ExportDiffersError, match="its suppression differs from ours"):
        built_anew(SUPPRESSED, images())


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ExportRequest(half=True, int8=True), "exclude each other"),
        (ExportRequest("torch-export", suppression=LIMITS), "leave them out for torch-export"),
        (ExportRequest(image_size=100), "--image-size 100: must be a multiple of 32.*take 128"),
        (ExportRequest(fixed_batch=0), "at least one image"),
    ],
)
def test_wishes_that_exclude_each_other_are_refused(request_: ExportRequest, said: str) -> None:
    with pytest.raises(InputError, match=said):
        built_anew(request_, images())
