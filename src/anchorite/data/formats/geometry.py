"""From the boxes a label file names to a Record: one policy for every format.

A box that reaches outside the image is clipped; one left without area is dropped and its image kept; of exact
duplicates (class, crowd flag and coordinates) the first stays; sub-pixel boxes stay. Each of these is recorded.
Legend: N boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anchorite.data.formats.log import ReadingLog
from anchorite.data.formats.paths import Fence
from anchorite.data.headers import ImageHeader, read_header
from anchorite.data.records import Record
from anchorite.errors import InputError

# Clipping always happens, but is only reported beyond this: six decimals of a normalised number are worth up to
# 0.01 px in a large image, and a list full of rounding hides the boxes that are wrong.
REPORTED_CLIP_PX = 0.1


class RawBox(NamedTuple):
    """A well-formed label before the policy: corners in pixels as displayed, area in pixels or None for the box's."""

    class_id: int
    box_xyxy: tuple[float, float, float, float]
    origin: str
    ignored: bool = False
    area: float | None = None


def read_image_header(path: Path, fence: Fence, log: ReadingLog) -> ImageHeader | None:
    """The header of an image inside the fence, or None with the reason in the log."""
    refusal = fence.refusal(path)
    if refusal:
        log.bad(str(path), refusal, path)
        return None
    try:
        return read_header(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        log.bad(str(path), reason, path)
        return None


def sizes_agree(header: ImageHeader, claimed_wh: tuple[int, int] | None, origin: str, log: ReadingLog) -> bool:
    """Whether a label file's image size is the displayed one; the log says why not.

    Pixel coordinates mean nothing when the size is another: they belong to a resized, cut or turned image. A size of
    None or 0 is "not stated" and agrees.
    """
    if claimed_wh is None or 0 in claimed_wh or claimed_wh == (header.width, header.height):
        return True
    claimed = f"{claimed_wh[0]}x{claimed_wh[1]}"
    actual = f"{header.width}x{header.height}"
    if header.is_turned and claimed_wh == (header.stored_width, header.stored_height):
        log.bad(
            origin,
            f"the labels say {claimed}, the image is shown as {actual} after its EXIF orientation "
            f"({header.orientation}): the boxes were drawn on the image lying on its side; label the upright image, "
            "or remove the orientation from the file",
        )
    else:
        log.bad(
            origin,
            f"the labels say the image is {claimed}, the file is {actual}; restore the image that was labelled, or "
            "scale the boxes and correct the size",
        )
    return False


def plain_boxes(
    boxes_xyxy: NDArray[np.float64],
    class_ids: NDArray[np.int64],
    ignored: NDArray[np.bool_],
    counts: NDArray[np.int64],
    sizes_wh: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The boxes of many images clipped as `build_record` does, and for which images that is all it would do.

    boxes_xyxy (N, 4), class_ids, ignored (N,): image after image; counts, sizes_wh (B,), (B, 2): of B images. The
    second array, (B,) bool, is False where the log would hear of a box, maybe where not, and where a size is 0.
    """
    images = np.repeat(np.arange(len(counts)), counts)
    limits = np.concatenate([sizes_wh, sizes_wh], axis=1)[images]
    positive = np.where(boxes_xyxy < 0.0, 0.0, boxes_xyxy)
    clipped = np.where(positive > limits, limits, positive)
    is_told = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    is_told |= np.abs(clipped - boxes_xyxy).max(axis=1, initial=0.0) > REPORTED_CLIP_PX
    is_told |= _may_repeat(clipped, class_ids, ignored, images)
    is_plain = np.asarray((sizes_wh > 0).all(axis=1), np.bool_)
    is_plain[images[is_told]] = False
    return clipped, is_plain


def _may_repeat(
    boxes_xyxy: NDArray[np.float64], class_ids: NDArray[np.int64], ignored: NDArray[np.bool_], images: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(N,) bool, true for every box that repeats one of its image, and by a chance of 2**-64 a pair for others."""
    hashes = (images * 2 + ignored).astype(np.uint64)
    numbers = (boxes_xyxy + 0.0).view(np.uint64)  # -0.0 and 0.0 are the same place
    for column in (class_ids.astype(np.uint64), *numbers.T):
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    order = np.argsort(hashes, kind="stable")
    is_same = hashes[order[1:]] == hashes[order[:-1]]
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:][is_same]] = True
    return repeated


def build_record(
    path: Path, header: ImageHeader, boxes: Sequence[RawBox], class_names: Sequence[str], log: ReadingLog
) -> Record:
    """The Record of one image after the policy of this module; what the policy did goes to the log."""
    kept: list[RawBox] = []
    seen: dict[tuple[object, ...], str] = {}
    for box in boxes:
        name = class_names[box.class_id]
        box_xyxy = _clip(box.box_xyxy, header.width, header.height)
        known = {"image": path, "class_name": name, "box_xyxy": box.box_xyxy}
        if box_xyxy[2] <= box_xyxy[0] or box_xyxy[3] <= box_xyxy[1]:
            log.adjusted(
                "dropped-empty",
                box.origin,
                f"{name} {_show(box.box_xyxy)} has no area within {header.width}x{header.height}",
                **known,
            )
            continue
        key = (box.class_id, box.ignored, *box_xyxy)
        if key in seen:
            log.adjusted("dropped-duplicate", box.origin, f"{name} {_show(box.box_xyxy)} repeats {seen[key]}", **known)
            continue
        seen[key] = box.origin
        if max(abs(a - b) for a, b in zip(box_xyxy, box.box_xyxy, strict=True)) > REPORTED_CLIP_PX:
            detail = f"{name} {_show(box.box_xyxy)} -> {_show(box_xyxy)} in {path.name}"
            log.adjusted("clipped", box.origin, detail, **known)
        kept.append(box._replace(box_xyxy=box_xyxy))
    return _as_record(path, header, kept)


def _as_record(path: Path, header: ImageHeader, boxes: Sequence[RawBox]) -> Record:
    boxes_xyxy = np.array([box.box_xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    for index, box in enumerate(boxes):
        if box.area is not None:
            areas[index] = box.area
    return Record(
        path=path,
        width=header.width,
        height=header.height,
        boxes_xyxy=boxes_xyxy,
        class_ids=np.array([box.class_id for box in boxes], dtype=np.int64),
        ignored=np.array([box.ignored for box in boxes], dtype=np.bool_),
        areas=areas,
        origins=tuple(box.origin for box in boxes),
    )


def _clip(box_xyxy: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box_xyxy
    return (
        min(max(x1, 0.0), float(width)),
        min(max(y1, 0.0), float(height)),
        min(max(x2, 0.0), float(width)),
        min(max(y2, 0.0), float(height)),
    )


def _show(box_xyxy: tuple[float, float, float, float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box_xyxy) + ")"
