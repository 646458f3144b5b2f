"""Training: the recipe, setting up a run, the loop and its step, the optimizer, checkpoints and the run folder."""

from anchorite.train.events import (
    DataChecked,
    EpochDone,
    Event,
    Listener,
    RunFinished,
    RunStarted,
    StepDone,
    StepSkipped,
    StoreProgress,
    ValidationProgress,
    listeners,
    loggers,
)
from anchorite.train.pretrained import PretrainedWeights, read_hf_backbone, read_pretrained
from anchorite.train.recipe import Recipe, load_recipe, parse_setting, read_recipe, with_settings
from anchorite.train.run import extend, extended_recipe, resume, train
from anchorite.train.run_folder import RunFolder
from anchorite.train.setup import device_of_rank
from anchorite.train.tensorboard import TensorBoard

__all__ = [
    "DataChecked",
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
    "ValidationProgress",
    "device_of_rank",
    "extend",
    "extended_recipe",
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
