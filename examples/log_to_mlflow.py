"""Train on a folder of labelled images and log the run to MLflow, stored in a local file; no server is needed.

pip install anchorite mlflow
python log_to_mlflow.py photos runs/photos --epochs 50
python log_to_mlflow.py photos runs/photos --resume         # after an interruption: continues, in the same MLflow run
mlflow ui --backend-store-uri sqlite:///mlflow.db           # to view it
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would report its use over the network

import mlflow

from anchorite.data import open_dataset
from anchorite.train import EpochDone, Event, RunFinished, RunStarted, load_recipe, loggers, resume, train


class MlflowLogger:
    """Logs settings at the start, the metrics of each epoch, and at the end the best weights."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, EpochDone) and event.epoch > self.last_epoch:
            mlflow.log_metrics({name: value for name, value in event.row.items() if name != "epoch"}, step=event.epoch)
        elif isinstance(event, RunFinished):
            mlflow.log_artifact(str(event.folder / "best.safetensors"))
            if event.best_epoch is not None:
                mlflow.log_metrics({"best_map": event.best_map, "best_epoch": event.best_epoch})

    def _start(self, event: RunStarted) -> None:
        note = event.folder / "mlflow-run-id.txt"
        if note.is_file():  # a resumed run: nothing is logged twice
            run = mlflow.start_run(run_id=note.read_text())
            history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/box")
            self.last_epoch = max((one.step for one in history), default=0)
            return
        self.last_epoch = 0
        run = mlflow.start_run(run_name=event.folder.name)
        note.write_text(run.info.run_id)
        mlflow.log_params(event.settings())
        mlflow.set_tags(dict(event.environment))
        mlflow.log_text("\n".join(event.class_names), "classes.txt")


def main() -> None:
    """Parse, train, log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--store", default="sqlite:///mlflow.db", help="where MLflow stores runs: a file or a server")
    parser.add_argument("--resume", action="store_true", help="resume the run in OUT")
    asked = parser.parse_args()
    mlflow.set_tracking_uri(asked.store)
    mlflow.set_experiment("anchorite")
    dataset = open_dataset(asked.data)
    status = "FAILED"
    try:
        if asked.resume:
            resume(asked.out, dataset, loggers(MlflowLogger()))
        else:
            recipe = load_recipe("small-data", {"epochs": asked.epochs, "image_size": asked.image_size})
            train(recipe, dataset, asked.out, loggers(MlflowLogger()))
        status = "FINISHED"
    finally:
        mlflow.end_run(status)


if __name__ == "__main__":
    main()
