"""What is left of a run that diverged: the batch it failed on, and what was not finite first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from anchorite.data import Record
from anchorite.files import write_bytes_atomically, write_text_atomically
from anchorite.train.loss_watch import Skipped


def facts_of(skipped: Skipped, records: Sequence[Record]) -> dict[str, Any]:
    """A skipped step in plain types: where, what was not finite, and its images (the first tile of each)."""
    box, objectness, classification = (str(term) for term in skipped.terms)
    indices = [index for batch in skipped.batches for index in batch.indices.tolist()]
    return {
        "epoch": skipped.epoch,
        "batch": skipped.batch,
        "not_finite": skipped.fault,
        "losses": {"box": box, "objectness": objectness, "classification": classification},
        "in_a_row": skipped.in_a_row,
        "images": [str(records[index].path) for index in indices],
    }


def write_post_mortem(folder: Path, skipped: Skipped, facts: dict[str, Any]) -> Path:
    """Write the last batch as safetensors (images uint8, targets as rows) and the facts beside it as JSON.

    Returns the path of the JSON; raises StorageError when the folder cannot be written.
    """
    path = folder / f"post-mortem-epoch-{skipped.epoch:04d}-batch-{skipped.batch:05d}.json"
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
    return path
