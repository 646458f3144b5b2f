"""What is left of a run that diverged: the batch it failed on, and what was not finite first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from anchorite.data import Record
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.files import write_bytes_atomically, write_text_atomically
from anchorite.train.loss_meter import Skipped


def facts_of(skipped: Skipped, records: Sequence[Record], world: World = SINGLE_PROCESS) -> dict[str, Any]:
    """A skipped step in plain types: where, what was not finite, and its images on all ranks (the first tile of each).

    All ranks must ask.
    """
    box, objectness, classification = (str(term) for term in skipped.terms)
    indices = [index for batch in skipped.batches for index in batch.indices.tolist()]
    return {
        "epoch": skipped.epoch,
        "batch": skipped.batch,
        "not_finite": skipped.fault,
        "losses": {"box": box, "objectness": objectness, "classification": classification},
        "in_a_row": skipped.in_a_row,
        "images": [path for paths in world.all_gather([str(records[i].path) for i in indices]) for path in paths],
    }


def post_mortem_path(folder: Path, skipped: Skipped) -> Path:
    """Where the facts of a divergence are written; the batch lies beside them."""
    return folder / f"post-mortem-epoch-{skipped.epoch:04d}-batch-{skipped.batch:05d}.json"


def write_post_mortem(path: Path, skipped: Skipped, facts: dict[str, Any]) -> None:
    """Write the last batch as safetensors (images uint8, targets as rows), and the facts beside it as JSON in `path`.

    With several ranks the batch is the first one's part of it. Raises StorageError when the folder cannot be written.
    """
    last = skipped.batches[-1]
    content = save(
        {
            "images": last.images.cpu().contiguous(),
            "targets": last.targets.compact().rows.cpu().contiguous(),
            "indices": last.indices.cpu(),
        }
    )
    write_bytes_atomically(path.with_suffix(".safetensors"), content)
    write_text_atomically(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
