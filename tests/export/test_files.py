"""Files from elsewhere: what is no export of ours, or points outside, is refused before any runtime sees it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from anchorite.errors import AnchoriteError, InputError, StorageError, UnsafeFileError
from anchorite.evaluate import ValidationConfig
from anchorite.export import ExportInfo, load_export, load_predictor
from anchorite.export.exported import KEYS, PREFIX, from_texts, to_texts
from anchorite.export.onnx_format import onnx_runtime, openvino, read_bounded, with_metadata
from anchorite.model import WeightsInfo
from anchorite.predict import PredictConfig
from tests.export.exports import INFO, LIMITS, P5, PLAIN, SUPPRESSED, built, images, plain_file, weights
from tests.processes import ForkedProcess
from tests.small import short_networks

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(autouse=True)
def _short_networks() -> Iterator[None]:
    with short_networks():
        yield


def changed(change: Change) -> bytes:
    model = onnx.load_model_from_string(built(PLAIN).files[".onnx"])
    change(model)
    return model.SerializeToString()


def set_text(key: str, text: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = [entry for entry in model.metadata_props if entry.key == PREFIX + key]
        entry.value = text

    return change


def point_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def point_outside_in_a_constant(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", 1, [1], [0.0]))
    node.attribute[0].t.data_location = TensorProto.EXTERNAL
    model.graph.node.append(node)


def bring_a_graph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["images"], ["i"])], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["images"], ["j"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (point_outside, "points at data in another file"),
        (point_outside_in_a_constant, "points at data in another file"),
        (bring_a_graph, "If holds a graph of its own"),
        (lambda model: model.opset_import.add(domain="evil", version=1), r"operators of \['evil'\]"),
        (lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"), r"operators of \['com.microsoft'\]"),
        (lambda model: model.functions.add(name="f"), "brings functions"),
    ],
)
def test_what_could_reach_outside_is_unsafe(change: Change, said: str) -> None:
    with pytest.raises(UnsafeFileError, match=f"^a.onnx: .*{said}") as caught:
        onnx_runtime("a.onnx", changed(change), "cpu")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.ClearField("metadata_props"), "not exported by anchorite"),
        (set_text("format_version", "2"), "reads up to 1; upgrade"),
        (set_text("format_version", "true"), "no format version but True"),
        (set_text("class_names", "[" * 100_000), "is no JSON"),
        (set_text("class_names", '["' + "a" * 3_000_000 + '"]'), "more than 2000000 characters"),
        (set_text("class_names", "[]"), "class_names"),
        (set_text("class_names", '["one"]'), "its outputs are .* where its metadata means"),
        (set_text("anchors", "[[1, 2], [3]]"), "metadata of anchorite"),
        (set_text("anchors", "[[1, 2], [3, NaN], [5, 6]]"), "should be a finite number"),
        (set_text("anchors", "[[1, 2], [3, -4], [5, 6]]"), "sides must be positive"),
        (set_text("strides", "[8, 16, 64]"), "its outputs are .* where its metadata means"),
        (set_text("model", "q"), "no model size 'q'"),
        (set_text("image_size", "1e9"), "image_size"),
        (set_text("fixed_shape", "[1, 32, 32]"), "fixed_shape"),
        (set_text("input", "uint8 NHWC RGB"), "but its metadata means"),
        (set_text("suppression", '{"confidence": 0.5}'), "but its metadata means"),
        (set_text("suppression", '{"confidence": 7}'), "suppression.confidence"),
        (lambda model: setattr(model.graph.output[0], "name", "other"), "but its metadata means"),
        (lambda model: model.graph.node.pop(3), "onnxruntime cannot load it"),
    ],
)
def test_what_is_not_ours_is_refused_by_name(change: Change, said: str) -> None:
    with pytest.raises(InputError, match=rf"(?s)^a.onnx: .*{said}"):
        onnx_runtime("a.onnx", changed(change), "cpu").outputs(images()[0])


def test_a_file_cut_off_anywhere_is_refused() -> None:
    content = built(PLAIN).files[".onnx"]
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(InputError, match=r"^a\.onnx: "):
            onnx_runtime("a.onnx", content[:length], "cpu")


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with (tmp_path / "holes.onnx").open("wb") as file:
        file.truncate((1 << 30) + 1)
    cases: list[tuple[str, type[AnchoriteError], str]] = [
        ("pipe.onnx", InputError, "is no file"),
        (".", InputError, "is no file"),
        ("none.onnx", InputError, "no such file"),
        ("holes.onnx", UnsafeFileError, "are not read"),
    ]
    for name, kind, said in cases:
        with pytest.raises(kind, match=said):
            read_bounded(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be read"):
        read_bounded(tmp_path / "file" / "under.onnx")


def test_a_program_of_torch_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsafeFileError, match="may unpickle"):
        load_predictor(path)


def test_suffixes_choose_the_runtime_and_devices_are_named() -> None:
    assert load_predictor(weights(), "cpu").runtime.name == "cpu float32"
    assert load_predictor(plain_file()).runtime.name.startswith("onnxruntime")
    with pytest.raises(InputError, match="--device cpu"):
        load_export(plain_file(), "cuda:7")
    with pytest.raises(InputError, match="run on the CPU"):
        load_export(Path("a.xml"), "cuda")


@pytest.mark.parametrize(
    "info",
    [
        ExportInfo(INFO),
        ExportInfo(WeightsInfo("n", ('gr"een\n', "\u84dd"), P5, 640)),
        ExportInfo(INFO, "uint8 NHWC RGB", "int8", (4, 96, 96), PredictConfig(multi_label=True, iou_threshold=0.3)),
    ],
)
def test_metadata_comes_back_as_it_was(info: ExportInfo) -> None:
    texts = to_texts(info)
    assert set(texts) == {PREFIX + key for key in KEYS}
    assert all(text.isascii() for text in texts.values())
    assert from_texts("a.onnx", texts) == info
    texts = {
        key: text.replace("iou_threshold", "iou_limit") for key, text in texts.items()
    }  # as earlier releases wrote
    assert from_texts("a.onnx", texts) == info
    model = onnx.load_model_from_string(built(PLAIN).files[".onnx"])
    assert with_metadata(model, info) == with_metadata(model, info)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"confidence": 0.01}, "confidence 0.05 is the minimum, 0.01 was requested"),
        ({"iou_threshold": 0.5}, "iou-threshold 0.45 is built in, 0.5 was requested"),
        ({"max_detections": 21}, "max-detections 20 is the most, 21 was asked"),
        ({"multi_label": True}, "multi-label False is built in"),
        (ValidationConfig().predict_config().model_dump(), "export without --nms"),
    ],
)
def test_limits_that_are_not_built_in_are_refused(asked: dict[str, object], said: str) -> None:
    runtime = onnx_runtime("a.onnx", built(SUPPRESSED).files[".onnx"], "cpu")
    with pytest.raises(InputError, match=said):
        runtime.detections(runtime.outputs(images()[0]), LIMITS.model_copy(update=asked))


def test_stricter_limits_than_those_built_in_give_what_ours_gives() -> None:
    runtime, dense = onnx_runtime("a.onnx", built(SUPPRESSED).files[".onnx"], "cpu"), built(PLAIN).dense
    batch = images()[0]
    for limits in (LIMITS, LIMITS.model_copy(update={"confidence": 0.08, "max_detections": 5})):
        found = runtime.detections(runtime.outputs(batch), limits)
        expected = dense.detections(dense.outputs(batch), limits)
        assert found.counts.tolist() == expected.counts.tolist()
        assert int(found.counts.max()) == limits.max_detections
        torch.testing.assert_close(found.scores, expected.scores)


def test_output_that_is_not_finite_is_an_error_not_an_empty_answer() -> None:
    def spoil(model: onnx.ModelProto) -> None:
        (tensor,) = [one for one in model.graph.initializer if one.name.endswith("p5.bias")]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[:] = float("nan")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    runtime = onnx_runtime("a.onnx", changed(spoil), "cpu")
    with pytest.raises(InputError, match="not finite"):
        runtime.detections(runtime.outputs(images()[0]), PredictConfig())


def import_openvino() -> None:
    """Import OpenVINO and say what came of it; for `ForkedProcess`."""
    started = []
    multiprocessing.Process.start = lambda process: started.append(process)  # type: ignore[method-assign, assignment]
    core = openvino().Core()
    print("CPU" in core.available_devices, started, "openvino_telemetry" in sys.modules)


def run_onnx(path: str) -> None:
    """Load an ONNX file and run it once; for `ForkedProcess`."""
    runtime = load_predictor(Path(path)).runtime
    print(len(runtime.outputs(images()[0])))


def test_onnxruntime_reports_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment["HOME"] = str(tmp_path)
    process = ForkedProcess("tests.export.test_files:run_onnx", str(plain_file()), env=environment)
    said, errors = process.communicate()
    assert said.split() == ["2"], errors
    assert list(tmp_path.rglob("*")) == []


def test_openvino_is_imported_without_its_reporting(tmp_path: Path) -> None:
    process = ForkedProcess("tests.export.test_files:import_openvino", env={**os.environ, "HOME": str(tmp_path)})
    said, errors = process.communicate()
    assert said.split() == ["True", "[]", "False"], errors
    assert list(tmp_path.iterdir()) == []
