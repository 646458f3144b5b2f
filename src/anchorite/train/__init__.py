"""Training: the recipe, one step, the loop, precision, the average, the optimizer and checkpoints."""

from anchorite.devices import choose_device, choose_precision
from anchorite.train.events import EpochDone, Event, Listener, RunFinished, RunStarted, StepDone, StoreProgress
from anchorite.train.loop import resume, train
from anchorite.train.recipe import Recipe, built_in_recipes, load_recipe, parse_setting
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
    "StoreProgress",
    "built_in_recipes",
    "choose_device",
    "choose_precision",
    "load_recipe",
    "parse_setting",
    "resume",
    "train",
]
