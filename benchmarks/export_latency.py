"""Latency and parity of exports beside PyTorch, in one run.

    python benchmarks/export_latency.py WEIGHTS DATA [--image-size 640] [--rounds 40] [--threads 2] [--only NAME ...]

Every runtime goes from one decoded, letterboxed uint8 image to its detections (confidence .25, IoU .45): images of the
test split in turn, rounds interleaved with a pause before each, medians with quartiles. int8 is calibrated on training
images. With --parity, mAP on the test split and the largest differences over all places of 64 of its images, at the
size the weights were trained for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor

from anchorite.benchmark import interleaved
from anchorite.data import Record, open_dataset
from anchorite.evaluate import Validator
from anchorite.export import (
    Built,
    ExportInfo,
    ExportRequest,
    batches_of,
    build,
    export_info,
    exporting,
    measure,
    spread,
)
from anchorite.model import Detector, WeightsInfo, load_weights
from anchorite.predict import PredictConfig, Predictor, Runtime

_CALIBRATION, _CALIBRATION_FOR_LATENCY, _COMPARED = 128, 16, 64
_PAUSE_SECONDS = 0.05
_LIMITS = PredictConfig()
REQUESTS = {
    "onnxruntime fp32": ExportRequest(),
    "onnxruntime fp32, NMS inside": ExportRequest(suppression=_LIMITS),
    "onnxruntime fp16": ExportRequest(half=True),
    "onnxruntime int8": ExportRequest(int8=True),
    "openvino fp32": ExportRequest("openvino"),
    "openvino fp32, NMS inside": ExportRequest("openvino", suppression=_LIMITS),
    "openvino fp16": ExportRequest("openvino", half=True),
    "openvino int8": ExportRequest("openvino", int8=True),
    "torch.export fp32": ExportRequest("torch-export"),
}


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="exports whose names begin so")
    options = parser.parse_args()
    for name in [name for name in REQUESTS if options.only and not name.startswith(tuple(options.only))]:
        del REQUESTS[name]
    torch.set_num_threads(options.threads)
    detector, info = load_weights(options.weights)
    splits = open_dataset(options.data).splits
    if options.parity:
        parity_table(detector, info, splits["train"], splits["test"])
    else:
        latency_table(detector, info, splits["train"], splits["test"], options.image_size, options.rounds)


def made(
    detector: Detector, info: WeightsInfo, train: Sequence[Record], test: Sequence[Record], size: int
) -> Iterator[tuple[str, Built]]:
    """Every export, calibrated and compared on these images."""
    # Tracing takes most of the time, and many exports begin with the same model.
    models: dict[ExportInfo, bytes] = {}
    make_model = exporting.onnx_model

    def model_of(_: Detector, info: ExportInfo) -> ModelProto:
        key = replace(info, precision="fp16" if info.precision == "fp16" else "fp32")
        if key not in models:
            models[key] = make_model(detector, key).SerializeToString()
        return ModelProto.FromString(models[key])

    exporting.onnx_model = model_of  # type: ignore[assignment]
    for name, request in REQUESTS.items():
        request = replace(request, image_size=size)
        described = export_info(info, request)
        compared = list(batches_of(test, described))
        yield name, build(detector, info, request, compared, batches_of(train, described), name)


def latency_table(
    detector: Detector, info: WeightsInfo, train: Sequence[Record], test: Sequence[Record], size: int, rounds: int
) -> None:
    """Milliseconds from one image to its detections."""
    from anchorite.export.onnx_format import onnx_runtime, openvino_runtime

    described = export_info(info, ExportRequest(image_size=size))
    images = [image[None] for batch in batches_of(test[:16], described) for image in batch]
    runtimes: dict[str, Runtime] = {
        "PyTorch fp32": Predictor(detector, info, "cpu", "fp32").runtime,
        "PyTorch bf16": Predictor(detector, info, "cpu", "bf16").runtime,
    }
    for name, one in made(detector, info, spread(train, _CALIBRATION_FOR_LATENCY), spread(test, 4), size):
        if ".xml" in one.files:
            runtimes[name] = openvino_runtime(name, one.files[".xml"], one.files[".bin"])
        elif ".onnx" in one.files:
            runtimes[name] = onnx_runtime(name, one.files[".onnx"], "cpu")
        else:
            runtimes[name] = one.dense
    works = {name: finder(runtime, images) for name, runtime in runtimes.items()}
    samples = interleaved(works, rounds, warm_up=3, clock=_clock_after_a_pause())
    print(
        f"| one image of {' x '.join(map(str, images[0].shape[2:]))} (H x W) | ms, median | quartiles |\n|---|---|---|"
    )
    for name, sample in samples.items():
        low, high = sample.quartiles
        print(f"| {name} | {sample.median * 1e3:.1f} | {low * 1e3:.1f} to {high * 1e3:.1f} |")


def _clock_after_a_pause() -> Callable[[], float]:
    """A clock that waits before every first of two readings: threads of the runtime before it spin for a while."""
    readings = 0

    def clock() -> float:
        nonlocal readings
        readings += 1
        if readings % 2:
            time.sleep(_PAUSE_SECONDS)
        return time.perf_counter()

    return clock


def finder(runtime: Runtime, images: list[Tensor]) -> Callable[[], object]:
    """Detections of the next image, again and again."""
    waiting = cycle(images)
    return lambda: runtime.detections(runtime.outputs(next(waiting)), _LIMITS)


def parity_table(detector: Detector, info: WeightsInfo, train: Sequence[Record], test: Sequence[Record]) -> None:
    """Differences and mAP of every export."""
    validator = Validator(test, info.class_names, info.image_size)
    print("| export | MB | boxes within px | of their side | scores within | mAP50-95 | PyTorch | mAP50 | PyTorch |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, one in made(detector, info, spread(train, _CALIBRATION), spread(test, _COMPARED), info.image_size):
        measured, parity = measure(detector, one.dense, validator, name), one.parity
        found = "" if parity.found is None else f" ({parity.found} detections equal)"
        print(
            f"| {name}{found} | {one.num_bytes / 1e6:.1f} | {parity.box_px:.2g} | {parity.box_share:.1g} | "
            f"{parity.score:.1g} | {measured.export_map:.4f} | {measured.torch_map:.4f} | "
            f"{measured.export_map50:.4f} | {measured.torch_map50:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
