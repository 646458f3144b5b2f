"""The processes that train together: what each of them knows of the others, and how they talk."""

from anchorite.ranks.group import ALONE, Ranks
from anchorite.ranks.joining import joined

__all__ = ["ALONE", "Ranks", "joined"]
