"""Train on a folder of labelled images and log the run to Weights & Biases, offline: nothing leaves the machine.

pip install anchorite wandb
python log_to_wandb.py photos runs/photos --epochs 50
python log_to_wandb.py photos runs/photos --resume          # after an interruption: continues, in the same W&B run
WANDB_MODE=online python log_to_wandb.py ...                # to upload it, after `wandb login`
wandb sync runs/photos/wandb/offline-run-*                  # to upload later what was logged offline
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own error reports, over the network

import wandb

from anchorite.data import open_dataset
from anchorite.train import EpochDone, Event, RunFinished, RunStarted, load_recipe, loggers, resume, train


class WandbLogger:
    """Logs settings at the start, the metrics of each epoch, and at the end the best weights."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, EpochDone):  # after a resume this begins after the checkpoint's epoch
            self.run.log(event.row, step=event.epoch)
        elif isinstance(event, RunFinished):
            weights = wandb.Artifact(f"{event.folder.name}-best", type="model", metadata={"best_map": event.best_map})
            weights.add_file(str(event.folder / "best.safetensors"))
            self.run.log_artifact(weights)

    def _start(self, event: RunStarted) -> None:
        note = event.folder / "wandb-run-id.txt"
        known = note.read_text() if note.is_file() else None
        self.run = wandb.init(
            project="anchorite",
            name=event.folder.name,
            dir=str(event.folder),
            id=known,
            resume="allow",
            config={**event.settings(), "classes": list(event.class_names), "environment": dict(event.environment)},
        )
        note.write_text(self.run.id)


def main() -> None:
    """Parse, train, log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--resume", action="store_true", help="resume the run in OUT")
    asked = parser.parse_args()
    dataset = open_dataset(asked.data)
    code = 1
    try:
        if asked.resume:
            resume(asked.out, dataset, loggers(WandbLogger()))
        else:
            recipe = load_recipe("small-data", {"epochs": asked.epochs, "image_size": asked.image_size})
            train(recipe, dataset, asked.out, loggers(WandbLogger()))
        code = 0
    finally:
        wandb.finish(code)


if __name__ == "__main__":
    main()
