"""Peak memory of a training step with the matched-cell head, and with dense logits in its place."""

from __future__ import annotations

import torch

from anchorite.benchmark.memory import in_fresh_process, peak_extra_bytes
from anchorite.benchmark.results import Comparison, Figure
from anchorite.benchmark.settings import Settings
from anchorite.benchmark.subjects import batch_for
from anchorite.benchmark.training_subjects import training_step, whole_step
from anchorite.devices import choose_precision

_CLASSES, _OBJECTS = 80, 8


def training_memory(settings: Settings) -> list[Comparison]:
    """Size n, 80 classes, 16 images of 640 px; nothing where the system does not tell a process its peak."""
    batch, image_size = (2, 64) if settings.quick else (16, 640)
    # Each in a process of its own, whose allocator has no holes yet.
    sizes = (settings.device, batch, image_size)
    peak, dense_peak = (in_fresh_process(peak_of_step, *sizes, dense) for dense in (False, True))
    if peak is None or dense_peak is None:
        return []
    ours, dense = Figure("matched cells", float(peak), "B"), Figure("dense logits", float(dense_peak), "B")
    return [Comparison(f"peak memory of a training step, {batch} images of {image_size} px", ours, dense, "cost")]


def peak_of_step(device: torch.device, batch: int, image_size: int, dense: bool) -> int | None:
    """Peak extra bytes of one step, optimizer and average included."""
    step = training_step("n", _CLASSES, image_size, device, choose_precision("auto", device))
    if dense:
        head = step.train_state.detector.head
        head.matched = head.dense  # type: ignore[method-assign, assignment]
    return peak_extra_bytes(whole_step(step, batch_for(batch, image_size, _OBJECTS, _CLASSES, device)), device)
