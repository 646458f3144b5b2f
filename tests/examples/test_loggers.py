"""The examples that log to other programs: what goes out, recorded by stand-ins that are held against the libraries."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from anchorite.data.scenes import write_scenes
from anchorite.train import Event, RunFolder, StepDone

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("log_to_mlflow", "log_to_wandb")


class Recording:
    """Takes the calls that an example makes of a library, bound to the parameters of the functions in mlflow 3.17 and
    wandb 0.31, with which the examples have been run.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def function(self, name: str, signature: str, result: object = None) -> Any:
        bound = inspect.signature(eval(f"lambda {signature}: None"))

        def call(*words: Any, **named: Any) -> object:
            self.calls.append((name, dict(bound.bind(*words, **named).arguments)))
            return result

        return call

    def of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


MLFLOW = {
    "set_tracking_uri": "uri",
    "set_experiment": "experiment_name=None",
    "start_run": "run_id=None, experiment_id=None, run_name=None",
    "log_params": "params",
    "log_metrics": "metrics, step=None",
    "log_artifact": "local_path, artifact_path=None",
    "log_text": "text, artifact_file",
    "set_tags": "tags",
    "end_run": "status='FINISHED'",
}
WANDB_RUN = {"log": "data, step=None, commit=None", "log_artifact": "artifact_or_path, name=None"}
WANDB = {
    "init": "*, project=None, dir=None, id=None, name=None, config=None, resume=None",
    "Artifact": "name, type, description=None, metadata=None",
    "finish": "exit_code=None",
}


def fake_mlflow(recording: Recording) -> ModuleType:
    run = SimpleNamespace(info=SimpleNamespace(run_id="run-7"))
    module = ModuleType("mlflow")
    for name, signature in MLFLOW.items():
        setattr(module, name, recording.function(name, signature, run))

    def history(run_id: str, key: str) -> list[SimpleNamespace]:
        assert (run_id, key) == ("run-7", "train/box")
        return [SimpleNamespace(step=one["step"]) for one in recording.of("log_metrics") if key in one["metrics"]]

    module.MlflowClient = lambda: SimpleNamespace(get_metric_history=history)  # type: ignore[attr-defined]
    return module


def fake_wandb(recording: Recording) -> ModuleType:
    run = SimpleNamespace(id="run-7", **{name: recording.function(name, text) for name, text in WANDB_RUN.items()})
    artifact = SimpleNamespace(add_file=recording.function("add_file", "local_path, name=None"))
    module = ModuleType("wandb")
    for name, signature in WANDB.items():
        setattr(module, name, recording.function(name, signature, {"init": run, "Artifact": artifact}.get(name)))
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", 6, 2, 0, seed=5, size_px=64)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recording:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "unset")
        monkeypatch.delenv(name)
    found = Recording()
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(found))
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(found))
    return found


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["example.py", *map(str, words)])
    module.main()


def interrupting(module: ModuleType, logger: str, epoch: int) -> None:
    """Let the example's own logger meet Ctrl-C within an epoch."""
    hear = getattr(module, logger).__call__

    def heard(self: Any, event: Event) -> None:
        hear(self, event)
        if isinstance(event, StepDone) and event.epoch == epoch:
            raise KeyboardInterrupt

    getattr(module, logger).__call__ = heard


def same(sent: dict[str, float], row: dict[str, str]) -> bool:
    pairs = [(value, float(row[name])) for name, value in sent.items()]
    return all(math.isclose(a, b, rel_tol=1e-5) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


@pytest.mark.slow
def test_mlflow_gets_settings_numbers_and_weights_once(
    data: Path, recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, out = example("log_to_mlflow"), tmp_path / "run"
    interrupting(module, "MlflowLogger", epoch=2)
    with pytest.raises(KeyboardInterrupt):
        run(module, monkeypatch, data, out, "--epochs", 3, "--image-size", 64)
    assert recording.of("end_run") == [{"status": "FAILED"}]
    run(example("log_to_mlflow"), monkeypatch, data, out, "--resume")
    assert recording.of("end_run")[1:] == [{"status": "FINISHED"}]
    assert not (out / "logger-errors.txt").exists()
    assert recording.of("start_run") == [{"run_name": "run"}, {"run_id": "run-7"}]
    assert recording.of("set_tracking_uri")[0] == {"uri": "sqlite:///mlflow.db"}
    (params,) = recording.of("log_params")
    assert params["params"]["epochs"] == 3
    assert params["params"]["effective.box"] > 0
    assert recording.of("set_tags")[0]["tags"]["device"]
    rows = RunFolder(out).read_rows()
    *epochs, best = recording.of("log_metrics")
    assert [one["step"] for one in epochs] == [1, 2, 3]
    assert all(one["metrics"].keys() == rows[0].keys() - {"epoch"} for one in epochs)
    assert all(same(one["metrics"], row) for one, row in zip(epochs, rows, strict=True))
    assert set(best["metrics"]) == {"best_map", "best_epoch"}
    assert recording.of("log_artifact") == [{"local_path": str(out / "best.safetensors")}]


@pytest.mark.slow
def test_wandb_gets_settings_numbers_and_weights_once(
    data: Path, recording: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, out = example("log_to_wandb"), tmp_path / "run"
    interrupting(module, "WandbLogger", epoch=2)
    with pytest.raises(KeyboardInterrupt):
        run(module, monkeypatch, data, out, "--epochs", 3, "--image-size", 64)
    run(example("log_to_wandb"), monkeypatch, data, out, "--resume")
    assert recording.of("finish") == [{"exit_code": 1}, {"exit_code": 0}]
    assert not (out / "logger-errors.txt").exists()
    first, second = recording.of("init")
    assert (first["id"], second["id"], second["resume"]) == (None, "run-7", "allow")
    assert first["config"]["epochs"] == 3
    assert len(first["config"]["classes"]) == 5
    rows, sent = RunFolder(out).read_rows(), recording.of("log")
    assert [one["step"] for one in sent] == [1, 2, 3]
    assert all(one["data"].keys() == rows[0].keys() for one in sent)
    assert all(same(one["data"], row) for one, row in zip(sent, rows, strict=True))
    (artifact,) = recording.of("Artifact")
    assert (artifact["name"], artifact["type"]) == ("run-best", "model")
    assert recording.of("add_file") == [{"local_path": str(out / "best.safetensors")}]
    assert len(recording.of("log_artifact")) == 1


def test_nothing_is_sent_anywhere_unless_asked_for(recording: Recording) -> None:
    import os

    for name in EXAMPLES:
        example(name)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert f"python {name}.py photos runs/photos" in text


def accepted(real: Any, signature: str) -> None:
    """Each parameter that the stand-in takes, the library takes by the same name, too."""
    names = inspect.signature(eval(f"lambda {signature}: None")).parameters
    assert set(names) <= set(inspect.signature(real).parameters), real


def test_the_stand_in_for_mlflow_is_like_it() -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed; the stand-in is all that is tested")
    for name, signature in MLFLOW.items():
        accepted(getattr(mlflow, name), signature)
    accepted(mlflow.MlflowClient.get_metric_history, "run_id, key")


def test_the_stand_in_for_wandb_is_like_it() -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed; the stand-in is all that is tested")
    for name, signature in WANDB.items():
        accepted(getattr(wandb, name), signature.removeprefix("*, "))
    for name, signature in WANDB_RUN.items():
        accepted(getattr(wandb.Run, name), signature)
    accepted(wandb.Artifact.add_file, "local_path, name=None")
