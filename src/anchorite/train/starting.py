"""What a run tells at its start."""

from __future__ import annotations

import platform
from pathlib import Path

import anchorite
from anchorite.train.checkpoint import environment
from anchorite.train.events import RunStarted
from anchorite.train.preparation import Prepared
from anchorite.train.progress import Progress
from anchorite.train.recipe import Recipe


def run_started(folder: Path, recipe: Recipe, prepared: Prepared, progress: Progress) -> RunStarted:
    """The event of a run that begins at a point of progress."""
    config = prepared.train_state.criterion.config
    return RunStarted(
        folder=folder,
        decisions=prepared.decisions,
        first_epoch=progress.epoch,
        num_epochs=recipe.epochs,
        num_batches=len(prepared.loader),
        first_batch=progress.partial.batches,
        recipe=recipe,
        class_names=prepared.dataset.class_names,
        gains={"box": config.box_gain, "objectness": config.objectness_gain, "class": config.class_gain},
        environment={
            "anchorite": anchorite.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **environment(prepared.train_state),
            "precision": prepared.precision.name,
        },
        val_images=tuple(record.path for record in prepared.dataset.splits.get("val", ())),
    )
