"""TensorBoard's events of real runs, read back by TensorBoard itself."""

from __future__ import annotations

import math
import sys
import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util.tensor_util import make_ndarray

from anchorite.cli import run as run_command
from anchorite.cli.display import Display
from anchorite.cli.options import OutputOptions
from anchorite.cli.train import tensorboard_logger
from anchorite.errors import InputError
from anchorite.train import (
    EpochDone,
    Event,
    RunFolder,
    RunStarted,
    StepDone,
    TensorBoard,
    listeners,
    loggers,
    resume,
    train,
)
from anchorite.train.events import ignore
from tests.processes import ForkedProcess
from tests.train.runs import Recorder, scenes, small_recipe

pytestmark = pytest.mark.usefixtures("small_networks")


class Killed(Exception):
    """Stands for a death without a chance to say anything."""


@cache
def logged() -> tuple[Path, Recorder]:
    """A run of two epochs with its events; tests must not change it."""
    out, recorder = Path(mkdtemp()) / "run", Recorder()
    with TensorBoard() as board:
        train(small_recipe(), scenes(), out, listeners(recorder, board))
    return out, recorder


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def equal(value: float, text: str) -> bool:
    """A float32 against the six digits of the same number."""
    expected = float(text)
    return (math.isnan(expected) and math.isnan(value)) or math.isclose(value, expected, rel_tol=1e-5)


def assert_as_metrics(out: Path) -> None:
    """Every number of metrics.csv once, at its epoch, and no other."""
    rows, found = RunFolder(out).read_rows(), curves(out / "events")
    assert set(found) == set(rows[0]) - {"epoch"}
    for tag, points in found.items():
        assert [step for step, _ in points] == [int(row["epoch"]) for row in rows], tag
        assert all(equal(value, row[tag]) for (_, value), row in zip(points, rows, strict=True)), tag


def test_every_number_of_the_metrics_is_there() -> None:
    assert len(RunFolder(logged()[0]).read_rows()[0]) > 20
    assert_as_metrics(logged()[0])


def test_steps_have_losses_rates_and_speed() -> None:
    out, recorder = logged()
    found, steps = curves(out / "events" / "steps"), recorder.of(StepDone)
    fields = ("box", "objectness", "classification", "lr", "bias_lr", "images_per_second")
    assert set(found) == {f"step/{name}" for name in fields}
    for name in fields:
        expected = [(event.step, float(np.float32(getattr(event, name)))) for event in steps]
        assert found[f"step/{name}"] == expected


def test_settings_and_decisions_are_there() -> None:
    out, recorder = logged()
    (started,) = recorder.of(RunStarted)
    events = read(out / "events")
    content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    session = hparams.parse_session_start_info_plugin_data(content).hparams
    settings = started.settings()
    assert session.keys() == settings.keys()
    assert session["optimizer.lr"].number_value == small_recipe().optimizer.lr
    assert session["loss.automatic_balance"].bool_value is True
    assert session["effective.box"].number_value == started.gains["box"]
    assert session["workers"].number_value == 0
    assert session["optimizer.name"].string_value == small_recipe().optimizer.name

    def text(tag: str) -> str:
        (event,) = events.Tensors(tag)
        return bytes(make_ndarray(event.tensor_proto).item()).decode()

    assert text("run/decisions").splitlines() == [f"- {decision}" for decision in started.decisions]
    assert [line.partition(". ")[2] for line in text("run/classes").splitlines()] == list(scenes().class_names)
    assert "- device: cpu" in text("run/environment").splitlines()
    assert "nominal_batch: 8" in text("run/recipe")


def test_pictures_of_the_split_val_are_there_for_each_best_epoch() -> None:
    out, recorder = logged()
    improved = [event.epoch for event in recorder.of(EpochDone) if event.improved]
    events = read(out / "events")
    names = [f"val/{number} {record.path.name}" for number, record in enumerate(scenes().splits["val"], 1)]
    assert events.Tags()["images"] == names
    for name, record in zip(names, scenes().splits["val"], strict=True):
        points = events.Images(name)
        assert [point.step for point in points] == improved
        shown = cv2.imdecode(np.frombuffer(points[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (points[0].height, points[0].width, 3)
        plain = cv2.imread(str(record.path))
        assert shown.shape == plain.shape
        # Nothing has been found above the least score this early: the picture is the image, in its own colours.
        assert np.abs(shown.astype(int) - plain).mean() < 12


@pytest.mark.slow
def test_a_resumed_run_has_no_point_twice(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def die(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 8:
            raise Killed

    board = TensorBoard()  # never closed
    with pytest.raises(Killed):
        train(small_recipe(epochs=4), scenes(), out, listeners(board, die))
    shown = [step for step, _ in curves(out / "events" / "steps")["step/box"]]
    assert shown[:6] == [1, 2, 3, 4, 5, 6], "what the epochs that are done have is on disk"
    (events,) = [path for path in (out / "events").iterdir() if path.is_file()]
    with events.open("ab") as file:  # and in the middle of a record
        file.write(events.read_bytes()[:30])
    recorder = Recorder()
    with TensorBoard() as second:
        resume(out, scenes(), listeners(recorder, second))
    assert recorder.of(RunStarted)[0].first_step == 6
    assert_as_metrics(out)
    again = curves(out / "events" / "steps")["step/box"]
    assert [step for step, _ in again] == list(range(1, 13))
    told = {event.step: float(np.float32(event.box)) for event in recorder.of(StepDone)}
    assert [value for step, value in again if step > 6] == list(told.values())
    assert len(read(out / "events").Tensors("run/recipe")) == 1


def test_long_epochs_have_at_most_a_hundred_points(tmp_path: Path) -> None:
    with TensorBoard() as board:
        board(RunStarted(tmp_path, (), 0, 2, 1050))
        for number in range(1, 2101):
            board(StepDone(1 + number // 1051, 1, 0.1, 0.2, 0.3, 9.0, 1.0, step=number))
    steps = [step for step, _ in curves(tmp_path / "events" / "steps")["step/box"]]
    assert 90 <= len(steps) / 2 <= 100
    assert len({after - before for before, after in pairwise(steps)}) == 1


def test_no_thread_and_no_file_stays_open(tmp_path: Path) -> None:
    before = threading.enumerate()
    with TensorBoard() as board:
        board(RunStarted(tmp_path, (), 0, 1, 1))
    assert threading.enumerate() == before
    assert not [file for file in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(file.resolve())]


def test_a_full_disk_costs_the_events_and_not_the_run(tmp_path: Path) -> None:
    out, told = tmp_path / "run", list[str]()

    def spoil(event: Event) -> None:
        if isinstance(event, RunStarted):
            (out / "events").write_text("in the way")

    train(small_recipe(epochs=1), scenes(), out, listeners(spoil, loggers(TensorBoard(), tell=told.append)))
    assert len(told) == 1
    assert told[0].startswith("logger TensorBoard failed at RunStarted: FileExistsError")
    assert (out / "best.safetensors").is_file()


def test_without_the_package_nothing_is_read_or_made(tmp_path: Path) -> None:
    words = ["train", "no-such-data", "--tensorboard", "--out", str(tmp_path / "run")]
    process = ForkedProcess("tests.cli.commands:run_without", "tensorboard", words)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "install it: pip install 'anchorite[tensorboard]'" in errors
    assert "no-such-data" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_events_goes_on_without_the_package_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events").mkdir()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with tensorboard_logger(False, Display(), tmp_path) as logger:
        assert logger is ignore
    assert f"{tmp_path / 'events'} is not continued" in capsys.readouterr().out
    with tensorboard_logger(False, Display(OutputOptions(quiet=True)), tmp_path) as logger:
        assert logger is ignore
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is not continued" in captured.err
    with pytest.raises(InputError, match="pip install"), tensorboard_logger(True, Display()):
        pass


@pytest.mark.slow
def test_the_command_writes_events_and_goes_on_with_them_unasked(tmp_path: Path) -> None:
    from tests.cli.commands import data_folder, quick_recipe

    out = tmp_path / "run"
    assert (
        run_command(["train", str(data_folder()), "--recipe", quick_recipe(), "--tensorboard", "--out", str(out)]) == 0
    )
    assert_as_metrics(out)
    # As if it had been killed in its second epoch.
    (out / "summary.json").unlink()
    for path in (out / "checkpoints").glob("epoch-0002.*"):
        path.unlink()
    assert run_command(["train", "--resume", str(out)]) == 0
    assert_as_metrics(out)
    assert len([path for path in (out / "events").iterdir() if path.is_file()]) == 2
