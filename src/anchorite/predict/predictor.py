"""`Predictor`: a detector made ready to run, from images of any kind and size to detections in their own pixels.

Legend: B images of a batch, H, W height and width in pixels, N detections.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections, clip_xyxy
from anchorite.choices import PrecisionName
from anchorite.data.images import LetterboxTransform, letterbox, rectangular_size
from anchorite.errors import AnchoriteError, InputError
from anchorite.model import Detector, WeightsInfo, load_weights
from anchorite.predict.config import Limits, PredictConfig
from anchorite.predict.postprocess import RawDetections
from anchorite.predict.runtime import Runtime, TorchRuntime
from anchorite.predict.sources import (
    LULL,
    OnUnreadable,
    each_source,
    expand_sources,
    file_items,
    read_image,
    source_name,
)

_MOST_READERS = 8


class Predictor:
    """Finds objects in images with one detector, on one device.

    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1". precision: "auto" is fp16 on CUDA and
    fp32 elsewhere. The detector is copied, its BatchNorm folded; the one given stays as it is.
    Raises InputError when the device is not there or does not have the precision.
    """

    def __init__(
        self, detector: Detector, info: WeightsInfo, device: str = "auto", precision: PrecisionName = "auto"
    ) -> None:
        self.runtime: Runtime = TorchRuntime(detector, info, device, precision)

    @classmethod
    def of(cls, runtime: Runtime) -> Predictor:
        """A Predictor whose network is run by something else, such as a loaded export."""
        predictor = cls.__new__(cls)
        predictor.runtime = runtime
        return predictor

    @property
    def info(self) -> WeightsInfo:
        """Size, class names, anchors and input size of the network."""
        return self.runtime.info

    @property
    def detector(self) -> Detector:
        """The folded detector that runs in torch."""
        assert isinstance(self.runtime, TorchRuntime)
        return self.runtime.detector

    @property
    def stride(self) -> int:
        """The coarsest stride of the network: sides of its input are multiples of it."""
        return self.info.anchors.strides[-1]

    def __repr__(self) -> str:
        names = ", ".join(self.info.class_names[:4]) + (", ..." if len(self.info.class_names) > 4 else "")
        return (
            f"Predictor(size {self.info.size}, {len(self.info.class_names)} classes ({names}), "
            f"{self.info.image_size} px, {self.runtime.name})"
        )

    def predict(
        self, images: Any, image_size: int | None = None, batch_size: int = 8, **limits: Unpack[Limits]
    ) -> list[Detections]:
        """The detections of one image or of every image of an iterable, in their order.

        An image is an array (H, W, 3) of uint8 in RGB order (OpenCV reads BGR: turn it), a Pillow image or the path of
        a file; sizes may differ. image_size: long side the network sees, by default that of the weights. limits: the
        fields of PredictConfig by name, as in confidence=0.4. Raises InputError for anything that is no image, and
        pydantic's ValidationError, a ValueError, for a limit out of range.
        """
        config = PredictConfig(**limits)
        found = self._run(each_source(images), config, image_size, batch_size, on_unreadable=None)
        return [detections for _, detections in found]

    def stream(
        self,
        sources: Any,
        config: PredictConfig | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        on_unreadable: OnUnreadable | None = None,
    ) -> Iterator[tuple[UInt8[NDArray[np.uint8], "H W 3"], Detections]]:
        """`predict` for more images than fit in memory: yields as it goes, reading one batch ahead.

        Each image (H, W, 3) uint8 RGB comes with its detections: it is the frame of their boxes. Paths may be folders,
        patterns and videos too, as on the command line; `open_sources` gives what else may be named there. With
        `on_unreadable`, an image that cannot be read, or the rest of a video, is handed to it as the error and left
        out; without, the error is raised.
        """
        expanded = expanded_sources(each_source(sources), batch_size, on_unreadable)
        yield from self._run(expanded, config or PredictConfig(), image_size, batch_size, on_unreadable)

    def _run(
        self,
        sources: Iterable[Any],
        config: PredictConfig,
        image_size: int | None,
        batch_size: int,
        on_unreadable: OnUnreadable | None,
    ) -> Iterator[tuple[NDArray[np.uint8], Detections]]:
        """Window by window: while the device works on one, threads read and letterbox the next."""
        long_side = self.info.image_size if image_size is None else image_size
        if long_side < self.stride or batch_size < 1:
            raise InputError(
                f"image size {long_side} and batch size {batch_size} were asked for; "
                f"the least are {self.stride} (the coarsest stride of the network) and 1"
            )
        fixed_side = self.runtime.fixed_side
        if fixed_side not in (None, long_side):
            raise InputError(f"image size {long_side}: this network was exported for {fixed_side} px alone")
        prepare = partial(_prepare, long_side=long_side, stride=fixed_side or self.stride)
        windows = _windows(sources, batch_size)
        first = next(windows, [])
        if len(first) == 1 < batch_size:
            # Nothing to be ahead of, as far as is known: waking a thread takes longer than it would save.
            yield from self._detect(_readable([partial(prepare, first[0])], on_unreadable), config)
        else:
            windows = chain([first], windows)
        with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1, _MOST_READERS)) as readers:
            prefetch: list[Callable[[], _Prepared]] = []
            for window in windows:
                reading: list[Callable[[], _Prepared]] = [readers.submit(prepare, source).result for source in window]
                yield from self._detect(_readable(prefetch, on_unreadable), config)
                prefetch = reading
            yield from self._detect(_readable(prefetch, on_unreadable), config)

    def _detect(
        self, window: Sequence[_Prepared], config: PredictConfig
    ) -> Iterator[tuple[NDArray[np.uint8], Detections]]:
        """One batch for every letterboxed size that occurs; results in the order of the window."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, prepared in enumerate(window):
            by_size.setdefault(prepared.transform.size_hw, []).append(index)
        found: dict[int, RawDetections] = {}
        for indices in by_size.values():
            letterboxed = [window[index].letterboxed for index in indices]
            batch = np.stack(letterboxed) if len(letterboxed) > 1 else letterboxed[0][None]
            found.update(zip(indices, self._detect_batch(batch, config), strict=True))
        for index, prepared in enumerate(window):
            yield prepared.image, self._in_source_pixels(found[index], prepared)

    def _detect_batch(self, batch: NDArray[np.uint8], config: PredictConfig) -> list[RawDetections]:
        """Raw detections of letterboxed images (B, H, W, 3) of one size."""
        # Interleaved pixels seen as (B, 3, H, W) lie in channels_last memory already.
        outputs = self.runtime.outputs(torch.from_numpy(batch).permute(0, 3, 1, 2))
        return self.runtime.detections(outputs, config).cpu().split()

    def _in_source_pixels(self, raw: RawDetections, prepared: _Prepared) -> Detections:
        """Boxes moved back to the original pixels and clipped to them; those wholly in the padding are dropped."""
        height, width = prepared.image.shape[:2]
        boxes_xyxy = clip_xyxy(prepared.transform.to_source(raw.boxes_xyxy), width, height)
        inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
        return Detections(
            boxes_xyxy=boxes_xyxy[inside],
            scores=raw.scores[inside],
            class_ids=raw.class_ids[inside],
            class_names=self.info.class_names,
            image_size=(height, width),
            source=prepared.source,
        )


def load(path: str | Path, device: str = "auto", precision: PrecisionName = "auto") -> Predictor:
    """A Predictor of a weight file; raises what `load_weights` and `Predictor` raise."""
    detector, info = load_weights(Path(path))
    return Predictor(detector, info, device, precision)


@dataclass(frozen=True)
class _Prepared:
    """An image as read, letterboxed, and how to come back."""

    image: NDArray[np.uint8]
    letterboxed: NDArray[np.uint8]
    transform: LetterboxTransform
    source: str


def _prepare(source: Any, long_side: int, stride: int) -> _Prepared:
    image = read_image(source)
    height, width = image.shape[:2]
    letterboxed, transform = letterbox(image, rectangular_size((height, width), long_side, stride))
    return _Prepared(image, letterboxed, transform, source_name(source))


def _readable(reading: Iterable[Callable[[], _Prepared]], on_unreadable: OnUnreadable | None) -> list[_Prepared]:
    prepared = []
    for read in reading:
        try:
            prepared.append(read())
        except AnchoriteError as error:
            if on_unreadable is None:
                raise
            on_unreadable(error)
    return prepared


def _windows(sources: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Up to `size` sources at a time; at a lull those that are there, then none, so that nothing read waits longer."""
    window: list[Any] = []
    for source in sources:
        if source is LULL:
            yield window
            yield []
            window = []
            continue
        window.append(source)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def expanded_sources(sources: Iterable[Any], depth: int, on_unreadable: OnUnreadable | None) -> Iterator[Any]:
    """Paths opened: folders and patterns as their images, videos as their frames, up to `depth` ahead."""
    for source in sources:
        if not isinstance(source, str | Path):
            yield source
            continue
        try:
            paths = expand_sources([source])
        except AnchoriteError as error:
            if on_unreadable is None:
                raise
            on_unreadable(error)
        else:
            yield from file_items(paths, 1, depth, on_unreadable)
