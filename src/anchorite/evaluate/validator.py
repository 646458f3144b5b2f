"""`Validator`: a split made ready once, a detector measured on it many times.

Legend: B images, L levels, A anchors per level, K classes, N detections of an image or of all images of a rank.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from anchorite.boxes import LabelCoverage, Targets
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
from anchorite.errors import InputError
from anchorite.evaluate.result import Stopwatch, ValidationLosses, ValidationResult
from anchorite.files import StrPath
from anchorite.loss import LossTerms
from anchorite.metrics import Predictions, Truth, coco_metrics
from anchorite.model import Detector, WeightsInfo
from anchorite.predict import (
    BatchDetections,
    Ensemble,
    ImageSize,
    PredictConfig,
    Predictor,
    Runtime,
    TorchRuntime,
    require_finite,
)
from anchorite.predict.postprocess import IOU_THRESHOLD_NAMES

Progress = Callable[[int, int], None]
Criterion = Callable[..., LossTerms]  # of logits, Targets and, where the labels do not know everything, LabelCoverage
Finish = Callable[[], ValidationResult]


class ValidationConfig(BaseModel):
    """Limits for measuring: far lower confidence than in use, because average precision integrates over all of them.

    confidence: least score. iou_threshold: of two boxes that overlap by more than this, the weaker one goes.
    max_detections: most boxes of an image (COCO's numbers use the best 100 of each class). class_agnostic: boxes of
    different classes compete too. multi_label: a place answers for every class above the confidence. rectangular: each
    image in the smallest network input that holds it, else in a square one, which computes on padding.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    confidence: float = Field(default=0.001, ge=0, le=1)
    iou_threshold: float = Field(default=0.55, ge=0, le=1, validation_alias=IOU_THRESHOLD_NAMES)
    max_detections: int = Field(default=300, ge=1)
    class_agnostic: bool = False
    multi_label: bool = True
    rectangular: bool = True

    def predict_config(self) -> PredictConfig:
        """The same limits as prediction takes them."""
        return PredictConfig(**self.model_dump(exclude={"rectangular"}))


@dataclass(frozen=True)
class ReadConfig:
    """How a `Validator` reads its images.

    store_mode: where decoded images are kept (see ImageStore); skip_bad: go on without those that cannot be decoded.
    world: the ranks that share the split; each decodes and measures whole ones of the batches that a single process
    would make of this `stride` and `rectangular`, so that what is found in an image is the same to the bit.
    """

    batch_size: int = 16
    store_mode: StoreMode = "auto"
    skip_bad: bool = False
    world: World = SINGLE_PROCESS
    stride: int = 32
    rectangular: bool = True


class Validator:
    """The images and labels of a split, decoded and resized once, for detectors with these classes.

    image_size: long side of the network input in pixels; progress: called with (images done, images in all) while they
    are decoded. `records` are those that are measured, `left_out` those that cannot be decoded. Of several ranks, all
    must ask. Raises InputError when there are no records, and what building an ImageStore raises.
    """

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str],
        image_size: int,
        reading: ReadConfig | None = None,
        progress: Progress | None = None,
    ) -> None:
        if isinstance(image_size, list | tuple):
            raise InputError(
                f"image size {image_size}: a Validator keeps images by their longer side; give one number, and the "
                "pair to run_predictor"
            )
        self.reading = reading = reading or ReadConfig()
        if not records or reading.batch_size < 1:
            raise InputError(
                f"validation needs images and a batch of at least one; got {len(records)} images, batch "
                f"{reading.batch_size}"
            )
        self.class_names = tuple(class_names)
        self.image_size = image_size
        world, mine = reading.world, list(range(len(records)))
        if world.is_distributed:
            plans = plan_letterboxed(records, image_size, reading.batch_size, reading.stride, reading.rectangular)
            mine = sorted(index for plan in plans[world.rank :: world.world_size] for index in plan.indices)
        self._store = ImageStore(
            [records[number] for number in mine], image_size, reading.store_mode, skip_bad=reading.skip_bad
        )
        self._store.build(progress)
        number_of = {records[number].path: number for number in mine}
        told = [(number_of[one.path], one.reason) for one in self._store.left_out]
        reasons = dict(sorted(pair for of_rank in world.all_gather(told) for pair in of_rank))
        self.left_out = tuple(LeftOut(records[number].path, reason) for number, reason in reasons.items())
        kept = [number for number in range(len(records)) if number not in reasons]
        if not kept:
            raise InputError(
                f"none of the {len(records)} images to validate on can be decoded: {self.left_out[0].reason}"
            )
        self.records = tuple(records[number] for number in kept)
        position_of = {number: position for position, number in enumerate(kept)}
        self._positions = [position_of[number] for number in mine if number in position_of]  # of this rank's, in all
        self.truths = tuple(_truths(self.records))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def runtime(
        self, detector: Detector, device: torch.device | str | None = None, autocast_dtype: torch.dtype | None = None
    ) -> TorchRuntime:
        """A copy of a detector as `run_shared` takes it; arguments as for `run`."""
        self._check_fit(detector.num_classes)
        if device is None:
            device = next((parameter.device for parameter in detector.parameters()), "cpu")
        info = WeightsInfo("", self.class_names, detector.anchors, self.image_size)
        return TorchRuntime(detector, info, device, precision=None, autocast_dtype=autocast_dtype)

    def run(
        self,
        network: Detector | Runtime,
        config: ValidationConfig | None = None,
        device: torch.device | str | None = None,
        autocast_dtype: torch.dtype | None = None,
        criterion: Criterion | None = None,
        progress: Progress | None = None,
    ) -> ValidationResult:
        """Measure a detector, or a network that is ready to run, boxes in pixels of the original images.

        What runs of a detector is a copy in evaluation mode with its batch normalisation folded. device: where it runs,
        by default where it is. autocast_dtype: None for none. With `criterion`, the losses are measured too, each image
        with the same weight. progress: called with (images done, images in all) after each batch, and with all done
        before each part of the metrics. Raises InputError when the classes do not fit or the image size is no multiple
        of the coarsest stride, DivergedError naming an image when an output is not finite, and what the network raises.
        """
        runtime = self.runtime(network, device, autocast_dtype) if isinstance(network, nn.Module) else network
        with ExitStack() as stack:
            if isinstance(criterion, nn.Module):
                assert isinstance(runtime, TorchRuntime), "a loss needs logits, which exports do not give"
                stack.callback(criterion.train, criterion.training)
                criterion.to(runtime.device).eval()
            finish = self.run_shared(runtime, config, criterion, progress)
        assert finish is not None, "of several ranks only the first has a result; call run_shared"
        return finish()

    def run_predictor(
        self,
        predictor: Predictor | Ensemble,
        config: ValidationConfig | None = None,
        image_size: ImageSize | None = None,
    ) -> ValidationResult:
        """`run` for a predictor or an ensemble, which reads the image files by itself: all its time is "forward".

        image_size: of its input, None for its own; the validator's is for the images it keeps itself, so that
        it may be made with `store_mode` "none". Raises what predicting raises, and InputError when classes do not fit.
        """
        self._check_fit(len(predictor.info.class_names))
        limits = (config or ValidationConfig()).predict_config()
        paths, stopwatch = [record.path for record in self.records], Stopwatch()
        with stopwatch("forward"):
            results = predictor.stream(paths, limits, image_size, self.reading.batch_size)
            found = [result.detections for result in results]
        columns = ((one.boxes_xyxy.double(), one.scores.double(), one.class_ids) for one in found)
        predictions = [Predictions(*(column.numpy() for column in of_image)) for of_image in columns]
        return self._result(predictions, None, stopwatch)

    @torch.inference_mode()
    def run_shared(
        self,
        runtime: Runtime,
        config: ValidationConfig | None = None,
        criterion: Criterion | None = None,
        progress: Progress | None = None,
    ) -> Finish | None:
        """`run` for several ranks, which all call it with the same weights, but for computing the metrics.

        What is left of it on the first rank, which may be done in a thread, and so does not report progress where there
        are several; None on others. Raises what `run` raises.
        """
        self._check_fit(len(runtime.info.class_names))
        if runtime.fixed_side not in (None, self.image_size):
            raise InputError(f"image size {self.image_size}: the export takes {runtime.fixed_side} px alone")
        config, records, stopwatch = config or ValidationConfig(), self._store.records, Stopwatch()
        progress = progress or (lambda *_: None)
        limits, rectangular = config.predict_config(), config.rectangular and runtime.fixed_side is None
        predictions: dict[int, Predictions] = {}
        sums = torch.zeros(3, dtype=torch.float64)
        batches = letterboxed_batches(
            self._store, self.image_size, self.reading.batch_size, runtime.info.anchors.strides[-1], rectangular
        )
        while True:
            with stopwatch("data"):
                batch = next(batches, None)
            if batch is None:
                break
            indices = batch.indices.tolist()
            with stopwatch("forward"):
                outputs = runtime.outputs(batch.images)
                require_finite(outputs, [records[index].path for index in indices])  # also waits for the device
            with stopwatch("nms"):
                raw = runtime.detections(outputs, limits).cpu()
                found = predictions_in_images(raw, batch.transforms)
                predictions |= {self._positions[index]: one for index, one in zip(indices, found, strict=True)}
            if criterion is not None:
                with stopwatch("loss"):
                    device, coverage = outputs[0].device, batch_coverage(records, batch)
                    known = () if coverage is None else (coverage.to(device),)
                    terms = criterion(outputs, batch_targets(records, batch).to(device), *known)[1:]
                    sums += torch.stack(list(terms)).double().cpu() * len(indices)
            progress(len(predictions) * len(self) // len(records), len(self))  # other ranks are about as far
        world = self.reading.world
        losses = None if criterion is None else ValidationLosses(*(world.all_reduce(sums) / len(self)).tolist())
        predictions = gather_predictions(world, predictions)
        if not world.is_main:
            return None
        say = (lambda: None) if world.is_distributed else (lambda: progress(len(self), len(self)))
        return lambda: self._result([predictions[position] for position in range(len(self))], losses, stopwatch, say)

    def _result(
        self,
        predictions: Sequence[Predictions],
        losses: ValidationLosses | None,
        stopwatch: Stopwatch,
        say: Callable[[], None] = lambda: None,
    ) -> ValidationResult:
        predictions = tuple(predictions)
        with stopwatch("metrics"):
            metrics = coco_metrics(self.truths, predictions, self.class_names, say)
        return ValidationResult(metrics, losses, self.truths, predictions, self.class_names, stopwatch.speed(len(self)))

    def _check_fit(self, num_classes: int) -> None:
        if num_classes != len(self.class_names):
            raise InputError(
                f"the detector knows {num_classes} classes, the dataset has {len(self.class_names)}; "
                "validate on data with the classes it was trained for"
            )


def _truths(records: Sequence[Record]) -> Iterator[Truth]:
    covered: dict[int, NDArray[np.bool_]] = {}  # of each source once: there may be many classes
    for one in records:
        flags = one.source.covered
        known = None if flags is None else covered.setdefault(id(flags), np.array(flags))
        yield Truth(one.boxes_xyxy, one.class_ids, one.ignored, one.areas, known)


def gather_predictions(world: World, predictions: dict[int, Predictions]) -> dict[int, Predictions]:
    """What all ranks found, by the numbers of the images, on the first rank; nothing on the others."""
    if not world.is_distributed:
        return predictions
    columns = ("boxes_xyxy", "scores", "class_ids")
    none = Predictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    found = [none, *predictions.values()]
    tensors = {name: torch.from_numpy(np.concatenate([getattr(one, name) for one in found])) for name in columns}
    tensors["numbers"] = torch.tensor(list(predictions), dtype=torch.int64)
    tensors["counts"] = torch.tensor([len(one) for one in found[1:]], dtype=torch.int64)
    gathered: dict[int, Predictions] = {}
    for part in world.gather_tensors(tensors):
        splits = (part[name].split(part["counts"].tolist()) for name in columns)
        for number, *of_image in zip(part["numbers"].tolist(), *splits, strict=True):
            gathered[number] = Predictions(*(column.numpy() for column in of_image))
    return gathered


def predictions_in_images(raw: BatchDetections, transforms: Sequence[LetterboxTransform]) -> list[Predictions]:
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


def batch_targets(records: Sequence[Record], batch: LetterboxedBatch) -> Targets:
    """The labelled boxes of a batch of letterboxed images, (T, 6) float32 rows, without the ignored ones; with weights
    where any counts less than 1."""
    rows = _letterboxed_rows(records, batch, lambda record: ~record.ignored)
    weights = [records[index].weights[~records[index].ignored] for index in batch.indices.tolist()]
    weight = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *weights]))
    return Targets.from_rows(rows, weight if bool((weight != 1).any()) else None)


def batch_coverage(records: Sequence[Record], batch: LetterboxedBatch) -> LabelCoverage | None:
    """What the labels of a batch of letterboxed images do not know: ignored boxes as regions, (R, 5) float32, and the
    covered classes and the background weight of each image's source; None where they know everything."""
    regions = _letterboxed_rows(records, batch, lambda record: record.ignored)[:, [0, 2, 3, 4, 5]]
    sources = [records[index].source for index in batch.indices.tolist()]
    num_classes = next((len(one.covered) for one in sources if one.covered is not None), None)
    covered = [one.covered or (True,) * (num_classes or 0) for one in sources]
    background = torch.tensor([one.background_weight for one in sources])
    parts = (
        regions if len(regions) else None,
        None if num_classes is None else torch.tensor(covered),
        background if bool((background != 1).any()) else None,
    )
    return None if parts == (None, None, None) else LabelCoverage(*parts)


def _letterboxed_rows(
    records: Sequence[Record], batch: LetterboxedBatch, kept: Callable[[Record], NDArray[np.bool_]]
) -> Tensor:
    """(N, 6) float32 rows as of targets, of those boxes that are kept."""
    height, width = batch.images.shape[-2:]
    rows = [np.zeros((0, 6))]
    for number, (index, transform) in enumerate(zip(batch.indices.tolist(), batch.transforms, strict=True)):
        chosen = kept(records[index])
        boxes = transform.to_network(records[index].boxes_xyxy[chosen]) / (width, height, width, height)
        lows, highs = boxes[:, :2], boxes[:, 2:]
        head = np.stack([np.full(len(boxes), number), records[index].class_ids[chosen]], axis=1)
        rows.append(np.concatenate([head, (lows + highs) / 2, highs - lows], axis=1))
    return torch.from_numpy(np.concatenate(rows)).float()


def require_classes(
    weights: StrPath,
    known: tuple[str, ...],
    data: StrPath,
    given: tuple[str, ...],
    remedy: str = "name data of its own",
) -> None:
    """InputError where weights know other classes than the data has, or in another order, naming the first difference.

    remedy: what to do, before "with the same classes in the same order".
    """
    if known == given:
        return
    if len(known) != len(given):
        if set(known) < set(given):
            missing = " ".join(f"--ignore-class {shlex.quote(name)}" for name in given if name not in known)
            remedy = f"leave out what the weights were not trained on ({missing}), or {remedy}"
        shown = [repr(list(names[:5])) + " and more" * (len(names) > 5) for names in (known, given)]
        difference = f"{len(known)} and {len(given)} of them, {' and '.join(shown)}"
    else:
        number = next(number for number, names in enumerate(zip(known, given, strict=True)) if names[0] != names[1])
        difference = f"class {number} is {known[number]!r} and {given[number]!r}"
    raise InputError(
        f"{weights} and {data} have other classes: {difference}; {remedy} with the same classes in the same order"
    )


def require_side(image_size: ImageSize, stride: int, of_what: str) -> int:
    """The image size; InputError where it is no multiple of the coarsest stride of something, naming the next one, or a
    pair.
    """
    if not isinstance(image_size, int):
        shown = ",".join(map(str, image_size))
        raise InputError(
            f"--image-size {shown}: here it is the longer side alone; give one number, such as {max(image_size)}"
        )
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
