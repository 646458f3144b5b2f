"""Training: the recipe, one step, the loop, precision, the average, the optimizer and checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anchorite.train.built_in import built_in_recipes

if TYPE_CHECKING:
    from anchorite.devices import choose_device, choose_precision
    from anchorite.train.callbacks import listeners, loggers
    from anchorite.train.events import (
        EpochDone,
        Event,
        Listener,
        RunFinished,
        RunStarted,
        StepDone,
        StepSkipped,
        StoreProgress,
    )
    from anchorite.train.hf_backbone import read_hf_backbone
    from anchorite.train.places import device_of_rank
    from anchorite.train.pretrained import PretrainedWeights, read_pretrained
    from anchorite.train.recipe import Recipe, load_recipe, parse_setting, read_recipe, with_settings
    from anchorite.train.run_folder import RunFolder
    from anchorite.train.running import resume, train
    from anchorite.train.tensorboard import TensorBoard

__all__ = [
    "EpochDone",
    "Event",
    "Listener",
    "PretrainedWeights",
    "Recipe",
    "RunFinished",
    "RunFolder",
    "RunStarted",
    "StepDone",
    "StepSkipped",
    "StoreProgress",
    "TensorBoard",
    "built_in_recipes",
    "choose_device",
    "choose_precision",
    "device_of_rank",
    "listeners",
    "load_recipe",
    "loggers",
    "parse_setting",
    "read_hf_backbone",
    "read_pretrained",
    "read_recipe",
    "resume",
    "train",
    "with_settings",
]

_LATE = {
    "anchorite.devices": ("choose_device", "choose_precision"),
    "anchorite.train.callbacks": ("listeners", "loggers"),
    "anchorite.train.events": (
        "EpochDone", "Event", "Listener", "RunFinished", "RunStarted", "StepDone", "StepSkipped",
        "StoreProgress",
    ),
    "anchorite.train.places": ("device_of_rank",),
    "anchorite.train.running": ("resume", "train"),
    "anchorite.train.recipe": ("Recipe", "load_recipe", "parse_setting", "read_recipe", "with_settings"),
    "anchorite.train.run_folder": ("RunFolder",),
    "anchorite.train.hf_backbone": ("read_hf_backbone",),
    "anchorite.train.pretrained": ("PretrainedWeights", "read_pretrained"),
    "anchorite.train.tensorboard": ("TensorBoard",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `anchorite recipes` must not wait for it.
    for module, names in _LATE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
