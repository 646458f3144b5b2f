"""Detections written to a folder: annotated images, YOLO label files, one JSON.

    FOLDER/images/NAME.jpg     the image with its boxes drawn in (NAME.png for a PNG)
    FOLDER/labels/NAME.txt     class cx cy w h score, a line each, normalised to 0..1
    FOLDER/detections.json     everything, in pixels

NAME is the stem of the source. Of several sources of one name, the later ones are called NAME-2, NAME-3; the JSON says
which is which. The folder must be new or empty, so nothing is ever overwritten, least of all an input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections, xyxy_to_cxcywh
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import write_bytes_atomically, write_text_atomically
from anchorite.predict.drawing import draw

_FORMAT_VERSION = 1
_JPEG_QUALITY = 92
_LONGEST_JPEG_SIDE = 65_500
# File systems stop at 255 bytes; this leaves room for a number, a suffix and the name of a temporary file.
_LONGEST_STEM = 180


class PredictionWriter:
    """Writes the detections of one image after another; the JSON when the `with` block ends, however it ends.

    images, labels: whether to write the annotated images and the label files. Raises InputError when the folder holds
    something already, StorageError when the disk or a permission refuses.
    """

    def __init__(self, folder: Path, class_names: Iterable[str], images: bool = True, labels: bool = True) -> None:
        self.folder = folder
        self._class_names = tuple(class_names)
        self._with_images = images
        self._with_labels = labels
        self._entries: list[dict[str, Any]] = []
        self._unreadable: list[str] = []
        self._taken: set[str] = set()
        _make_empty(folder, (["images"] if images else []) + (["labels"] if labels else []))

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def add(self, image: UInt8[NDArray[np.uint8], "H W 3"], detections: Detections) -> None:
        """Write one image's results; image: (H, W, 3) uint8 RGB, the frame of the boxes."""
        source = Path(detections.source or "image")
        name = self._unused_name(_file_name(source.stem))
        entry = _rounded(detections.to_dict())
        if self._with_images:
            as_png = source.suffix.lower() == ".png" or max(image.shape) > _LONGEST_JPEG_SIDE
            suffix = ".png" if as_png else ".jpg"
            entry["annotated"] = f"images/{name}{suffix}"
            _write_image(self.folder / entry["annotated"], draw(image, detections))
        if self._with_labels:
            entry["labels"] = f"labels/{name}.txt"
            write_text_atomically(self.folder / entry["labels"], yolo_lines(detections))
        self._entries.append(entry)

    def add_unreadable(self, error: AnchoriteError) -> None:
        """Note an image that could not be read; fits `on_unreadable` of `Predictor.stream`."""
        self._unreadable.append(str(error))

    def finish(self) -> Path:
        """Write detections.json with all there is so far, and return its path."""
        content = {
            "format_version": _FORMAT_VERSION,
            "class_names": self._class_names,
            "images": self._entries,
            "unreadable": self._unreadable,
        }
        path = self.folder / "detections.json"
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        # Bytes of a file name that are no text become \\udc.., which is how JSON writes them.
        write_text_atomically(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))
        return path

    def _unused_name(self, stem: str) -> str:
        """The stem, shortened to what file systems hold, or the first of stem-2, stem-3, ... that is free.

        Names that differ in case alone are one to some file systems, so they count as equal.
        """
        stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name


def yolo_lines(detections: Detections) -> str:
    """One line a detection: class cx cy w h score, the box normalised to 0..1 of the image."""
    height, width = detections.image_size
    boxes_px = xyxy_to_cxcywh(detections.boxes_xyxy.double())
    boxes = boxes_px / boxes_px.new_tensor([width, height, width, height])
    rows = zip(detections.class_ids.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True)
    return "".join(
        f"{class_id} {' '.join(f'{value:.6f}' for value in (*box, score))}\n" for class_id, box, score in rows
    )


def fresh_folder(wanted: Path) -> Path:
    """`wanted`, if nothing is in it, else the first of wanted-2, wanted-3, ... with nothing in it; creates nothing."""
    folder, number = wanted, 1
    while _has_content(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _make_empty(folder: Path, parts: list[str]) -> None:
    try:
        if _has_content(folder):
            raise InputError(
                f"{folder}: there is something here already, and nothing is ever overwritten; "
                "name a new or an empty folder"
            )
        for part in (".", *parts):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}; choose another folder") from error


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    # Encoded in memory: OpenCV's own writing neither reports a full disk nor takes every file name.
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []  # it warns of any other's
    ok, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    assert ok, path
    write_bytes_atomically(path, encoded.tobytes())


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    """Coordinates to a thousandth of a pixel, scores to a millionth: more is noise of float32."""
    for found in entry["detections"]:
        found["box_xyxy"] = [round(edge, 3) for edge in found["box_xyxy"]]
        found["score"] = round(found["score"], 6)
    return entry


def _file_name(stem: str) -> str:
    """The stem without what some file system refuses: control characters, bytes that are no text, Windows' signs."""
    return "".join(sign if sign.isprintable() and sign not in '<>:"/\\|?*' else "_" for sign in stem)
