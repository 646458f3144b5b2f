"""Training: the recipe, one step, the loop, precision, the average, the optimizer and checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anchorite.train.built_in import built_in_recipes

if TYPE_CHECKING:
    from anchorite.devices import choose_device, choose_precision
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
    from anchorite.train.loop import resume, train
    from anchorite.train.recipe import Recipe, load_recipe, parse_setting, with_settings
    from anchorite.train.run_folder import RunFolder

__all__ = [
    "EpochDone",
    "Event",
    "Listener",
    "Recipe",
    "RunFinished",
    "RunFolder",
    "RunStarted",
    "StepDone",
    "StepSkipped",
    "StoreProgress",
    "built_in_recipes",
    "choose_device",
    "choose_precision",
    "load_recipe",
    "parse_setting",
    "resume",
    "train",
    "with_settings",
]

_LATE = {
    "anchorite.devices": ("choose_device", "choose_precision"),
    "anchorite.train.events": (
        "EpochDone", "Event", "Listener", "RunFinished", "RunStarted", "StepDone", "StepSkipped",
        "StoreProgress",
    ),
    "anchorite.train.loop": ("resume", "train"),
    "anchorite.train.recipe": ("Recipe", "load_recipe", "parse_setting", "with_settings"),
    "anchorite.train.run_folder": ("RunFolder",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `anchorite recipes` must not wait for it.
    for module, names in _LATE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
