"""The inference engine: from images of any kind and size to detections in their own pixels.

A `Runtime` is a network ready to run, whatever computes it; a `Predictor` is one with its options. An `Ensemble` runs
one or several over one or several views of every image: windows, mirrored and scaled inputs. A channel is one network
and one way of scaling and mirroring, over all windows of an image; its windows are joined at their seams, then the
channels are fused. A Predictor runs as the ensemble of one network and one view.

Legend: B images, L levels, A anchors, K classes, H, W height and width in pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, Unpack

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from anchorite.boxes import Detections
from anchorite.choices import PrecisionName
from anchorite.devices import choose_device, choose_precision, use_full_float32
from anchorite.errors import AnchoriteError, DivergedError, InputError
from anchorite.files import StrPath
from anchorite.keywords import checks_keywords, config_of
from anchorite.model import Detector, WeightsInfo, fold_batch_norm, load_weights, to_channels_last
from anchorite.predict.frames import FLUSH, Frame, each_source, read_frame
from anchorite.predict.postprocess import BatchDetections, Limits, PredictConfig, RawDetections, batch_detections
from anchorite.predict.sources import opened
from anchorite.predict.views import (
    ImageSize,
    TTAView,
    ViewConfig,
    ViewTransform,
    checked_image_size,
    class_map,
    fuse_channels,
    merge_windows,
    size_in_words,
    tta_views,
)

OnUnreadable = Callable[[AnchoriteError], None]

# Limits of one channel when others are fused with it: boxes of a low score still support those that agree.
_CHANNEL_CONFIDENCE = 0.1
_MOST_THREADS = 8
# Images read at a time when each is cut into windows: they are large, and one alone fills batches.
_MOST_TILED = 2


class Runtime(Protocol):
    """A network with its weights, ready to run; `TorchRuntime` is one, a loaded export another.

    info: size, class names, anchors and input size; fixed_side: side in pixels of the only (square) input that is
    taken, None where H and W are free; name: where and in which number format it runs, for people; least_confidence:
    below which it cannot be asked, as an export with its suppression inside, else 0.
    """

    info: WeightsInfo
    fixed_side: int | None
    name: str
    least_confidence: float

    def outputs(self, images: Tensor) -> Sequence[Tensor]:
        """Whatever the network puts out, image first in every tensor, for uint8 RGB images (B, 3, H, W)."""

    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """The detections in pixels of the network input.

        Raises InputError when the outputs are not finite or this network cannot apply the limits.
        """


class TorchRuntime:
    """A detector's copy in evaluation mode on one device, its BatchNorm folded.

    device and precision: as for `Predictor`, weights and images in that number format. With `autocast_dtype` in place
    of a precision, convolutions alone are in it, as in training.
    """

    fixed_side: int | None = None
    least_confidence = 0.0

    def __init__(
        self,
        detector: Detector,
        info: WeightsInfo,
        device: str | torch.device = "auto",
        precision: PrecisionName | None = "auto",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.info = info
        self.device = choose_device(str(device))
        use_full_float32()
        self.dtype = torch.float32
        if precision == "auto":  # exact on a CPU
            self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        elif precision is not None:
            self.dtype = choose_precision(precision, self.device).dtype or torch.float32
        self._autocast_dtype = None if autocast_dtype == torch.float32 else autocast_dtype
        weights_dtype = self._autocast_dtype or self.dtype  # autocast would convert them at every step
        self.detector = fold_batch_norm(detector).to(device=self.device, dtype=weights_dtype)
        to_channels_last(self.detector)
        self.name = f"{self.device} {str(self.dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> list[Tensor]:
        """The logits of L levels, each (B, A, 5 + K, H, W) of its own H and W."""
        images = images.to(self.device, non_blocking=True).to(self.dtype).div_(255)
        with torch.autocast(self.device.type, self._autocast_dtype) if self._autocast_dtype else nullcontext():
            logits: list[Tensor] = self.detector(images)
        return logits

    @torch.inference_mode()
    def detections(self, outputs: Sequence[Tensor], config: PredictConfig) -> BatchDetections:
        """The detections of logits; raises InputError when they are not finite."""
        if images_not_finite([level[:, :, 4] for level in outputs]):  # the objectness: what is found depends on it
            if self.dtype == torch.float16:
                raise InputError('the network overflows in float16; use precision "bf16" or "fp32"')
            raise InputError("the network's output is not finite: its weights are damaged or its training diverged")
        return batch_detections(outputs, self.detector.anchors, config)


def images_not_finite(outputs: Sequence[Tensor]) -> list[int]:
    """The numbers of the images for which an output, image first, holds a value that is not finite.

    To be checked before detections are made of outputs: with NaN nothing is found, which must mean that nothing is
    there. Flat outputs, such as counts of detections, belong to no image and are passed over.
    """
    outputs = [one for one in outputs if one.ndim > 1]
    # A sum passes on what is not finite without a map of answers as large as the output; it may overflow, too.
    if bool(torch.stack([one.sum(dtype=torch.float32) for one in outputs]).isfinite().all()):
        return []
    fine = torch.stack([one.isfinite().reshape(len(one), -1).all(dim=1) for one in outputs]).all(dim=0)
    return (~fine).nonzero()[:, 0].tolist()


def require_finite(outputs: Sequence[Tensor], names: Sequence[object]) -> None:
    """DivergedError naming the first image whose outputs are not finite. names: of the images, such as their paths."""
    for number in images_not_finite(outputs):
        raise DivergedError(
            f"{names[number]}: the network's output for this image is not finite: its training diverged or its weights "
            "are damaged. Use earlier weights, or try float32 (--precision fp32)"
        )


@dataclass(frozen=True)
class FrameResult:
    """A frame and what was found in it; also unpacks as the pair (image, detections)."""

    frame: Frame
    detections: Detections

    @property
    def image(self) -> UInt8[NDArray[np.uint8], "H W 3"]:
        """The pixels (H, W, 3), RGB, that the boxes lie in."""
        return self.frame.image

    def __iter__(self) -> Iterator[Any]:
        yield self.frame.image
        yield self.detections

    def to_dict(self) -> dict[str, Any]:
        """`Detections.to_dict`; for a frame of a video that as source, with the frame's number and time."""
        entry, video = self.detections.to_dict(), self.frame.video
        if video is None:
            return entry
        del entry["source"]
        return {"source": video.name, "frame": self.frame.number, "seconds": round(self.frame.seconds, 3), **entry}


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
        self: Predictor | Ensemble,
        images: Any,
        image_size: ImageSize | None = None,
        batch_size: int = 8,
        **limits: Unpack[Limits],
    ) -> list[Detections]:
        """The detections of one image or of every image of an iterable, in their order.

        An image is an array (H, W, 3) of uint8 in RGB order (OpenCV reads BGR: turn it), a Pillow image or the path of
        a file; sizes may differ. image_size: long side of the network input, by default that of the weights, or its
        (height, width), in which every image is then letterboxed. limits: the fields of PredictConfig by name, as in
        confidence=0.4. Raises InputError for anything that is no image, and for a keyword or value that does not fit.
        """
        config = config_of(PredictConfig, limits, (*PredictConfig.model_fields, "image_size", "batch_size"))
        results = _run(self, each_source(images), config, image_size, batch_size, None)
        return [result.detections for result in results]

    @checks_keywords()
    def stream(
        self: Predictor | Ensemble,
        sources: Any,
        config: PredictConfig | None = None,
        image_size: ImageSize | None = None,
        batch_size: int = 8,
        on_unreadable: OnUnreadable | None = None,
    ) -> Generator[FrameResult, None, None]:
        """`predict` for more images than fit in memory: yields as it goes, reading one batch ahead.

        Each result holds the frame of its boxes. Paths may be folders, patterns and videos too, as on the command line;
        `open_sources` gives what else may be named there. batch_size: views, not images, that a network gets at a time.
        With `on_unreadable`, an image that cannot be read, or the rest of a video, is handed to it as the error and
        left out; without, the error is raised.
        """
        paths_opened = opened(each_source(sources), depth=batch_size)
        return _run(self, paths_opened, config or PredictConfig(), image_size, batch_size, on_unreadable)


@checks_keywords()
def load(path: StrPath, device: str = "auto", precision: PrecisionName = "auto") -> Predictor:
    """A Predictor of a weight file; raises what `load_weights` and `Predictor` raise."""
    detector, info = load_weights(path)
    return Predictor(detector, info, device, precision)


@dataclass(frozen=True)
class Member:
    """A detector of an ensemble. weight: how much it counts, above 0; name: of its file, for messages."""

    predictor: Predictor
    weight: float = 1.0
    name: str = "the network"


@dataclass(frozen=True)
class Ensemble:
    """Finds objects as `Predictor` does, from several views (windows, mirrored, scaled) by one or several detectors.

    All members know the same classes; their order is that of the first, whose `info` is the ensemble's. A member counts
    as much as its weight, however many views it gets. Raises InputError when there is none, the classes differ, a
    weight is not above 0, or a tile is smaller than a cell of the coarsest level.
    """

    members: Sequence[Member]
    config: ViewConfig = field(default_factory=ViewConfig)

    predict = Predictor.predict
    stream = Predictor.stream

    def __post_init__(self) -> None:
        if not self.members:
            raise InputError("an ensemble of no detectors finds nothing; give one at least")
        for member in self.members:
            stride, tile = member.predictor.stride, self.config.tile
            if not 0 < member.weight < math.inf:
                raise InputError(f"weight {member.weight} of {member.name}: must be a finite number above 0")
            if tile is not None and tile < stride:
                raise InputError(f"tile {tile}: must be at least {stride}, the coarsest stride of {member.name}")
            try:
                class_map(self.info.class_names, member.predictor.info.class_names)
            except InputError as error:
                raise InputError(f"{member.name}: {error}") from error

    @property
    def info(self) -> WeightsInfo:
        """Of the first member: size, class names, anchors and input size."""
        return self.members[0].predictor.info

    def views_by_member(self, image_size: ImageSize | None = None) -> list[list[TTAView]]:
        """The views that each member gets of every window; raises InputError where it cannot take this size."""
        by_member = []
        for member in self.members:
            predictor, fixed_side = member.predictor, member.predictor.runtime.fixed_side
            wanted = predictor.info.image_size if image_size is None else image_size
            size = checked_image_size(wanted, predictor.stride, member.name)
            if fixed_side is not None:
                if size not in (fixed_side, (fixed_side, fixed_side)):
                    shown = size_in_words(size)
                    raise InputError(f"image size {shown}: {member.name} was exported for {fixed_side} px alone")
                size = fixed_side
            by_member.append(tta_views(size, predictor.stride, self.config.augment, is_fixed=fixed_side is not None))
        return by_member

    def description(self, image_size: ImageSize | None = None) -> str:
        """Windows, network inputs and number of weights, on one line; raises what `views_by_member` raises."""
        config, parts = self.config, []
        if config.tile is not None:
            whole = "the whole and " if config.whole_image else ""
            parts.append(f"{whole}windows of {config.tile} px that share {config.tile_overlap:.0%} or more")
        if len(self.members) > 1:
            parts.append(f"{len(self.members)} weights")
        inputs = [", ".join(map(str, views)) for views in self.views_by_member(image_size)]
        parts.append(f"network input {inputs[0] if len(set(inputs)) == 1 else '; '.join(inputs)}")
        return f"views of each image: {'; '.join(parts)}"


@dataclass(eq=False)
class _View:
    """One view of a frame for one network: number `network` of the ensemble, one of several channels.

    made: the input (H, W, 3) of the network, where it is made already; found: what the network found in it.
    """

    frame: Frame
    network: int
    channel: int
    transform: ViewTransform
    made: NDArray[np.uint8] | None = None
    found: RawDetections | None = None

    def network_input(self) -> NDArray[np.uint8]:
        return self.transform.network_input(self.frame.image) if self.made is None else self.made


def _run(
    engine: Predictor | Ensemble,
    sources: Iterable[Any],
    config: PredictConfig,
    image_size: ImageSize | None,
    batch_size: int,
    on_unreadable: OnUnreadable | None,
) -> Generator[FrameResult, None, None]:
    """Group by group of images: while the networks run one, threads read the next."""
    ensemble = engine if isinstance(engine, Ensemble) else Ensemble([Member(engine)])
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch size {batch_size}: must be at least 1, a whole number")
    views_by_member = ensemble.views_by_member(image_size)
    channels = [(number, view) for number, views in enumerate(views_by_member) for view in views]
    shares = [ensemble.members[number].weight / len(views_by_member[number]) for number, _ in channels]
    group_size = batch_size if ensemble.config.tile is None else min(batch_size, _MOST_TILED)

    def prepare(source: Any) -> list[_View]:
        """All views of a source; that of a whole image is made, windows are when their batch is about to run."""
        if isinstance(source, AnchoriteError):  # in place of what could not be opened
            raise source
        frame = read_frame(source)
        windows = ensemble.config.windows(*frame.image.shape[:2])
        views = []
        for window in windows:
            for channel, (network, tta_view) in enumerate(channels):
                predictor = ensemble.members[network].predictor
                stride = predictor.runtime.fixed_side or predictor.stride
                views.append(_View(frame, network, channel, ViewTransform.of(window, tta_view, stride)))
        if len(windows) == 1:
            for view in views:
                view.made = view.network_input()
        return views

    with ThreadPoolExecutor(min(group_size, os.cpu_count() or 1, _MOST_THREADS)) as threads:
        for images in _prepared_groups(sources, prepare, group_size, threads, on_unreadable):
            alike: dict[tuple[int, tuple[int, int]], list[_View]] = {}  # of one network and one input size
            for view in chain.from_iterable(images):
                alike.setdefault((view.network, view.transform.size_hw), []).append(view)
            batches = [of[at : at + batch_size] for of in alike.values() for at in range(0, len(of), batch_size)]
            inputs: list[Iterable[NDArray[np.uint8]]] = []
            for number, batch in enumerate(batches):
                for later in batches[len(inputs) : number + 2]:  # the inputs of one are made while another runs
                    is_made = all(view.made is not None for view in later)
                    inputs.append((map if is_made else threads.map)(_View.network_input, later))
                _run_batch(ensemble, batch, list(inputs[number]), config, is_fused=len(channels) > 1)
                inputs[number] = ()
            for views in images:
                yield _result(views, shares, config, ensemble.info.class_names)


def _run_batch(
    ensemble: Ensemble,
    batch: Sequence[_View],
    inputs: Sequence[NDArray[np.uint8]],
    config: PredictConfig,
    is_fused: bool,
) -> None:
    """Run the network of a batch on its inputs, and keep what it found with the views."""
    runtime = ensemble.members[batch[0].network].predictor.runtime
    if is_fused:
        least = min(runtime.least_confidence, config.confidence)
        config = config.model_copy(update={"confidence": max(least, _CHANNEL_CONFIDENCE * config.confidence)})
    stacked = np.stack(inputs) if len(inputs) > 1 else np.ascontiguousarray(inputs[0])[None]
    # Interleaved pixels seen as (B, 3, H, W) lie in channels_last memory already.
    outputs = runtime.outputs(torch.from_numpy(stacked).permute(0, 3, 1, 2))
    our_classes = class_map(ensemble.info.class_names, runtime.info.class_names)
    for view, found in zip(batch, runtime.detections(outputs, config).cpu().split(), strict=True):
        view.found, view.made = replace(found, class_ids=our_classes[found.class_ids]), None


def _result(
    views: Sequence[_View], shares: Sequence[float], config: PredictConfig, class_names: tuple[str, ...]
) -> FrameResult:
    """What was found in all views of a frame, its windows joined and its channels fused."""
    frame = views[0].frame
    height, width = frame.image.shape[:2]
    by_channel: list[list[tuple[ViewTransform, RawDetections]]] = [[] for _ in shares]
    for view in views:
        assert view.found is not None
        by_channel[view.channel].append((view.transform, view.found))
    merged = [merge_windows(found, (height, width), config) for found in by_channel]
    raw = merged[0] if len(merged) == 1 else fuse_channels(merged, torch.tensor(shares, dtype=torch.float64), config)
    detections = Detections(raw.boxes_xyxy, raw.scores, raw.class_ids, class_names, (height, width), frame.name)
    return FrameResult(frame, detections)


def _prepared_groups(
    sources: Iterable[Any],
    prepare: Callable[[Any], list[_View]],
    size: int,
    threads: ThreadPoolExecutor,
    on_unreadable: OnUnreadable | None,
) -> Iterator[list[list[_View]]]:
    """The views of up to `size` images at a time, prepared by threads while the group before is in use.

    After a FLUSH, and at the end, no more sources are asked for before the images that came are in use.
    """

    def readable(preparing: Iterable[Callable[[], list[_View]]]) -> list[list[_View]]:
        images = []
        for prepared in preparing:
            try:
                images.append(prepared())
            except AnchoriteError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(error)
        return images

    before: Sequence[Callable[[], list[_View]]] = []
    group: list[Any] = []
    for source in chain(sources, [FLUSH]):
        if source is not FLUSH:
            group.append(source)
            if len(group) < size:
                continue
        is_alone = source is FLUSH and not before and len(group) == 1  # then waking a thread takes longer
        now = [partial(prepare, one) if is_alone else threads.submit(prepare, one).result for one in group]
        yield readable(before)
        before, group = now, []
        if source is FLUSH:
            yield readable(before)
            before = []
