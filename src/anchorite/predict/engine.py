"""The inference engine: from images of any kind and size to detections in their own pixels.

A `Predictor` is one network. An `Ensemble` runs one or several over one or several views of every image: windows,
mirrored and scaled inputs. A channel is one network and one way of scaling and mirroring, over all windows of an image;
its windows are joined at their seams, then the channels are fused. A Predictor runs as the ensemble of one network and
one view. Legend: B inputs of a batch, H, W height and width in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections
from anchorite.choices import PrecisionName
from anchorite.errors import AnchoriteError, InputError
from anchorite.model import Detector, WeightsInfo, load_weights
from anchorite.predict.frames import FLUSH, Frame, each_source, read_frame
from anchorite.predict.postprocess import Limits, PredictConfig
from anchorite.predict.runtime import Runtime, TorchRuntime
from anchorite.predict.sources import OnUnreadable, expanded
from anchorite.predict.views import (
    TTAView,
    ViewConfig,
    ViewResult,
    ViewTransform,
    class_map,
    fuse_channels,
    merge_windows,
    tta_views,
)

# What a channel is asked for when others are fused with it: less sure boxes still count for those that agree.
_CHANNEL_CONFIDENCE = 0.1
_MOST_THREADS = 8
# Images read at a time when each is cut into windows: they are large, and one alone fills batches.
_MOST_TILED = 2


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
        position = {"source": video.name, "frame": self.frame.number, "seconds": round(self.frame.seconds, 3)}
        return {**position, **{name: value for name, value in entry.items() if name != "source"}}


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
        a file; sizes may differ. image_size: long side of the network input, by default that of the weights. limits:
        the fields of PredictConfig by name, as in confidence=0.4. Raises InputError for anything that is no image, and
        pydantic's ValidationError, a ValueError, for a limit out of range.
        """
        return Ensemble([Member(self)]).predict(images, image_size, batch_size, **limits)

    def stream(
        self,
        sources: Any,
        config: PredictConfig | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        on_unreadable: OnUnreadable | None = None,
    ) -> Generator[FrameResult, None, None]:
        """`predict` for more images than fit in memory: yields as it goes, reading one batch ahead.

        Each result holds the frame of its boxes. Paths may be folders, patterns and videos too, as on the command line;
        `open_sources` gives what else may be named there. With `on_unreadable`, an image that cannot be read, or the
        rest of a video, is handed to it as the error and left out; without, the error is raised.
        """
        return Ensemble([Member(self)]).stream(sources, config, image_size, batch_size, on_unreadable)


def load(path: str | Path, device: str = "auto", precision: PrecisionName = "auto") -> Predictor:
    """A Predictor of a weight file; raises what `load_weights` and `Predictor` raise."""
    detector, info = load_weights(Path(path))
    return Predictor(detector, info, device, precision)


@dataclass(frozen=True)
class Member:
    """A detector of an ensemble.

    weight: how much it counts, above 0; least_confidence: below which it cannot be asked, as an export with its
    suppression inside.
    """

    predictor: Predictor
    weight: float = 1.0
    least_confidence: float = 0.0


class _Channel(NamedTuple):
    """One network and one way of scaling and mirroring; stride: what the sides of its input are multiples of."""

    network: int
    view: TTAView
    weight: float
    stride: int


@dataclass
class _ImageInProgress:
    """A frame, the views of it that are to be run, and their results by channel, in the order in which they came."""

    frame: Frame
    requests: list[_ViewRequest]
    results: list[list[ViewResult]]


@dataclass
class _ViewRequest:
    """One view of one image for one network; channel: what its result belongs to; made: the input, where it is made."""

    image: _ImageInProgress
    network: int
    channel: int
    view: ViewTransform
    made: NDArray[np.uint8] | None = None

    def network_input(self) -> NDArray[np.uint8]:
        """The view (H, W, 3) as the network gets it."""
        return self.view.network_input(self.image.frame.image) if self.made is None else self.made


class Ensemble:
    """Finds objects as `Predictor` does, from several views (windows, mirrored, scaled) by one or several detectors.

    All members know the same classes; their order is that of the first, whose `info` is the ensemble's. A member counts
    as much as its weight, however many views it gets. Raises InputError when there is none, the classes differ, a
    weight is not above 0, or a tile is smaller than a cell of the coarsest level.
    """

    def __init__(self, members: Sequence[Member], config: ViewConfig | None = None) -> None:
        self.members, self.config = tuple(members), config or ViewConfig()
        if not self.members:
            raise InputError("an ensemble of no detectors finds nothing; give one at least")
        for member in self.members:
            if not member.weight > 0 or member.weight == float("inf"):
                raise InputError(f"weight {member.weight} of a detector: must be a finite number above 0")
            if self.config.tile is not None and self.config.tile < member.predictor.stride:
                raise InputError(
                    f"tile {self.config.tile}: must be at least {member.predictor.stride} pixels, the coarsest stride "
                    "of the network"
                )
        names = [member.predictor.info.class_names for member in self.members]
        self._class_maps = tuple(class_map(names[0], others) for others in names)

    @property
    def info(self) -> WeightsInfo:
        """Of the first member: size, class names, anchors and input size."""
        return self.members[0].predictor.info

    @property
    def stride(self) -> int:
        """The coarsest stride of all members."""
        return max(member.predictor.stride for member in self.members)

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(repr(member.predictor) for member in self.members)}; {self.config!r})"

    def views_by_member(self, image_size: int | None = None) -> list[list[TTAView]]:
        """The views that each member gets of every window; raises InputError where it cannot take this size."""
        by_member = []
        for member in self.members:
            predictor, fixed_side = member.predictor, member.predictor.runtime.fixed_side
            side = predictor.info.image_size if image_size is None else image_size
            if side < predictor.stride:
                raise InputError(
                    f"image size {side}: must be at least {predictor.stride}, the coarsest stride of the network"
                )
            if fixed_side not in (None, side):
                raise InputError(f"image size {side}: this network was exported for {fixed_side} px alone")
            by_member.append(tta_views(side, predictor.stride, self.config.augment, is_fixed=fixed_side is not None))
        return by_member

    def predict(
        self, images: Any, image_size: int | None = None, batch_size: int = 8, **limits: Unpack[Limits]
    ) -> list[Detections]:
        """As `Predictor.predict`; image_size: of every member, by default what each was trained for."""
        results = self._run(each_source(images), PredictConfig(**limits), image_size, batch_size, on_unreadable=None)
        return [result.detections for result in results]

    def stream(
        self,
        sources: Any,
        config: PredictConfig | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        on_unreadable: OnUnreadable | None = None,
    ) -> Generator[FrameResult, None, None]:
        """As `Predictor.stream`; batch_size: views, not images, that a network gets at a time."""
        paths_opened = expanded(each_source(sources), batch_size, on_unreadable)
        return self._run(paths_opened, config or PredictConfig(), image_size, batch_size, on_unreadable)

    def _run(
        self,
        sources: Iterable[Any],
        config: PredictConfig,
        image_size: int | None,
        batch_size: int,
        on_unreadable: OnUnreadable | None,
    ) -> Generator[FrameResult, None, None]:
        """Group by group of images: while the networks run one, threads read the next."""
        channels = self._channels(image_size, batch_size)
        group_size = batch_size if self.config.tile is None else min(batch_size, _MOST_TILED)

        def prepare(source: Any) -> _ImageInProgress:
            return self._prepared(read_frame(source), channels)

        with ThreadPoolExecutor(min(group_size, os.cpu_count() or 1, _MOST_THREADS)) as threads:
            for images in _prepared_groups(sources, prepare, group_size, threads, on_unreadable):
                batches = _batches(images, batch_size)
                inputs: list[Iterable[NDArray[np.uint8]]] = []
                for number, batch in enumerate(batches):  # the inputs of one are made while another runs
                    for later in batches[len(inputs) : number + 2]:
                        inputs.append(_inputs(later, threads))
                    self._run_batch(batch, list(inputs[number]), self._config_of(batch, config, len(channels)))
                    inputs[number] = ()
                for image in images:
                    yield self._result(image, channels, config)

    def _channels(self, image_size: int | None, batch_size: int) -> list[_Channel]:
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        channels = []
        for network, views in enumerate(self.views_by_member(image_size)):
            member = self.members[network]
            stride = member.predictor.runtime.fixed_side or member.predictor.stride
            channels += [_Channel(network, view, member.weight / len(views), stride) for view in views]
        return channels

    def _prepared(self, frame: Frame, channels: Sequence[_Channel]) -> _ImageInProgress:
        """A frame with its views; those of the whole image are made, windows are when their batch is about to run."""
        image = _ImageInProgress(frame, [], [[] for _ in channels])
        windows = self.config.windows(*frame.image.shape[:2])
        for window in windows:
            for number, channel in enumerate(channels):
                view = ViewTransform.of(window, channel.view, channel.stride)
                image.requests.append(_ViewRequest(image, channel.network, number, view))
        if len(windows) == 1:
            for request in image.requests:
                request.made = request.network_input()
        return image

    def _run_batch(
        self, batch: Sequence[_ViewRequest], inputs: Sequence[NDArray[np.uint8]], config: PredictConfig
    ) -> None:
        """Run the network of a batch on its inputs, and keep the results with their images."""
        stacked = np.stack(inputs) if len(inputs) > 1 else np.ascontiguousarray(inputs[0])[None]
        network = batch[0].network
        runtime, our_classes = self.members[network].predictor.runtime, self._class_maps[network]
        # Interleaved pixels seen as (B, 3, H, W) lie in channels_last memory already.
        outputs = runtime.outputs(torch.from_numpy(stacked).permute(0, 3, 1, 2))
        found = runtime.detections(outputs, config).cpu().split()
        for request, raw in zip(batch, found, strict=True):
            raw = replace(raw, class_ids=our_classes[raw.class_ids])
            request.image.results[request.channel].append(ViewResult(request.view, raw))
            request.made = None

    def _config_of(self, batch: Sequence[_ViewRequest], config: PredictConfig, num_channels: int) -> PredictConfig:
        if num_channels == 1:
            return config
        least = min(self.members[batch[0].network].least_confidence, config.confidence)
        return config.model_copy(update={"confidence": max(least, _CHANNEL_CONFIDENCE * config.confidence)})

    def _result(self, image: _ImageInProgress, channels: Sequence[_Channel], config: PredictConfig) -> FrameResult:
        height, width = image.frame.image.shape[:2]
        merged = [merge_windows(results, (height, width), config) for results in image.results]
        weights = torch.tensor([channel.weight for channel in channels], dtype=torch.float64)
        raw = merged[0] if len(merged) == 1 else fuse_channels(merged, weights, config)
        detections = Detections(
            raw.boxes_xyxy, raw.scores, raw.class_ids, self.info.class_names, (height, width), image.frame.name
        )
        return FrameResult(image.frame, detections)


def _batches(images: Iterable[_ImageInProgress], batch_size: int) -> list[list[_ViewRequest]]:
    """All views of some images, in batches of one network and one input size."""
    alike: dict[tuple[int, tuple[int, int]], list[_ViewRequest]] = {}
    for image in images:
        for request in image.requests:
            alike.setdefault((request.network, request.view.size_hw), []).append(request)
    return [
        requests[start : start + batch_size]
        for requests in alike.values()
        for start in range(0, len(requests), batch_size)
    ]


def _inputs(batch: Sequence[_ViewRequest], threads: ThreadPoolExecutor) -> Iterable[NDArray[np.uint8]]:
    """The inputs of a batch, which threads begin to make where they are not made yet."""
    if all(request.made is not None for request in batch):
        return (request.network_input() for request in batch)
    return threads.map(_ViewRequest.network_input, batch)


def _prepared_groups(
    sources: Iterable[Any],
    prepare: Callable[[Any], _ImageInProgress],
    size: int,
    threads: ThreadPoolExecutor,
    on_unreadable: OnUnreadable | None,
) -> Iterator[list[_ImageInProgress]]:
    """Up to `size` images at a time, prepared by threads while the group before is in use.

    After a FLUSH, and at the end, no more sources are asked for before the images that came are in use.
    """

    def readable(preparing: Iterable[Callable[[], _ImageInProgress]]) -> list[_ImageInProgress]:
        images = []
        for prepared in preparing:
            try:
                images.append(prepared())
            except AnchoriteError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(error)
        return images

    before: Sequence[Callable[[], _ImageInProgress]] = []
    for group, is_flush in _groups(sources, size):
        if is_flush and not before and len(group) == 1 < size:
            yield readable([partial(prepare, group[0])])  # nothing runs meanwhile: waking a thread takes longer
            continue
        preparing = [threads.submit(prepare, source).result for source in group]
        yield readable(before)
        before = preparing
        if is_flush:
            yield readable(before)
            before = []


def _groups(sources: Iterable[Any], size: int) -> Iterator[tuple[list[Any], bool]]:
    """Up to `size` sources at a time, fewer where a FLUSH or the end comes first, which is told with them."""
    group: list[Any] = []
    for source in sources:
        if source is not FLUSH:
            group.append(source)
        if source is FLUSH or len(group) == size:
            yield group, source is FLUSH
            group = []
    yield group, True
