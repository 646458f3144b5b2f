"""Memory: the batch that fits into what is free, and what is told when it runs out all the same.

A step keeps its activations, which grow with the pixels of a batch, and numbers of each matched place, which grow with
its boxes and with the classes. On a CPU both are measured at a small step and scaled up: what is too much there is not
refused by the system but ends the process. On a CUDA device, whose kernels take workspaces that nobody can foresee,
whole steps are tried.

`batch: auto` tries the images of an optimizer step (`optimizer.nominal_batch`), half of them and so on. With fewer
images in a batch more batches are accumulated for a step, so that what is learned is much the same wherever it runs.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.anchors import AnchorSet
from anchorite.boxes import Targets
from anchorite.data import Batch, DatasetIndex, ImageStore, LoaderConfig, Split
from anchorite.data.device import DEVICE_SHARE, DeviceStore
from anchorite.data.store import available_memory, spendable_memory
from anchorite.devices import choose_precision
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import NoMemoryError, is_out_of_memory
from anchorite.loss import DetectionLoss
from anchorite.model import Detector, HFBackboneSource, default_anchors, to_channels_last
from anchorite.train.optim import Settings
from anchorite.train.recipe import Recipe
from anchorite.train.setup import build_train_state, device_of_rank
from anchorite.train.step import Objective, TrainingStep

_CUDA_SHARE = 0.9  # of the free memory: blocks of several sizes leave gaps
# Of peaks over what is kept: of activations, of the numbers of matched places, and of bytes of weights (gradients,
# momentum, EMA). Sizes n and s, 320 px, float32: peaks are .69 to .90 of what these give.
_OF_ACTIVATIONS, _OF_PLACES, _OF_WEIGHTS = 1.4, 2.5, 4
_BOXES_MEASURED = 200


def with_fitting_batch(
    recipe: Recipe, dataset: DatasetIndex, world: World = SINGLE_PROCESS, backbone: HFBackboneSource | None = None
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with a number as its batch, the same on all ranks, and a sentence on it if it was "auto".

    Raises NoMemoryError when not even one image a rank fits.
    """
    if recipe.batch != "auto":
        return recipe, ()
    device = device_of_rank(recipe.device, world)
    candidates = list(halves(recipe.optimizer.nominal_batch, world.world_size))
    train = dataset.split("train")
    # Boxes of the images, most first; of a stream, which is not looked through, as many as four images have.
    counts = np.full(1, 4 * train.num_boxes() / max(1, len(train)))
    if not train.is_shuffled:
        counts = np.sort(train.table().images["num_boxes"])[::-1]
    work = Work(recipe, len(dataset.class_names), counts, world, backbone)
    if device.type == "cpu":
        free, how = spendable_memory(), "by a smaller step"
        if free is not None:
            images = sum(ImageStore(one, recipe.image_size).num_bytes for one in _stored(recipe, dataset))
            free = (free - images if images < free else free) // world.local_world_size
        found = (candidates[0], 0) if free is None else largest_fitting(candidates, work.estimate, free)
    else:
        free, how = int(_CUDA_SHARE * torch.cuda.mem_get_info(device)[0]), "by trial steps"
        stored = [one for one in _stored(recipe, dataset) if one is train and recipe.store in ("auto", "device")]
        images = sum(DeviceStore(one, recipe.image_size, device).num_bytes for one in stored)
        free -= images if images <= DEVICE_SHARE * free else 0
        found = largest_fitting(candidates, work.trials_on(device), free)
        gc.collect()
        torch.cuda.empty_cache()  # what comes next looks at what is free
    everywhere = world.all_gather(found)
    limit = "what is free (not known here)" if free is None else f"{_size(free)} to spare"
    if None in everywhere:
        raise NoMemoryError(
            f"batch auto: not even {candidates[-1]} image{'s' * (candidates[-1] > 1)} of {recipe.image_size} px at "
            f"model {recipe.model}, {len(dataset.class_names)} classes and up to {int(counts.max(initial=0))} boxes an "
            f"image fit into {limit} on {device}: use a smaller --image-size or --model, or free memory"
        )
    batch, need = min(map(tuple, everywhere))
    sentence = (
        f"batch {batch} (auto): a step takes about {_size(need)} of {limit}, {how}; of {candidates[0]} (the images of "
        "an optimizer step), a half, a quarter and so on the largest that fits"
    )
    return recipe.model_copy(update={"batch": batch}), (sentence,)


def halves(batch: int, least: int) -> Iterator[int]:
    """A batch, half of it and so on, down to `least`, the number of ranks; that alone where it is more."""
    while batch > least:
        yield batch
        batch //= 2
    yield least


def largest_fitting(candidates: Sequence[int], needs: Callable[[int], int], limit: int) -> tuple[int, int] | None:
    """The first of the candidates that needs no more bytes than the limit, with what it needs; None where none does.

    needs: may raise what is raised where memory runs out.
    """
    for batch in candidates:
        try:
            need = needs(batch)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        if need <= limit:
            return batch, need
    return None


def _stored(recipe: Recipe, dataset: DatasetIndex) -> list[Split]:
    """The splits whose images are kept in memory, if they fit there."""
    splits = [dataset.split(name) for name in ("train", "val")]
    return [one for one in splits if len(one) and not one.is_shuffled and recipe.store not in ("disk", "none")]


@dataclass(frozen=True)
class Work:
    """What a step does. counts: (N,) boxes of the images, most first."""

    recipe: Recipe
    num_classes: int
    counts: NDArray[Any]
    world: World
    backbone: HFBackboneSource | None

    def part(self, batch: int) -> tuple[int, int]:
        """Images of the largest part of a batch that a rank has, and the most boxes that they may show."""
        images = -(-batch // self.world.world_size)
        return images, int(images * self.counts[:images].mean()) if len(self.counts) else 0

    def estimate(self, batch: int) -> int:
        """Bytes that a step takes on a CPU."""
        (images, boxes), (a_pixel, a_box, weights) = self.part(batch), self.bytes_each
        pixels = images * self.sides()[-1] ** 2
        return int(_OF_ACTIVATIONS * a_pixel * pixels + _OF_PLACES * a_box * boxes + _OF_WEIGHTS * weights)

    @cached_property
    def bytes_each(self) -> tuple[float, float, int]:
        """Bytes that a step keeps for its backward pass, a pixel and a box, by two small ones; those of all weights."""
        recipe, anchors = self.recipe, self.anchors
        detector = Detector(recipe.model, self.num_classes, anchors, self.backbone.config if self.backbone else None)
        to_channels_last(detector)
        config = recipe.loss.scaled(anchors.num_levels, self.num_classes, recipe.image_size)
        criterion = DetectionLoss(anchors, self.num_classes, config)
        dtype = choose_precision(recipe.precision, torch.device("cpu")).dtype
        objective, side = Objective(detector, criterion, dtype), 4 * anchors.strides[-1]
        few, many = (kept_bytes(objective, _batch_of(2, side, boxes)) for boxes in (2, 2 + _BOXES_MEASURED))
        weights = sum(one.nbytes for one in detector.parameters())
        return few / (2 * side**2), (many - few) / _BOXES_MEASURED, weights

    def trials_on(self, device: torch.device) -> Callable[[int], int]:
        """What tells the bytes that a CUDA device takes for a step, by making it; weights and all are thrown away."""
        recipe, names = self.recipe, tuple(map(str, range(self.num_classes)))
        anchors, precision = self.anchors, choose_precision(recipe.precision, device)
        state, _ = build_train_state(
            recipe, names, None, anchors, device, precision, None, SINGLE_PROCESS, self.backbone
        )
        step = TrainingStep(state, precision, recipe.optimizer.clip_norm, device)
        settings = Settings(lr=0.0, bias_lr=0.0, momentum=recipe.optimizer.momentum)

        def need(batch: int) -> int:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            step.accumulate(_batch_of(self.part(batch)[0], self.sides()[-1], self.part(batch)[1]))
            step.apply(settings)
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_reserved(device)

        return need

    @property
    def anchors(self) -> AnchorSet:
        """The recipe's own, else the usual ones: which of them are fitted to the data does not matter here."""
        usual = default_anchors(self.recipe.model)
        own = self.recipe.anchor_table(usual.strides)
        return usual if own is None else own

    def sides(self) -> range:
        """The canvas sides, in pixels, that a batch may have."""
        step = self.anchors.strides[-1]
        return LoaderConfig(multi_scale=self.recipe.multi_scale, size_step=step).possible_sides(self.recipe.image_size)


def _batch_of(num_images: int, side: int, num_boxes: int) -> Batch:
    """Grey images with boxes of many sizes, in all."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(num_boxes, 6, generator=generator)
    rows[:, 0], rows[:, 1] = torch.arange(num_boxes) % num_images, 0
    rows[:, 4:] = 0.02 + 0.2 * rows[:, 4:]
    images = torch.full((num_images, side, side, 3), 114, dtype=torch.uint8).permute(0, 3, 1, 2)
    return Batch(images, Targets.from_rows(rows), torch.arange(num_images))


def kept_bytes(objective: Objective, batch: Batch) -> int:
    """Bytes that the forward pass of a batch keeps for the backward pass, besides weights and buffers."""
    known = {one.untyped_storage().data_ptr() for one in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = objective(batch.images, tuple(vars(batch.targets).values()), (), None)
    assert terms.total.grad_fn is not None  # what is kept lives as long as this
    return sum(kept.values())


def memory_facts(error: BaseException, device: torch.device) -> str:
    """What was asked for when memory ran out, as far as the error tells, and what was free, in words."""
    asked = re.search(r"allocate ([0-9.]+) ?(bytes|[KMGT]iB)", str(error))
    units = {"bytes": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
    wanted = f"{_size(float(asked[1]) * 2 ** units[asked[2]])} were asked for, " if asked else ""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return f"{wanted}{'an unknown amount was' if free is None else f'{_size(free)} were'} free on {device}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
