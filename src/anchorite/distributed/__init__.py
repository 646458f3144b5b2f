"""Distributed training: the process group, world size, rank and reductions."""

from anchorite.distributed.process_group import init_process_group
from anchorite.distributed.world import SINGLE_PROCESS, World

__all__ = ["SINGLE_PROCESS", "World", "init_process_group"]
