"""`anchorite export`, and the other commands given what it wrote."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp

import onnx
import pytest

from anchorite.cli import run
from anchorite.export import exporting, load_predictor
from anchorite.serve import make_app
from tests.cli.commands import contents, data_folder
from tests.cli.test_usage import refused
from tests.export.exports import model_of, weights
from tests.serve.servers import asked, running
from tests.small import short_networks
from tests.unchecked import unchecked_shapes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _models_from_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ONNX model of these weights, which takes half a minute, is made once for all tests."""
    monkeypatch.setattr(exporting, "onnx_model", lambda _, info: model_of(info))
    with short_networks(), unchecked_shapes():
        yield


@cache
def exported() -> Path:
    """A dense ONNX file, made by the command line in a folder that needs quoting; tests must not change it."""
    path = Path(mkdtemp()) / "it's best.onnx"
    with redirect_stdout(StringIO()):
        assert run(["export", str(weights()), "--out", str(path)]) == 0
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_it_says_what_it_made_and_how_far_that_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "a b.onnx"
    words = ["export", str(weights()), "--out", out, "--nms", "--confidence", "0.05", "--verify", data_folder()]
    lines = printed(capsys, *words).splitlines()
    assert lines[0] == "network:  size n, 5 classes, 96 px, fp32"
    assert lines[1] == "input:    images, float32 NCHW RGB 0..1; any number of images, sides in multiples of 32"
    inside = "suppression inside: confidence 0.05, IoU 0.45, 300 detections"
    assert lines[2] == f"outputs:  detections, counts; {inside}"
    number = r"\d\S*"
    assert re.fullmatch(
        rf"compared: with PyTorch on 4 images, 2268 anchor cells: boxes within {number} px \({number} of their side\), "
        rf"scores within {number}",
        lines[3],
    )
    assert re.fullmatch(r" +\d+ detections of the suppression inside, all as ours.*", lines[4])
    assert re.fullmatch(r"measured: on 4 images, mAP50-95 (0\.\d{4}) \(PyTorch \1: [+-]0\.0000\), mAP50 .*", lines[5])
    assert re.fullmatch(r"size:     5\.\d MB", lines[6])
    assert lines[7:] == [f"written:  {out}", f"next:     anchorite predict '{out}' SOURCE..."]
    assert list(tmp_path.iterdir()) == [out]


def test_predict_finds_what_the_weights_find(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = []
    for number, given in enumerate((weights(), exported())):
        folder = tmp_path / str(number)
        images = data_folder() / "images" / "val"
        printed(capsys, "predict", given, images, "--out", folder, "--confidence", "0.06", "--device", "cpu")
        found.append(json.loads((folder / "detections.json").read_text())["images"])
    assert len(found[0]) == len(found[1]) == 4
    assert sum(len(image["detections"]) for image in found[0]) > 10
    for one, other in zip(*found, strict=True):
        assert len(one["detections"]) == len(other["detections"])
        for ours, theirs in zip(one["detections"], other["detections"], strict=True):
            assert abs(ours["score"] - theirs["score"]) < 1e-3


def test_a_server_answers_with_an_export_as_with_the_weights() -> None:
    image = next((data_folder() / "images" / "val").iterdir()).read_bytes()
    answers = []
    for given in (exported(), weights()):
        with running(make_app(load_predictor(Path(given), "cpu", "auto"))) as port:
            answers.append(asked(port, "/predict?confidence=0.01", image)[2])
    found, expected = (answer["detections"] for answer in answers)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["class_name"] == other["class_name"]
        assert one["score"] == pytest.approx(other["score"], abs=2e-4)
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=0.02)


def test_validate_measures_what_the_weights_measure(capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        json.loads(printed(capsys, "validate", given, data_folder(), "--json", "--precision", precision))
        for given, precision in ((weights(), "fp32"), (exported(), "auto"))
    ]
    assert results[0]["metrics"]["map"] == pytest.approx(results[1]["metrics"]["map"], abs=1e-3)
    assert results[1]["images"] == 4
    code, message = refused(capsys, "validate", exported(), data_folder(), "--precision", "bf16")
    assert code == 2
    assert "--precision bf16" in message


def test_int8_states_its_cost_and_openvino_is_a_pair(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "small.xml"
    words = ["export", str(weights()), "--format", "openvino", "--int8", "--calibrate", data_folder(), "--out", out]
    output = printed(capsys, *words, "--calibration-images", "4")
    assert "96 px, int8" in output
    assert re.search(r"measured: on 4 images, mAP50-95 0\.\d{4} \(PyTorch 0\.\d{4}: [+-]0\.\d{4}\)", output)
    assert sorted(contents(tmp_path)) == [tmp_path / "small.bin", out]
    assert "4 images" in printed(capsys, "predict", out, data_folder() / "images" / "val", "--out", tmp_path / "p")


def test_what_differs_is_not_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported())
    (tensor,) = [one for one in model.graph.initializer if one.name.endswith("p3.bias")]
    bias = onnx.numpy_helper.to_array(tensor).copy()
    bias[:] += 0.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
    monkeypatch.setattr(exporting, "onnx_model", lambda _, info: model)
    code, message = refused(capsys, "export", str(weights()), "--out", tmp_path / "a.onnx")
    assert code == 2
    assert "differs from PyTorch on 6 images: boxes by" in message
    assert "nothing was written" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--confidence 0.5", 2, "built in with --nms"),
        ("--int8", 2, "--int8 and --calibrate DATA belong together"),
        ("--half --int8 --calibrate DATA", 2, "exclude each other"),
        ("--format torch-export --nms", 2, "leave them out for torch-export"),
        ("--image-size 100", 2, "take 128"),
        ("--verify DATA --split none", 2, "--split none: is not there; the splits of"),
        ("--out taken.onnx", 2, "exists already, and nothing is ever overwritten"),
        ("--out taken.pt2", 2, "a file of format onnx ends in .onnx"),
        ("--format openvino --out bin.xml", 2, "bin.bin: exists already"),
        ("--out no/a.onnx", 4, "there is no folder no"),
        ("--nms --multi-label --class-agnostic", 2, "cannot both be built in"),
        ("--nms --iou-threshold 7", 2, "--iou-threshold 7.0: must be"),
        ("--static 0", 2, ">= 1"),
    ],
)
def test_mistakes_cost_nothing(
    words: str,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx").write_text("mine")
    (tmp_path / "bin.bin").write_text("mine")
    before = contents(tmp_path)
    given = [str(data_folder()) if word == "DATA" else word for word in words.split()]
    out = [] if "--out" in given else ["--out", "new.pt2" if "torch-export" in given else "new.onnx"]
    exit_code, message = refused(capsys, "export", str(weights()), *given, *out)
    assert exit_code == code
    assert said in message
    assert contents(tmp_path) == before


def test_a_missing_package_is_named_with_its_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, message = refused(capsys, "export", str(weights()), "--out", tmp_path / "a.onnx")
    assert code == 2
    assert "pip install 'anchorite[export]'" in message
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_exports_of_ours_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.onnx"
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), foreign)
    for command in (["predict", foreign, data_folder() / "images" / "val"], ["validate", foreign, data_folder()]):
        code, message = refused(capsys, *command)
        assert code == 2
        assert f"{foreign}: no metadata anchorite.format_version, so not exported by anchorite" in message
    (tmp_path / "program.pt2").write_bytes(b"PK")
    code, message = refused(capsys, "validate", tmp_path / "program.pt2", data_folder())
    assert code == 5
    assert "may unpickle" in message
