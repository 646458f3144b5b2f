"""Hyperparameter search over recipe fields: a search space, a persistent study, and a recipe as its result."""

from anchorite.tune.space import Choice, Range, Space, default_space, read_space
from anchorite.tune.study import Study, TrialDone

__all__ = ["Choice", "Range", "Space", "Study", "TrialDone", "default_space", "read_space"]
