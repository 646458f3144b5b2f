"""The processes that train together: what each of them knows of the others, and how they talk."""

from anchorite.distributed.process_group import init_process_group
from anchorite.distributed.world import SINGLE_PROCESS, World

__all__ = ["SINGLE_PROCESS", "World", "init_process_group"]
