"""Setting up a run: from a recipe and a dataset to network, loss, optimizer, loaders, and the reason of each choice."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import anchorite
from anchorite.anchors import AnchorSet, best_possible_recall, fit_anchors
from anchorite.data import DatasetIndex, Loader, LoaderConfig, SampleConfig, Split, open_loader, without_images
from anchorite.devices import (
    Precision,
    choose_compile,
    choose_device,
    choose_precision,
    keep_freed_memory,
    use_full_float32,
)
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import InputError
from anchorite.evaluate import ReadConfig, Validator
from anchorite.inspect import require_boxes
from anchorite.inspect.overview import sentence
from anchorite.loss import DetectionLoss
from anchorite.model import MAX_IMAGE_SIZE, Detector, HFBackbone, HFBackboneSource, default_anchors, to_channels_last
from anchorite.train.checkpoint import Progress, environment
from anchorite.train.events import Listener, RunStarted, StoreProgress, ignore
from anchorite.train.optim import EMA, build_optimizer, decay_after, settings_at, warmup_steps
from anchorite.train.pretrained import PretrainedWeights, describe_frozen, freeze, load_matching, refuse_early
from anchorite.train.recipe import Recipe
from anchorite.train.step import TrainState

_LR_POINTS = 100  # of the planned learning rates, in run.json


def device_of_rank(name: str, world: World) -> torch.device:
    """This rank's device: of several ranks each has the GPU of its number on its machine.

    Raises InputError when there is none for it, or the name is that of a single one.
    """
    device = choose_device(name)
    if not world.is_distributed or device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"device {name}: {world.world_size} ranks cannot share one; say cuda, and each takes its own")
    if world.local_world_size > torch.cuda.device_count():
        raise InputError(
            f"{world.local_world_size} ranks on this machine, which has {torch.cuda.device_count()} CUDA devices: "
            "start one rank a device (torchrun --nproc-per-node), or train with --device cpu"
        )
    return torch.device("cuda", world.local_rank)


def _describe_ranks(recipe: Recipe, device: torch.device, world: World) -> list[str]:
    """A sentence on how ranks share the batches; none for a single process. InputError when some would get nothing."""
    if not world.is_distributed:
        return []
    if recipe.batch_size < world.world_size:
        raise InputError(
            f"batch {recipe.batch_size} for {world.world_size} ranks: it is the batch of all together, and each needs "
            f"an image; raise --batch to {world.world_size} or more, or start fewer ranks"
        )
    if recipe.sync_batch_norm and device.type != "cuda":
        raise InputError(
            f"sync_batch_norm on {device}: PyTorch synchronises batch normalisation on CUDA devices only; leave it "
            "out, and each process normalises its own part of the batch"
        )
    least, more = divmod(recipe.batch_size, world.world_size)
    part = f"{least} images each" if not more else f"{least} or {least + 1} images each, some ranks wait for others"
    norm = "of the whole batch" if recipe.sync_batch_norm else "of each rank's part (sync_batch_norm: of the whole)"
    return [f"ranks {world.world_size}: batch {recipe.batch_size}, {part}; statistics of batch normalisation {norm}"]


@dataclass(frozen=True)
class Prepared:
    """What a run works with. dataset: without the images that were left out because they cannot be decoded; decisions:
    one sentence for each value that was chosen, not given.
    """

    dataset: DatasetIndex
    train_state: TrainState
    loader: Loader
    validator: Validator | None
    device: torch.device
    precision: Precision
    compiled: bool
    decisions: tuple[str, ...]
    kept: str = ""  # a sentence on the pre-trained weights that were loaded; empty without any
    world: World = SINGLE_PROCESS


def prepare(
    recipe: Recipe,
    dataset: DatasetIndex,
    anchors: AnchorSet | None = None,
    listener: Listener = ignore,
    start: PretrainedWeights | None = None,
    world: World = SINGLE_PROCESS,
    backbone: HFBackboneSource | None = None,
) -> Prepared:
    """Build network, loss, optimizer, loaders for a run; `anchors` overrides the choice (a resumed run's own).

    start: the weights that the network begins with; None for random ones, or for those of a checkpoint to come.
    backbone: the one of transformers that it has, None for our own. The listener hears how the decoding of the
    images goes on. Images that cannot be decoded are left out first where the data set was opened with skip_bad, so
    that nothing is chosen by what is not trained on. Raises InputError when there is nothing to learn from or the
    recipe does not fit the machine.
    """
    require_boxes(dataset)
    refuse_early(recipe.model, recipe.optimizer.freeze)
    device = device_of_rank(recipe.device, world)
    precision = choose_precision(recipe.precision, device)
    use_full_float32()
    synchronised = recipe.sync_batch_norm and world.is_distributed
    compiled, why = choose_compile(recipe.compile, device, recipe.multi_scale == 0, synchronised)
    decisions = [
        f"device {device}",
        f"precision {precision.name}: {precision.reason}",
        f"torch.compile {'on' if compiled else 'off'}: {why}",
        *_describe_ranks(recipe, device, world),
    ]
    if recipe.deterministic:
        decisions.append(
            "deterministic on: torch takes algorithms that add in a fixed order, and warns where it has none"
        )
    if device.type == "cpu" and keep_freed_memory():
        decisions.append("memory: freed blocks stay with the process, for the next step")
    val = dataset.split("val")
    lack = "the val split has no labels" if val else "no val split"
    has_labels = bool(val) and val.class_counts(len(dataset.class_names)).any()
    loader, validator = _open_data(recipe, dataset, device, listener, world)
    for split, left_out in (("train", loader.left_out), ("val", validator.left_out if validator else ())):
        if left_out:
            what = sentence("unreadable-image", [str(one.path) for one in left_out])
            decisions.append(f"{split}, {len(dataset.splits[split])} images: {what}")
        dataset = without_images(dataset, split, left_out)
    require_boxes(dataset)
    refuse_single_values(recipe, loader, world)
    torch.manual_seed(recipe.seed)
    why_anchors = "anchors of the run"
    if anchors is None:
        anchors, why_anchors = choose_anchors(recipe, dataset.splits["train"], start)
    names, train = dataset.class_names, dataset.splits["train"]
    counts = train.class_counts(len(names)) if recipe.class_bias_from_data else None
    train_state, kept = build_train_state(recipe, names, counts, anchors, device, precision, start, world, backbone)
    decisions += [text for text in (why_anchors, backbone and backbone.description, kept) if text]
    decisions += describe_frozen(train_state.detector, recipe.optimizer, has_weights=recipe.weights is not None)
    gains = ", ".join(f"{name} {gain:.4g}" for name, gain in _gains(train_state.criterion).items())
    decisions.append(f"effective gains: {gains} (scaled by levels, image size and classes)")
    decisions += loader.decisions
    if not has_labels:
        decisions.append(f"{lack}: every epoch replaces best.safetensors, and no mAP is known")
    return Prepared(dataset, train_state, loader, validator, device, precision, compiled, tuple(decisions), kept, world)


def refuse_single_values(recipe: Recipe, loader: Loader, world: World) -> None:
    """InputError where some batch would be normalised over one value a channel, of which torch makes no statistics: a
    rank has one image of it, and its coarsest map is a single cell.
    """
    config, sizes = loader.batches.config, loader.batches.sizes
    stride = default_anchors(recipe.model).strides[-1]

    def has_single(batch_size: int) -> bool:
        """Whether a rank has one image of a full or of the last batch."""
        chosen = replace(sizes, config=config.model_copy(update={"batch_size": batch_size}))
        batches = {0, chosen.num_batches - 1}
        return any(chosen.part(batch, rank) == 1 for batch in batches for rank in range(world.world_size))

    if config.possible_sides(recipe.image_size)[0] > stride or not has_single(recipe.batch_size):
        return
    if (recipe.sync_batch_norm and world.is_distributed) or {"backbone", "neck"} <= {*recipe.optimizer.freeze}:
        return  # statistics are of all ranks, or stay as they are
    sides = range(recipe.image_size + stride, MAX_IMAGE_SIZE + 1, stride)
    side = next(side for side in sides if config.possible_sides(side)[0] > stride)
    others = range(recipe.batch_size + 1, recipe.batch_size + sizes.num_samples + 2)
    other = next((f", or --batch {batch}" for batch in others if not has_single(batch)), "")
    raise InputError(
        f"batch {recipe.batch_size} of {sizes.num_samples} images leaves one image "
        f"{'on a rank ' * world.is_distributed}in a batch, and at {stride} px its coarsest map (stride {stride}) is "
        f"one cell: batch normalisation needs more than one value; use --image-size {side} or more{other}"
    )


def choose_anchors(recipe: Recipe, records: Split, start: PretrainedWeights | None = None) -> tuple[AnchorSet, str]:
    """The run's anchors and why: the recipe's own, else those of the weights to start from or the default of the size,
    else fitted ones where the recall of these is short.
    """
    usual = default_anchors(recipe.model)
    own = recipe.anchor_table(usual.strides)
    if own is not None:
        return own, "anchors: as given in the recipe"
    default, name = (usual, "default") if start is None else (start.info.anchors, "of the weights")
    limit = recipe.loss.ratio_limit
    wh_px = records.box_sides(recipe.image_size)
    recall = best_possible_recall(wh_px, default, limit)
    threshold = recipe.anchors.recall_threshold
    if recall >= threshold or not recipe.anchors.refit:
        return default, f"anchors: {name}; best possible recall {recall:.4f} (refitted under {threshold})"
    try:
        fitted = fit_anchors(wh_px, default.strides, default.num_anchors, limit, seed=recipe.seed)
    except InputError as error:
        return default, f"anchors: {name}; best possible recall {recall:.4f}, but {error}"
    better = best_possible_recall(wh_px, fitted, limit)
    if better <= recall:
        return default, f"anchors: {name}; best possible recall {recall:.4f}, which fitting does not raise"
    return fitted, f"anchors: fitted to the data; best possible recall {recall:.4f} -> {better:.4f}"


def _open_data(
    recipe: Recipe, dataset: DatasetIndex, device: torch.device, listener: Listener, world: World
) -> tuple[Loader, Validator | None]:
    """The loader of the train split, and the validator of the val split where there is one."""
    stride = default_anchors(recipe.model).strides[-1]
    loader = open_loader(
        dataset.splits["train"],
        SampleConfig(recipe.augment, recipe.image_size, recipe.seed, recipe.epochs),
        LoaderConfig(
            batch_size=recipe.batch_size,
            workers=recipe.workers,
            multi_scale=recipe.multi_scale,
            size_step=stride,
            worker_timeout_s=recipe.worker_timeout_s,
            storage=recipe.store,
            compile=recipe.compile,
            skip_bad=dataset.skip_bad,
        ),
        device=device,
        progress=lambda num_done, num_images: listener(StoreProgress("train", num_done, num_images)),
        world=world,
    )
    if not dataset.split("val"):
        return loader, None
    return loader, Validator(
        dataset.split("val"),
        dataset.class_names,
        recipe.image_size,
        ReadConfig(
            recipe.batch_size, recipe.image_store, dataset.skip_bad, world, stride, recipe.validation.rectangular
        ),
        progress=lambda num_done, num_images: listener(StoreProgress("val", num_done, num_images)),
    )


def build_train_state(
    recipe: Recipe,
    class_names: Sequence[str],
    class_counts: NDArray[np.int64] | None,
    anchors: AnchorSet,
    device: torch.device,
    precision: Precision,
    start: PretrainedWeights | None,
    world: World,
    backbone: HFBackboneSource | None,
) -> tuple[TrainState, str]:
    """The train state, and a sentence on the pre-trained weights that were loaded. class_counts: (K,) boxes of each
    class, from which its bias starts; None for the same bias everywhere."""
    num_classes = len(class_names)
    detector = Detector(recipe.model, num_classes, anchors, backbone.config if backbone else None)
    if backbone is not None:
        assert isinstance(detector.backbone, HFBackbone)
        detector.backbone.start_from(backbone)
    if class_counts is not None and class_counts.any() and num_classes > 1:
        detector.head.start_biases(class_counts.tolist())
    kept = "" if start is None else load_matching(detector, start, class_names)
    freeze(detector, recipe.optimizer.freeze)
    detector = detector.to(device)
    to_channels_last(detector)
    config = recipe.loss.scaled(anchors.num_levels, num_classes, recipe.image_size)
    train_state = TrainState(
        detector=detector,
        criterion=DetectionLoss(anchors, num_classes, config, world).to(device),
        optimizer=build_optimizer(detector, recipe.optimizer),
        ema=EMA(detector, recipe.ema),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.scaled),
    )
    if recipe.sync_batch_norm and world.is_distributed:  # not the EMA, which never trains
        nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    return train_state, kept


def _gains(criterion: DetectionLoss) -> dict[str, float]:
    """The weights of the loss's terms as the run uses them, scaled by levels, image size and classes."""
    config = criterion.config
    return {"box": config.box_gain, "objectness": config.objectness_gain, "class": config.class_gain}


def derived_settings(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a new run computed from its recipe, its data and the machine, as JSON values for run.json."""
    optimizer, batches = recipe.optimizer, len(prepared.loader)
    accumulation = optimizer.accumulation(recipe.batch_size)
    steps_per_epoch = math.ceil(batches / accumulation)
    num_steps = steps_per_epoch * recipe.epochs
    points = sorted({round(i * (num_steps - 1) / (_LR_POINTS - 1)) for i in range(_LR_POINTS)})
    planned = [settings_at(step, num_steps, steps_per_epoch, optimizer) for step in points]
    mosaic_epochs = max(0, recipe.epochs - recipe.augment.close_mosaic_epochs) if recipe.augment.mosaic else 0
    return {
        "device": str(prepared.device),
        "precision": prepared.precision.name,
        "precision_reason": prepared.precision.reason,
        "compiled": prepared.compiled,
        "anchors": prepared.train_state.detector.anchors.to_rows(),
        "gains": _gains(prepared.train_state.criterion),
        "balance": prepared.train_state.criterion.balance.tolist(),
        "batches_per_epoch": batches,
        "accumulation": accumulation,
        "batch": recipe.batch_size,
        "images_per_step": recipe.batch_size * accumulation,
        "steps_per_epoch": steps_per_epoch,
        "num_steps": num_steps,
        "warmup_steps": warmup_steps(num_steps, steps_per_epoch, optimizer),
        "warmup_bias_lr": optimizer.first_bias_lr,
        "lr_last": settings_at(num_steps - 1, num_steps, steps_per_epoch, optimizer).lr,
        "lr_plan": {
            "epochs": [step / steps_per_epoch for step in points],
            "lr": [one.lr for one in planned],
            "bias_lr": [one.bias_lr for one in planned],
        },
        "ema_decay_last": decay_after(num_steps, recipe.ema),
        "mosaic_epochs": mosaic_epochs,
    }


def run_started(folder: Path, recipe: Recipe, prepared: Prepared, progress: Progress) -> RunStarted:
    """The event of a run that begins at a point of progress."""
    return RunStarted(
        folder=folder,
        decisions=prepared.decisions,
        first_epoch=progress.epoch,
        num_epochs=recipe.epochs,
        num_batches=len(prepared.loader),
        first_batch=progress.partial.batches,
        recipe=recipe,
        class_names=prepared.dataset.class_names,
        gains=_gains(prepared.train_state.criterion),
        environment={
            "anchorite": anchorite.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **environment(prepared.train_state),
            "precision": prepared.precision.name,
        },
        val_images=tuple(record.path for record in prepared.dataset.splits.get("val", ())),
    )
