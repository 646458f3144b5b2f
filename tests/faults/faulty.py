"""The command line with a fault in its training step, for `ForkedProcess`."""

from __future__ import annotations

import os
import time
from typing import Any

from anchorite.cli import main
from anchorite.errors import StorageError
from anchorite.train.step import TrainingStep


def fail_in_rank_one(message: str, words: list[str]) -> None:
    """Rank 1 fails with the message at its fourth batch."""
    accumulate = TrainingStep.accumulate
    calls = [0]

    def failing(self: TrainingStep, *arguments: Any, **settings: Any) -> Any:
        calls[0] += 1
        if os.environ["RANK"] == "1" and calls[0] > 3:
            raise StorageError(message)
        return accumulate(self, *arguments, **settings)

    TrainingStep.accumulate = failing  # type: ignore[method-assign]
    main(words)


def take_a_minute(words: list[str]) -> None:
    """Every step says that it has begun and takes a minute, which stands for anything slow."""
    accumulate = TrainingStep.accumulate

    def slow(self: TrainingStep, *arguments: Any, **settings: Any) -> Any:
        print("run: in a step", flush=True)
        for _ in range(600):
            time.sleep(0.1)
        return accumulate(self, *arguments, **settings)

    TrainingStep.accumulate = slow  # type: ignore[method-assign]
    main(words)
