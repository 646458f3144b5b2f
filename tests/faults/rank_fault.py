"""The command line with a fault in one rank: python -m tests.faults.rank_fault MESSAGE train DATA ..."""

from __future__ import annotations

import os
import sys
from typing import Any

from anchorite.cli import main
from anchorite.errors import StorageError
from anchorite.train.step import TrainingStep

if __name__ == "__main__":
    message, *words = sys.argv[1:]
    accumulate = TrainingStep.accumulate
    calls = [0]

    def fail_in_rank_one(self: TrainingStep, *arguments: Any, **settings: Any) -> Any:
        """The step, until the third batch of rank 1."""
        calls[0] += 1
        if os.environ["RANK"] == "1" and calls[0] > 3:
            raise StorageError(message)
        return accumulate(self, *arguments, **settings)

    TrainingStep.accumulate = fail_in_rank_one  # type: ignore[method-assign]
    main(words)
