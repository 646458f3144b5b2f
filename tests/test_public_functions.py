"""What all public functions have in common: paths are text or path, and a wrong keyword is told with the right one."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import BaseModel

import anchorite
from anchorite.anchors import AnchorSet
from anchorite.data import decode_image, open_dataset
from anchorite.data.convert import write_dataset
from anchorite.errors import InputError
from anchorite.evaluate import Validator
from anchorite.export import is_export, load_predictor
from anchorite.model import Detector, WeightsInfo, load_weights, save_weights
from anchorite.predict import PredictionWriter, Predictor, expand_sources, open_sources
from anchorite.report import write_run_report
from anchorite.report.conclusion import is_concluded
from anchorite.train import RunFolder, extend, load_recipe, resume, train
from anchorite.tune import Study, default_space, read_space
from tests.predict.fakes import SquareFinder
from tests.train.runs import scenes, small_recipe

ROOMS = (
    *("anchors", "boxes", "data", "distributed", "evaluate", "export", "inspect", "loss", "metrics", "model"),
    *("predict", "report", "report.conclusion", "serve", "train", "tune"),
)
P5 = AnchorSet.coco_p5()
INFO = WeightsInfo(size="n", class_names=("red", "green", "blue"), anchors=P5, image_size=320)
GREY = np.full((32, 32, 3), 114, np.uint8)


def public_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Functions of all rooms, and methods of what is no mere value, by their names."""
    for room in ROOMS:
        module = importlib.import_module(f"anchorite.{room}")
        for name in getattr(module, "__all__", ("conclude_run", "is_concluded")):
            one = getattr(module, name)
            is_value = dataclasses.is_dataclass(one) or (inspect.isclass(one) and issubclass(one, BaseModel | tuple))
            if inspect.isfunction(one):
                yield f"{room}.{name}", one
            elif inspect.isclass(one) and not is_value:
                for member, method in vars(one).items():
                    function = getattr(method, "__func__", method)
                    if inspect.isfunction(function) and (member == "__init__" or not member.startswith("_")):
                        yield f"{room}.{name}.{member}", function


def test_whatever_takes_a_path_says_that_it_takes_a_text_as_well() -> None:
    taking, strict = [], []
    for name, function in public_functions():
        for parameter in inspect.signature(function).parameters.values():
            kinds = str(parameter.annotation).split(" | ")
            if "Path" in kinds and "StrPath" not in kinds:
                strict.append(f"{name}({parameter.name})")
            elif "StrPath" in kinds:
                taking.append(name)
    assert strict == []
    assert len(taking) > 25
    assert "os.PathLike[str]" in str(inspect.signature(anchorite.load))


class OtherPath(os.PathLike[str]):
    """A path of some other library."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.usefixtures("small_networks")
def test_the_way_from_a_dataset_to_detections_takes_any_kind_of_path(tmp_path: Path) -> None:
    kinds: Iterator[Callable[[Path], Any]] = itertools.cycle([str, OtherPath, Path, OtherPath, str])

    def at(*names: str) -> Any:
        return next(kinds)(tmp_path.joinpath(*names))

    write_dataset(scenes(), at("data"), "yolo")
    dataset = open_dataset(at("data"))
    save_weights(
        at("first.safetensors"), Detector("n", 5, P5), dataclasses.replace(INFO, class_names=dataset.class_names)
    )
    (tmp_path / "mine.yaml").write_text("epochs: 1\n")
    given = {"weights": at("first.safetensors"), "image_size": 64, "batch": 5, "device": "cpu", "workers": 0}
    recipe = load_recipe(at("mine.yaml"), given)
    assert (recipe.epochs, recipe.weights) == (1, str(tmp_path / "first.safetensors"))
    assert train(recipe, dataset, at("run")).folder == tmp_path / "run"
    assert resume(at("run"), dataset).folder == tmp_path / "run"
    assert extend(at("run"), dataset, 2, at("more")).folder == tmp_path / "more"
    assert not is_concluded(at("run"))
    assert write_run_report(at("run")) == tmp_path / "run" / "report.html"
    assert write_run_report(at("run"), at("other.html")) == tmp_path / "other.html"
    assert RunFolder.open(at("run")).path == RunFolder(at("run")).path == tmp_path / "run"

    best, image = at("run", "best.safetensors"), next(iter(dataset.split("val").paths()))
    detector, info = load_weights(best)
    assert not is_export(best)
    assert Validator(dataset.split("val"), info.class_names, 64).run(detector).save_plots(at("plots"))
    assert anchorite.load(best, "cpu").info == load_predictor(best, "cpu").info == info
    assert decode_image(OtherPath(image)).shape == (96, 96, 3)
    assert expand_sources([str(image)]) == open_sources([OtherPath(image)]).paths == [image]
    for given_images in (str(image), OtherPath(image), [OtherPath(image)]):
        (found,) = anchorite.load(best, "cpu").predict(given_images)
        assert found.source == str(image)
    with PredictionWriter(at("found"), info.class_names) as writer:
        for result in anchorite.load(best, "cpu").stream(OtherPath(image)):
            writer.add(result)
    assert (tmp_path / "found" / "detections.json").is_file()
    (tmp_path / "space.yaml").write_text("epochs: {low: 1, high: 2}\n")
    assert list(read_space(at("space.yaml"))) == ["epochs"]
    Study.create(at("study"), dataset, small_recipe(), default_space())
    assert Study.open(at("study")).folder == tmp_path / "study"


def call_train(*changed: Any, **keywords: Any) -> object:
    return train(*(changed or (small_recipe(), scenes(), "nowhere")), **keywords)


def call_predict(**keywords: Any) -> object:
    return Predictor(SquareFinder(P5), INFO, device="cpu").predict(GREY, **keywords)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load_recipe("small-data", epocs=5), ["epocs", "did you mean epochs?"]),
        (lambda: load_recipe("small-data", {"epocs": 5}), ["epocs", "did you mean epochs?"]),
        (lambda: load_recipe("small-data", imgsz=320), ["imgsz", "did you mean image_size?"]),
        (lambda: load_recipe("small-data", epochs="5"), ["epochs", "valid integer", "'5'"]),
        (lambda: load_recipe("small-data", ["epochs=5"]), ["overrides", '{"epochs": 50}', "epochs=5"]),
        (lambda: load_recipe({"epochs": 5}), ["built-in recipe", "{'epochs': 5}", 'load_recipe(NAME, {"epochs": 50})']),
        (lambda: load_recipe("small-data", image_size=(192, 320)), ["image_size", "square", "(192, 320)"]),
        (lambda: load_recipe("small-data", {"image_size": [192, 320]}), ["image_size", "square", "[192, 320]"]),
        (lambda: load_recipe("small-data", {"image_size": "192,320"}), ["image_size", "square"]),
        (lambda: call_train(epochs=5), ["train", "epochs", 'load_recipe(NAME, {"epochs": VALUE})']),
        (lambda: call_train(imgsz=320), ["train", "imgsz", 'load_recipe(NAME, {"image_size": VALUE})']),
        (lambda: call_train(listner=print), ["train", "listner", "did you mean listener?"]),
        (lambda: call_train(wrong=1), ["wrong", "recipe, dataset, out, listener, notes, world"]),
        (lambda: call_train("small-data", scenes(), "nowhere"), ["load_recipe", "'small-data'"]),
        (lambda: call_train(small_recipe(), "photos", "nowhere"), ["open_dataset", "'photos'"]),
        (lambda: resume("nowhere", scenes(), alow=["data"]), ["resume", "did you mean allow?"]),
        (lambda: resume("nowhere", scenes(), allow="dta"), ["allow 'dta'", "data, recipe, ranks"]),  # type: ignore[arg-type]
        (lambda: resume("nowhere", "photos"), ["open_dataset", "'photos'"]),  # type: ignore[arg-type]
        (lambda: open_dataset("nowhere", skipbad=True), ["open_dataset", "did you mean skip_bad?"]),
        (lambda: load_predictor("nowhere", devce="cpu"), ["load_predictor", "did you mean device?"]),
        (lambda: call_predict(conf=0.4), ["conf", "did you mean confidence?"]),
        (lambda: call_predict(conf_thres=0.4), ["conf_thres", "did you mean confidence?"]),
        (lambda: call_predict(iou=0.4), ["iou", "did you mean iou_threshold?"]),
        (lambda: call_predict(imgsz=320), ["imgsz", "did you mean image_size?"]),
        (lambda: call_predict(max_det=3), ["max_det", "did you mean max_detections?"]),
        (lambda: call_predict(wrong=3), ["wrong", "confidence", "max_detections", "image_size"]),
        (lambda: call_predict(confidence="high"), ["confidence", "'high'", "must be a valid number"]),
        (lambda: call_predict(confidence=1.5), ["confidence", "1.5", "must be less than or equal to 1"]),
        (lambda: call_predict(batch_size="8"), ["batch size 8", "whole number"]),
        (lambda: call_predict(image_size="big"), ["image size 'big'", "(height, width)"]),
        (lambda: call_predict(image_size=320.5), ["image size 320.5", "(height, width)"]),
        (lambda: call_predict(image_size=(1, 2, 3)), ["image size (1, 2, 3)", "(height, width)"]),
        (lambda: call_predict(image_size=(190, 320)), ["image size 190 x 320", "multiples of 32", "take 192 x 320"]),
        (lambda: call_predict(image_size=(0, 320)), ["image size 0 x 320", "at least 32"]),
    ],
)
def test_wrong_keywords_and_values_are_told_with_what_may_be_meant(
    call: Callable[[], object], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_fields_of_a_recipe_may_be_given_as_keywords() -> None:
    recipe = load_recipe("small-data", {"loss.label_smoothing": 0.1, "epochs": 3}, epochs=7, image_size=320)
    assert (recipe.epochs, recipe.image_size, recipe.loss.label_smoothing) == (7, 320, 0.1)


def test_an_image_of_any_kind_of_path_is_read(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), GREY)
    (found,) = Predictor(SquareFinder(P5), INFO, device="cpu").predict(OtherPath(tmp_path / "grey.png"))
    assert (found.image_size, found.source) == ((32, 32), str(tmp_path / "grey.png"))
