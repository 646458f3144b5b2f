"""Searching recipe fields for a better detector: a declared space, a lasting study, a recipe as its result."""

from anchorite.tune.space import Choice, Range, Space, default_space, read_space
from anchorite.tune.study import Study, TrialDone

__all__ = ["Choice", "Range", "Space", "Study", "TrialDone", "default_space", "read_space"]
