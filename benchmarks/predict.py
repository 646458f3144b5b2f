"""Prediction of one image and validation of a split, of size n, against the network's forward pass alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anchorite.benchmark import detector_of, interleaved
from anchorite.data import DatasetIndex, Record, decode_image, letterbox, letterboxed_batches, rectangular_size
from anchorite.devices import choose_precision
from anchorite.evaluate import ReadConfig, ValidationConfig, Validator
from anchorite.model import Detector, WeightsInfo, fold_batch_norm, to_channels_last
from anchorite.predict import PredictConfig, Predictor
from benchmarks.measure import (
    Comparison,
    Floor,
    Outcome,
    Settings,
    cost,
    dataset_for,
    described,
    find_objects,
    matmul_rate,
    split_of,
)

COST_OF_PREDICTION, COST_OF_VALIDATION = 1.1, 1.2
_PREDICT_ROUNDS, _VALIDATE_ROUNDS = 60, 5
_FOUND, _CANDIDATES = 50, 1000  # places an image that reach the confidence, of prediction and of validation


def benchmark_predict(settings: Settings) -> Outcome:
    """Latency of one decoded image at 640 px; validation of the test split at 320 and 640 px."""
    with dataset_for(settings) as dataset:
        records = split_of(dataset, "test", "val", "train")
        comparisons = [_one_image(settings, dataset, records[0], 64 if settings.quick else 640)]
        for image_size in (64,) if settings.quick else (320, 640):
            comparisons.append(_validation(settings, dataset, records, image_size))
        facts = {
            "data": described(dataset, settings),
            "images_validated": len(records),
            "model": "n",
            "places_that_reach_the_confidence": {"prediction": _FOUND, "validation": _CANDIDATES},
        }
    return Outcome("predict", tuple(comparisons), facts=facts)


def _one_image(settings: Settings, dataset: DatasetIndex, record: Record, image_size: int) -> Comparison:
    image = decode_image(record.path)
    detector = detector_of("n", len(dataset.class_names), settings.device)
    size_hw = rectangular_size((record.height, record.width), image_size, detector.strides[-1])
    pixels = torch.from_numpy(letterbox(image, size_hw)[0][None]).permute(0, 3, 1, 2).to(settings.device)
    find_objects(detector, pixels.float() / 255, min(_FOUND, image_size), PredictConfig().confidence)
    info = WeightsInfo("n", dataset.class_names, detector.anchors, image_size)
    predictor = Predictor(detector, info, str(settings.device))
    dtype = next(predictor.detector.parameters()).dtype
    folded = fold_batch_norm(detector).to(dtype=dtype)
    to_channels_last(folded)
    ready = pixels.to(dtype) / 255

    @torch.inference_mode()
    def forward() -> object:
        return folded(ready)

    works: dict[str, Callable[[], object]] = {"predict": lambda: predictor.predict(image), "forward": forward}
    samples = interleaved(works, settings.rounds_or(_PREDICT_ROUNDS), device=settings.device)
    name = f"one image of {record.width} x {record.height}, {image_size} px"
    floor = _floor(settings, folded, ready)
    return replace(cost("predict", "forward", samples, name, COST_OF_PREDICTION), floor=floor)


def _floor(settings: Settings, detector: Detector, images: Tensor) -> Floor:
    """Seconds that the multiplications of a forward pass take at the rate of a large matrix product."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(images)
    side = 256 if settings.quick else 2048
    rate = matmul_rate(images.dtype, settings.device, side)
    operations = counter.get_total_flops()
    what = (
        f"{operations / 1e9:.1f} Gflop of a forward pass at {rate / 1e9:.0f} Gflop/s, "
        f"as measured for a matrix product of {side} in {str(images.dtype).removeprefix('torch.')}"
    )
    return Floor(operations / rate, what)


def _validation(settings: Settings, dataset: DatasetIndex, records: Sequence[Record], image_size: int) -> Comparison:
    """Boxes, suppression, metrics and all against the forward passes over the same batches, ready in memory."""
    batch_size = 4 if settings.quick else 16
    device = settings.device
    dtype = choose_precision("auto", device).dtype
    detector = detector_of("n", len(dataset.class_names), device)
    validator = Validator(records, dataset.class_names, image_size, ReadConfig(batch_size, "ram"))
    stride = detector.strides[-1]
    batches = [batch.images.to(device) for batch in letterboxed_batches(records, image_size, batch_size, stride)]
    wanted = min(_CANDIDATES, image_size)
    find_objects(detector, batches[0].float() / 255, wanted, ValidationConfig().confidence)

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            for images in batches:
                detector(images.float() / 255)

    works: dict[str, Callable[[], object]] = {
        "validation": lambda: validator.run(detector, device=device, autocast_dtype=dtype),
        "forward": forward,
    }
    samples = interleaved(works, settings.rounds_or(_VALIDATE_ROUNDS), warm_up=1, device=device)
    name = f"validation of {len(records)} images, {image_size} px"
    return cost("validation", "forward", samples, name, COST_OF_VALIDATION)
