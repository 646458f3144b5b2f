"""`Validator`: a split made ready once, a detector measured on it many times.

Legend: B images, L levels, A anchors per level, K classes, N detections of an image or of all images of a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from anchorite.boxes import Targets
from anchorite.data import (
    DatasetIndex,
    ImageStore,
    LeftOut,
    LetterboxedBatch,
    LetterboxTransform,
    Record,
    StoreMode,
    letterboxed_batches,
)
from anchorite.data.batches import plan_letterboxed
from anchorite.distributed import SINGLE_PROCESS, World
from anchorite.errors import DivergedError, InputError
from anchorite.evaluate.result import Stopwatch, ValidationLosses, ValidationResult
from anchorite.loss import LossTerms
from anchorite.metrics import Predictions, Truth, coco_metrics
from anchorite.model import Detector, fold_batch_norm, to_channels_last
from anchorite.model.fold import is_folded
from anchorite.predict import (
    BatchDetections,
    Ensemble,
    PredictConfig,
    Predictor,
    Runtime,
    batch_detections,
    images_not_finite,
    rename_iou_limit,
)

Progress = Callable[[int, int], None]
Criterion = Callable[[Sequence[Tensor], Targets], LossTerms]
Finish = Callable[[], ValidationResult]
_NUM_SHOWN = 5


class ValidationConfig(BaseModel):
    """Limits for measuring: far lower confidence than in use, because average precision integrates over all of them.

    confidence: least score. iou_threshold: of two boxes that overlap by more than this, the weaker one goes.
    max_detections: most boxes of an image (COCO's numbers use the best 100 of each class). class_agnostic: boxes of
    different classes compete too. multi_label: a place answers for every class above the confidence. rectangular: each
    image in the smallest network input that holds it, else in a square one, which computes on padding.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    confidence: float = Field(default=0.001, ge=0, le=1)
    iou_threshold: float = Field(default=0.55, ge=0, le=1)
    max_detections: int = Field(default=300, ge=1)
    class_agnostic: bool = False
    multi_label: bool = True
    rectangular: bool = True

    _earlier_name = model_validator(mode="before")(rename_iou_limit)

    def predict_config(self) -> PredictConfig:
        """The same limits as prediction takes them."""
        return PredictConfig(**self.model_dump(exclude={"rectangular"}))


@dataclass(frozen=True)
class Shared:
    """How ranks share a split. stride, rectangular: of the batches that a single process would make.

    Each rank takes whole ones of these batches, so that what is found in an image is the same to the bit.
    """

    world: World = SINGLE_PROCESS
    stride: int = 32
    rectangular: bool = True

    def mine(self, records: Sequence[Record], image_size: int, batch_size: int) -> list[int]:
        """The numbers of this rank's records, in their order."""
        if not self.world.is_distributed:
            return list(range(len(records)))
        plans = plan_letterboxed(records, image_size, batch_size, self.stride, self.rectangular)
        return sorted(index for plan in plans[self.world.rank :: self.world.world_size] for index in plan.indices)

    def left_out(self, records: Sequence[Record], mine: Sequence[int], here: Sequence[LeftOut]) -> dict[int, LeftOut]:
        """By their numbers, the records that any rank has left out; here: those that this rank has, of its own."""
        number_of = {records[index].path: index for index in mine}
        told = [(number_of[one.record.path], one.reason) for one in here]
        everyone = sorted(pair for part in self.world.all_gather(told) for pair in part)
        return {number: LeftOut(records[number], reason) for number, reason in everyone}

    def together(self, numbers: Sequence[int], predictions: Sequence[Predictions]) -> dict[int, Predictions]:
        """What all ranks found, by the numbers of the records, on the first rank; nothing on the others."""
        if not self.world.is_distributed:
            return dict(zip(numbers, predictions, strict=True))
        counts = [len(found.scores) for found in predictions]
        tensors = {
            "numbers": torch.tensor(numbers, dtype=torch.int64),
            "counts": torch.tensor(counts, dtype=torch.int64),
            "boxes_xyxy": torch.from_numpy(
                np.concatenate([np.zeros((0, 4)), *(found.boxes_xyxy for found in predictions)])
            ),
            "scores": torch.from_numpy(np.concatenate([np.zeros(0), *(found.scores for found in predictions)])),
            "class_ids": torch.from_numpy(
                np.concatenate([np.zeros(0, np.int64), *(found.class_ids for found in predictions)])
            ),
        }
        gathered: dict[int, Predictions] = {}
        for part in self.world.gather_tensors(tensors):
            splits = part["counts"].tolist()
            columns = (part[name].split(splits) for name in ("boxes_xyxy", "scores", "class_ids"))
            for number, *of_image in zip(part["numbers"].tolist(), *columns, strict=True):
                gathered[number] = Predictions(*(column.numpy() for column in of_image))
        return gathered


class Validator:
    """The images and labels of a split, decoded and resized once, for detectors with these classes.

    image_size: long side of the network input in pixels; store_mode: where decoded images are kept (see ImageStore);
    progress: called with (images done, images in all) while they are decoded; skip_bad: go on without those that cannot
    be, which `left_out` then names. shared: with several ranks each decodes and measures a part, and all must ask.
    Raises InputError when there are no records, and what building an ImageStore raises.
    """

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str],
        image_size: int,
        batch_size: int = 16,
        store_mode: StoreMode = "auto",
        progress: Progress | None = None,
        skip_bad: bool = False,
        shared: Shared | None = None,
    ) -> None:
        if not records or batch_size < 1:
            raise InputError(
                f"validation needs images and a batch of at least one; got {len(records)} images, batch {batch_size}"
            )
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.batch_size = batch_size
        self._shared = shared or Shared()
        mine = self._shared.mine(records, image_size, batch_size)
        self._store = ImageStore([records[number] for number in mine], image_size, store_mode, skip_bad=skip_bad)
        self._store.build(progress)
        gone = self._shared.left_out(records, mine, self._store.left_out)
        kept = [number for number in range(len(records)) if number not in gone]
        self.left_out = tuple(gone.values())
        self.records = tuple(records[number] for number in kept)
        if not self.records:
            raise InputError(
                f"none of the {len(records)} images to validate on can be decoded: {self.left_out[0].reason}"
            )
        position_of = {number: position for position, number in enumerate(kept)}
        self._positions = [position_of[number] for number in mine if number in position_of]  # of this rank's, in all
        self.truths = tuple(
            Truth(record.boxes_xyxy, record.class_ids, record.ignored, record.areas) for record in self.records
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def run(
        self,
        detector: Detector,
        config: ValidationConfig | None = None,
        device: torch.device | str | None = None,
        autocast_dtype: torch.dtype | None = None,
        criterion: Criterion | None = None,
    ) -> ValidationResult:
        """Measure a detector on every image, boxes in pixels of the original images.

        What runs is a copy with its batch normalisation folded. device: where to run, by default where the detector
        is; detector and criterion are moved there. They come back in the mode (training or not) they came in.
        autocast_dtype: None for none. With `criterion`, the losses are
        measured too, each image with the same weight. Raises InputError when the detector's classes do not fit or the
        image size is no multiple of its coarsest stride, DivergedError naming an image when its output is not finite.
        """
        finish = self.run_shared(detector, config, device, autocast_dtype, criterion)
        assert finish is not None, "of several ranks only the first has a result; call run_shared"
        return finish()

    def run_shared(
        self,
        detector: Detector,
        config: ValidationConfig | None = None,
        device: torch.device | str | None = None,
        autocast_dtype: torch.dtype | None = None,
        criterion: Criterion | None = None,
    ) -> Finish | None:
        """`run` for several ranks, which all call it with the same weights, but for computing the metrics.

        What is left of it on the first rank, which may be done in a thread; None on others.
        """
        self._check_fit(detector.num_classes)
        modules = [module for module in (detector, criterion) if isinstance(module, nn.Module)]
        device = _device_of(detector) if device is None else torch.device(device)
        for module in modules:
            module.to(device)
        config = config or ValidationConfig()
        limits, anchors = config.predict_config(), detector.anchors
        network = _made_fast(detector, autocast_dtype)
        batches = letterboxed_batches(
            self._store, self.image_size, self.batch_size, detector.strides[-1], config.rectangular
        )

        def loss_terms(logits: Sequence[Tensor], batch: LetterboxedBatch) -> Sequence[Tensor]:
            assert criterion is not None
            return criterion(logits, batch_targets(self._store.records, batch).to(device))[1:]

        with torch.inference_mode(), _evaluating(modules):
            return self._measure(
                batches,
                lambda images: _forward(network, images, device, autocast_dtype),
                lambda logits: batch_detections(logits, anchors, limits),
                None if criterion is None else loss_terms,
            )

    def run_exported(self, runtime: Runtime, config: ValidationConfig | None = None) -> ValidationResult:
        """`run` for a network that something else than torch runs; raises what `run` raises, and what it does."""
        self._check_fit(len(runtime.info.class_names))
        if runtime.fixed_side not in (None, self.image_size):
            raise InputError(f"image size {self.image_size}: the export takes {runtime.fixed_side} px alone")
        config = config or ValidationConfig()
        limits = config.predict_config()
        rectangular = config.rectangular and runtime.fixed_side is None
        stride = runtime.info.anchors.strides[-1]
        batches = letterboxed_batches(self._store, self.image_size, self.batch_size, stride, rectangular)
        finish = self._measure(batches, runtime.outputs, lambda outputs: runtime.detections(outputs, limits))
        assert finish is not None, "exports are measured by a single process"
        return finish()

    def run_predictor(
        self, predictor: Predictor | Ensemble, config: ValidationConfig | None = None, image_size: int | None = None
    ) -> ValidationResult:
        """`run` for a predictor or an ensemble, which reads the image files by itself: all its time is "forward".

        image_size: long side of its input, None for its own; the validator's is for the images it keeps itself, so that
        it may be made with `store_mode` "none". Raises what predicting raises, and InputError when classes do not fit.
        """
        self._check_fit(len(predictor.info.class_names))
        limits = (config or ValidationConfig()).predict_config()
        stopwatch = Stopwatch()
        with stopwatch("forward"):
            paths = [record.path for record in self.records]
            results = predictor.stream(paths, limits, image_size, self.batch_size)
            found = [result.detections for result in results]
        predictions = tuple(
            Predictions(one.boxes_xyxy.double().numpy(), one.scores.double().numpy(), one.class_ids.numpy())
            for one in found
        )
        return self._result(predictions, None, stopwatch)

    def _measure(
        self,
        batches: Iterable[LetterboxedBatch],
        outputs_of: Callable[[Tensor], Sequence[Tensor]],
        detections_of: Callable[[Sequence[Tensor]], BatchDetections],
        losses_of: Callable[[Sequence[Tensor], LetterboxedBatch], Sequence[Tensor]] | None = None,
    ) -> Finish | None:
        """All batches through a network: its outputs, what is found in them, and (3,) loss terms where asked for."""
        found_by_index: dict[int, Predictions] = {}
        sums = torch.zeros(3, dtype=torch.float64)
        stopwatch = Stopwatch()
        for batch in stopwatch.waiting("data", batches):
            with stopwatch("forward"):
                outputs = outputs_of(batch.images)
                self._check_finite(outputs, batch)  # also waits for the device
            with stopwatch("nms"):
                raw = detections_of(outputs).cpu()
                found_by_index |= dict(zip(batch.indices.tolist(), _as_predictions(raw, batch.transforms), strict=True))
            if losses_of is not None:
                with stopwatch("loss"):
                    sums += torch.stack(list(losses_of(outputs, batch))).double().cpu() * len(batch.indices)
        world = self._shared.world
        losses = None if losses_of is None else ValidationLosses(*(world.all_reduce(sums) / len(self)).tolist())
        together = self._shared.together(
            self._positions, [found_by_index[index] for index in range(len(self._positions))]
        )
        if not world.is_main:
            return None
        predictions = tuple(together[index] for index in range(len(self)))
        return lambda: self._result(predictions, losses, stopwatch)

    def _result(
        self, predictions: tuple[Predictions, ...], losses: ValidationLosses | None, stopwatch: Stopwatch
    ) -> ValidationResult:
        with stopwatch("metrics"):
            metrics = coco_metrics(self.truths, predictions, self.class_names)
        return ValidationResult(metrics, losses, self.truths, predictions, self.class_names, stopwatch.speed(len(self)))

    def _check_fit(self, num_classes: int) -> None:
        if num_classes != len(self.class_names):
            raise InputError(
                f"the detector knows {num_classes} classes, the dataset has {len(self.class_names)}; "
                "validate on data with the classes it was trained for"
            )

    def _check_finite(self, outputs: Sequence[Tensor], batch: LetterboxedBatch) -> None:
        for number in images_not_finite(outputs):
            raise DivergedError(
                f"{self._store.records[int(batch.indices[number])].path}: the network's output for this image is not "
                "finite: its training diverged or its weights are damaged. Use earlier weights, or try float32"
            )


def _as_predictions(raw: BatchDetections, transforms: Sequence[LetterboxTransform]) -> list[Predictions]:
    """Boxes moved back and clipped to their images, as prediction does; those wholly in the padding are dropped.

    All images of a batch at once: what differs from one to the next is a row of numbers.
    """
    rows = np.array(
        [(*one.pad_left_top, *one.scale_xy, *one.source_size_hw[::-1]) for one in transforms], dtype=np.float64
    )
    counts = raw.counts.numpy()
    image = np.repeat(np.arange(len(counts)), counts)
    pads, scales, ends = (np.tile(part, 2)[image] for part in np.split(rows, 3, axis=1))
    boxes_xyxy = np.clip((raw.boxes_xyxy.numpy().astype(np.float64) - pads) / scales, 0, ends)
    inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    splits = np.bincount(image[inside], minlength=len(counts)).cumsum()[:-1]
    columns = (boxes_xyxy, raw.scores.numpy().astype(np.float64), raw.class_ids.numpy())
    parts = (np.split(column[inside], splits) for column in columns)
    return [Predictions(*of_image) for of_image in zip(*parts, strict=True)]


def _made_fast(detector: Detector, autocast_dtype: torch.dtype | None) -> Detector:
    """A detector that answers alike: folded, and its weights in the number format they would be converted to anyway."""
    if is_folded(detector):
        return detector
    network = fold_batch_norm(detector)
    to_channels_last(network)
    return network if autocast_dtype is None else network.to(dtype=autocast_dtype)


def _forward(
    network: Detector, images: Tensor, device: torch.device, autocast_dtype: torch.dtype | None
) -> list[Tensor]:
    """Logits of L levels, each (B, A, 5 + K, H, W), of uint8 images (B, 3, H, W)."""
    is_reduced = autocast_dtype not in (None, torch.float32)
    precision = torch.autocast(device.type, autocast_dtype) if is_reduced else nullcontext()
    with precision:
        logits: list[Tensor] = network(images.to(device, non_blocking=True).float() / 255)
    return logits


def _device_of(detector: nn.Module) -> torch.device:
    parameter = next(detector.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside the block, each module's own mode after it, whatever happens."""
    were_training = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)


def batch_targets(records: Sequence[Record], batch: LetterboxedBatch) -> Targets:
    """The labelled boxes of a batch of letterboxed images, (T, 6) float32 rows, without the ignored ones."""
    height, width = batch.images.shape[-2:]
    rows = [np.zeros((0, 6))]
    for number, (index, transform) in enumerate(zip(batch.indices.tolist(), batch.transforms, strict=True)):
        kept = ~records[index].ignored
        boxes = transform.to_network(records[index].boxes_xyxy[kept]) / (width, height, width, height)
        lows, highs = boxes[:, :2], boxes[:, 2:]
        head = np.stack([np.full(len(boxes), number), records[index].class_ids[kept]], axis=1)
        rows.append(np.concatenate([head, (lows + highs) / 2, highs - lows], axis=1))
    return Targets.from_rows(torch.from_numpy(np.concatenate(rows)).float())


def require_classes(
    weights: Path, known: tuple[str, ...], data: Path, given: tuple[str, ...], remedy: str = "name data of its own"
) -> None:
    """InputError where weights know other classes than the data has, or in another order, naming the first difference.

    remedy: what to do, before "with the same classes in the same order".
    """
    if known == given:
        return
    if len(known) != len(given):
        difference = f"{len(known)} and {len(given)} of them, {_shown(known)} and {_shown(given)}"
    else:
        number = next(number for number, names in enumerate(zip(known, given, strict=True)) if names[0] != names[1])
        difference = f"class {number} is {known[number]!r} and {given[number]!r}"
    raise InputError(
        f"{weights} and {data} have other classes: {difference}; {remedy} with the same classes in the same order"
    )


def require_side(image_size: int, stride: int, of_what: str) -> int:
    """The image size; InputError where it is no multiple of the coarsest stride of something, naming the next one."""
    if image_size % stride:
        raise InputError(
            f"--image-size {image_size}: must be a multiple of {stride}, the coarsest stride of {of_what}; "
            f"take {-(-image_size // stride) * stride}"
        )
    return image_size


def require_images(dataset: DatasetIndex, split: str, said: str = "--split") -> Sequence[Record]:
    """The records of a split; InputError where it is not there or empty, naming those that are.

    said: what the user said to have it looked for.
    """
    records = dataset.splits.get(split, ())
    if not records:
        there = ", ".join(f"{name} ({len(images)} images)" for name, images in dataset.splits.items() if images)
        what = "is empty" if split in dataset.splits else "is not there"
        raise InputError(f"{said} {split}: {what}; the splits of {dataset.root} are {there or 'all empty'}")
    return records


def _shown(names: tuple[str, ...]) -> str:
    return repr(list(names[:_NUM_SHOWN])) + (" and more" if len(names) > _NUM_SHOWN else "")
