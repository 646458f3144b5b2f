"""From chosen images to the page: letterboxed as validation sees them, their targets, their costs, their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anchorite import __version__
from anchorite.boxes import Targets
from anchorite.data import LetterboxedBatch, LetterboxTransform, Record, decode_image, letterbox, rectangular_size
from anchorite.errors import InputError
from anchorite.evaluate.targets import batch_targets
from anchorite.report.explain.choice import Chosen
from anchorite.report.explain.costs import image_costs
from anchorite.report.explain.pictures import picture_uri
from anchorite.report.explain.setting import Setting
from anchorite.report.page import render_page

MAX_PAGE_BYTES = 2_950_000
_LEAST_PICTURE_BYTES = 8_000
_STYLES = ("style.css", "explain.css")
_SCRIPTS = (
    "explain_assign.js",
    "explain_state.js",
    "explain_picture.js",
    "explain_object.js",
    "explain_costs.js",
    "explain_page.js",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Explained:
    """page: the HTML. facts: what it shows, as plain data, without the pictures. left_out: unreadable images."""

    page: str
    facts: dict[str, Any]
    left_out: tuple[str, ...]


def explain(
    records: Sequence[Record],
    chosen: Sequence[Chosen],
    setting: Setting,
    title: str,
    notes: Sequence[str] = (),
    *,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Explained:
    """The page of these images of a split. notes: how they were chosen, shown with the setting's sentences.

    progress is called with (images done, images in all). Raises InputError naming an image that cannot be decoded,
    unless skip_unreadable, or when none is left; DivergedError when the network's output is not finite.
    """
    images: list[dict[str, Any]] = []
    pixels: list[np.ndarray] = []
    left_out: list[str] = []
    for number, one in enumerate(chosen, 1):
        try:
            facts, picture = _look_at(records[one.index], one.reason, setting)
        except InputError as error:
            if not skip_unreadable:
                raise InputError(f"{error}\n--skip-bad leaves such images out") from error
            left_out.append(str(error))
        else:
            images.append(facts)
            pixels.append(picture)
        if progress is not None:
            progress(number, len(chosen))
    if not images:
        raise InputError("none of the chosen images can be read: " + "; ".join(left_out[:3]))
    facts = {**_common(setting), "images": images}
    context = {
        "title": title,
        "notes": [*notes, *setting.sentences, *(f"left out: {reason}" for reason in left_out)],
        "version": __version__,
        "with_costs": setting.criterion is not None,
    }
    bare = render_page("explain.html.j2", context, styles=_STYLES, scripts=_SCRIPTS, data=facts)
    room = (MAX_PAGE_BYTES - len(bare.encode("utf-8"))) // len(images)
    uris = [picture_uri(picture, max(room, _LEAST_PICTURE_BYTES)) for picture in pixels]
    with_pictures = [{**image, "uri": uri} for image, uri in zip(images, uris, strict=True)]
    page = render_page(
        "explain.html.j2", context, styles=_STYLES, scripts=_SCRIPTS, data={**facts, "images": with_pictures}
    )
    return Explained(page, facts, tuple(left_out))


def _common(setting: Setting) -> dict[str, Any]:
    """What holds for all images."""
    config = None if setting.criterion is None else setting.criterion.config
    return {
        "classes": list(setting.class_names),
        "levels": [
            {"name": f"P{stride.bit_length() - 1}", "stride": stride, "anchors": [list(pair) for pair in sizes]}
            for stride, sizes in zip(setting.anchors.strides, setting.anchors.sizes_px, strict=True)
        ],
        "ratio_limit": setting.ratio_limit,
        "image_size": setting.image_size,
        "loss": None if config is None else {"iou": config.box_iou, "collision": config.collision},
    }


def _look_at(record: Record, reason: str, setting: Setting) -> tuple[dict[str, Any], np.ndarray]:
    """The facts of one image, and the network's input (H, W, 3) it is about."""
    image = decode_image(record.path)
    if image.shape[:2] != (record.height, record.width):
        raise InputError(
            f"{record.path}: is {image.shape[1]}x{image.shape[0]} pixels but was {record.width}x{record.height} "
            "when the dataset was read. Start again, so that the labels are read anew"
        )
    size_hw = rectangular_size(image.shape[:2], setting.image_size, setting.anchors.strides[-1])
    canvas, transform = letterbox(image, size_hw)
    network_input = torch.from_numpy(canvas).permute(2, 0, 1)[None]
    # The very rows that validation hands to the loss, rounded to float32 as there.
    targets = batch_targets([record], LetterboxedBatch(network_input, (transform,), torch.tensor([0])))
    facts: dict[str, Any] = {
        "name": record.path.name,
        "reason": reason,
        "source": [record.width, record.height],
        "width": size_hw[1],
        "height": size_hw[0],
        **_labels(record, transform, targets),
    }
    if setting.detector is not None and setting.criterion is not None:
        facts["costs"] = image_costs(setting.detector, setting.criterion, network_input, targets, str(record.path))
    return facts, _sharper(image, canvas)


def _sharper(image: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """The letterboxed image with twice the pixels where the file has them, for people to look at."""
    height, width = canvas.shape[:2]
    if max(image.shape[:2]) < 1.5 * max(height, width):
        return canvas
    return letterbox(image, (2 * height, 2 * width))[0]


def _labels(record: Record, transform: LetterboxTransform, targets: Targets) -> dict[str, Any]:
    """The targets, (cx, cy, w, h) of 0..1 in float64, each with class and origin; and the ignored boxes in pixels."""
    kept = np.flatnonzero(~record.ignored)
    boxes = targets.rows[:, 2:].double().tolist()
    return {
        "targets": [
            {"class": int(record.class_ids[index]), "box": box, "origin": _origin(record, int(index))}
            for index, box in zip(kept, boxes, strict=True)
        ],
        "ignored": transform.to_network(record.boxes_xyxy[record.ignored]).round(1).tolist(),
    }


def _origin(record: Record, index: int) -> str:
    """File and line of a label, without the folders, which the page need not give away."""
    return record.origins[index].replace("\\", "/").rsplit("/", 1)[-1]
