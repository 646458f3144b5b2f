"""`Ensemble`: several looks at every image, by one or more detectors, made into one answer.

A channel is one detector looking in one way (scaled, mirrored or plainly) at all windows of an image. The windows of a
channel are joined at their seams, then the channels are fused. Legend: N boxes, H, W height and width in pixels.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from anchorite.boxes import Detections
from anchorite.errors import AnchoriteError, InputError
from anchorite.model import WeightsInfo
from anchorite.predict.config import Limits, PredictConfig
from anchorite.predict.merging import class_map, fused_channels, joined_windows
from anchorite.predict.postprocess import RawDetections
from anchorite.predict.predictor import Predictor, expanded_sources
from anchorite.predict.sources import LULL, Lull, OnUnreadable, each_source, read_image, source_name
from anchorite.predict.tiles import Window, windows
from anchorite.predict.view_batches import Picture, Sight, ViewBatches
from anchorite.predict.views import Look, View, looks

# What a channel is asked for when others are fused with it: less sure boxes still count for those that agree.
_CHANNEL_CONFIDENCE = 0.1
_READ_AHEAD = 2
# Pixels of images that wait for batches to fill; beyond it, batches go as they are.
_MOST_PIXELS = 100_000_000


class RefiningConfig(BaseModel):
    """How often and how closely each image is looked at.

    tile: side in pixels of the windows that are looked at, None for none; tile_overlap: least share of it that
    neighbours have in common; whole_image: look at the image as a whole as well; augment: look mirrored and at other
    scales too.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    tile: int | None = Field(default=None, ge=1)
    tile_overlap: float = Field(default=0.2, ge=0, lt=1)
    whole_image: bool = True
    augment: bool = False

    def windows(self, height: int, width: int) -> list[Window]:
        """The windows of an image of (height, width) pixels, the whole image first where that is one."""
        whole = (0, 0, width, height)
        if self.tile is None:
            return [whole]
        tiles = windows(height, width, self.tile, self.tile_overlap)
        return [whole, *tiles] if self.whole_image and tiles != [whole] else tiles


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
    """One detector looking in one way; its number among the members, what it counts, the multiple that sides are of."""

    network: int
    look: Look
    weight: float
    stride: int


class Ensemble:
    """Finds objects as `Predictor` does, from several looks: windows, mirrored and scaled views, several detectors.

    All members know the same classes; their order is that of the first, whose `info` is the ensemble's. A member counts
    as much as its weight, however many looks it takes. Raises InputError when there is none, the classes differ, a
    weight is not above 0, or a tile is smaller than a cell of the coarsest level.
    """

    def __init__(self, members: Sequence[Member], config: RefiningConfig | None = None) -> None:
        self.members, self.config = tuple(members), config or RefiningConfig()
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

    def looks_by_member(self, image_size: int | None = None) -> list[list[Look]]:
        """How each member looks at every window; raises InputError where one cannot see images of this size."""
        found = []
        for member in self.members:
            predictor, fixed_side = member.predictor, member.predictor.runtime.fixed_side
            side = predictor.info.image_size if image_size is None else image_size
            if side < predictor.stride:
                raise InputError(
                    f"image size {side}: must be at least {predictor.stride}, the coarsest stride of the network"
                )
            if fixed_side not in (None, side):
                raise InputError(f"image size {side}: this network was exported for {fixed_side} px alone")
            found.append(looks(side, predictor.stride, self.config.augment, is_fixed=fixed_side is not None))
        return found

    def predict(
        self, images: Any, image_size: int | None = None, batch_size: int = 8, **limits: Unpack[Limits]
    ) -> list[Detections]:
        """As `Predictor.predict`; image_size: of every member, by default what each was trained for."""
        found = self._run(each_source(images), PredictConfig(**limits), image_size, batch_size, on_unreadable=None)
        return [detections for _, detections in found]

    def stream(
        self,
        sources: Any,
        config: PredictConfig | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        on_unreadable: OnUnreadable | None = None,
    ) -> Iterator[tuple[UInt8[NDArray[np.uint8], "H W 3"], Detections]]:
        """As `Predictor.stream`; batch_size: views, not images, that a network sees at a time."""
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
        """Image after image into batches; an answer once all that is asked about its image has come back."""
        channels = self._channels(image_size, batch_size)

        def detect(network: int, batch: NDArray[np.uint8]) -> list[RawDetections]:
            return self._detected(network, batch, self._channel_config(network, config, len(channels)))

        in_hand: deque[Picture] = deque()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _READ_AHEAD + 1)) as threads:
            batches = ViewBatches(detect, batch_size, threads)
            for picture in _read_ahead(sources, threads, len(channels), on_unreadable):
                if isinstance(picture, Picture):
                    in_hand.append(picture)
                    for sight in self._sights(picture, channels):
                        batches.add(sight)
                while in_hand and (picture is LULL or not in_hand[0].num_open or _is_too_much(in_hand, batch_size)):
                    batches.settle(in_hand[0])
                    yield self._answered(in_hand.popleft(), channels, config)

    def _channels(self, image_size: int | None, batch_size: int) -> list[_Channel]:
        """Every way of every member."""
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        channels = []
        for network, of_member in enumerate(self.looks_by_member(image_size)):
            member = self.members[network]
            weight = member.weight / len(of_member)
            stride = member.predictor.runtime.fixed_side or member.predictor.stride
            channels += [_Channel(network, look, weight, stride) for look in of_member]
        return channels

    def _channel_config(self, network: int, config: PredictConfig, num_channels: int) -> PredictConfig:
        if num_channels == 1:
            return config
        least = min(self.members[network].least_confidence, config.confidence)
        return config.model_copy(update={"confidence": max(least, _CHANNEL_CONFIDENCE * config.confidence)})

    def _sights(self, picture: Picture, channels: Sequence[_Channel]) -> Iterator[Sight]:
        for window in self.config.windows(*picture.image.shape[:2]):
            for number, channel in enumerate(channels):
                yield Sight(picture, channel.network, number, View.of(window, channel.look, channel.stride))

    def _detected(self, network: int, batch: NDArray[np.uint8], config: PredictConfig) -> list[RawDetections]:
        """What a member finds in inputs (B, H, W, 3), in classes of the first member."""
        runtime, to_ours = self.members[network].predictor.runtime, self._class_maps[network]
        outputs = runtime.outputs(torch.from_numpy(batch).permute(0, 3, 1, 2))
        found = runtime.detections(outputs, config).cpu().split()
        return [replace(raw, class_ids=to_ours[raw.class_ids]) for raw in found]

    def _answered(
        self, picture: Picture, channels: Sequence[_Channel], config: PredictConfig
    ) -> tuple[NDArray[np.uint8], Detections]:
        height, width = picture.image.shape[:2]
        joined = [joined_windows(answers, (height, width), config) for answers in picture.answers]
        weights = torch.tensor([channel.weight for channel in channels], dtype=torch.float64)
        found = joined[0] if len(joined) == 1 else fused_channels(joined, weights, config)
        return picture.image, Detections(
            found.boxes_xyxy, found.scores, found.class_ids, self.info.class_names, (height, width), picture.source
        )


def _is_too_much(in_hand: Sequence[Picture], batch_size: int) -> bool:
    pixels = sum(picture.image.shape[0] * picture.image.shape[1] for picture in in_hand)
    return len(in_hand) > batch_size or pixels > _MOST_PIXELS


def _read_ahead(
    sources: Iterable[Any], threads: ThreadPoolExecutor, num_channels: int, on_unreadable: OnUnreadable | None
) -> Iterator[Picture | Lull]:
    """The images of sources, read by threads while those before are looked at; a lull once all before it are there."""

    def read(source: Any) -> Picture:
        return Picture(read_image(source), source_name(source), [[] for _ in range(num_channels)])

    def next_read() -> Iterator[Picture]:
        try:
            yield reading.popleft().result()
        except AnchoriteError as error:
            if on_unreadable is None:
                raise
            on_unreadable(error)

    reading: deque[Future[Picture]] = deque()
    for source in chain(sources, [LULL]):
        if source is not LULL:
            reading.append(threads.submit(read, source))
        while len(reading) > (0 if source is LULL else _READ_AHEAD):
            yield from next_read()
        if source is LULL:
            yield LULL
