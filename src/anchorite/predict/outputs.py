"""Predictions written to a folder.

    FOLDER/images/NAME.jpg     images: the image with its boxes drawn in (NAME.png for a PNG)
    FOLDER/videos/NAME.mp4     video: a video with the boxes drawn in
    FOLDER/labels/NAME.txt     txt: class cx cy w h score, a line each, normalised to 0..1
    FOLDER/crops/CLASS/...png  crops: what lies inside each box, NAME-1 the best
    FOLDER/detections.json     json: everything, in pixels
    FOLDER/detections.jsonl    jsonl: the same, a line an image or frame, there as soon as it is found
    FOLDER/coco-results.json   coco: [{image_id, category_id, bbox: [x, y, width, height], score}, ...]
    FOLDER/coco-images.json    coco: {images: [{id, file_name, width, height}, ...], annotations: [], categories: [...]}

NAME is the stem of the source, and NAME-frame-000123 for the frame of a video. Of several sources of one name, the
later ones are called NAME-2, NAME-3; the JSON says which is which. COCO's images and categories count from 1: category
1 is class 0. The folder must be new or empty, so nothing is ever overwritten, least of all an input.

Legend: H, W image height and width in pixels.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections, xyxy_to_cxcywh
from anchorite.choices import OutputKind
from anchorite.errors import AnchoriteError, InputError, StorageError
from anchorite.files import (
    StrPath,
    cannot_write,
    make_folder,
    write_atomically,
    write_bytes_atomically,
    write_text_atomically,
)
from anchorite.interrupts import HeldInterrupts
from anchorite.predict.drawing import draw
from anchorite.predict.engine import FrameResult
from anchorite.predict.frames import Frame, Video, hush

_FORMAT_VERSION = 1
_FOLDERS: dict[OutputKind, str] = {"images": "images", "txt": "labels", "crops": "crops", "video": "videos"}
# File systems stop at 255 bytes; this leaves room for a number, a suffix and the name of a temporary file.
_LONGEST_STEM = 180
_REFUSED_SIGNS = frozenset('<>:"/\\|?*')
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_JPEG_QUALITY = 92
_LONGEST_JPEG_SIDE = 65_500
# Codecs that OpenCV's own FFmpeg always has come first; H.264 depends on what a system adds.
_CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
_LEAST_FREE_BYTES = 16_000_000
_FRAMES_BETWEEN_LOOKS = 50  # at the space left on the disk: OpenCV does not tell of a full one
_LONGEST_LIVE_S = 3600.0


@dataclass(frozen=True)
class Save:
    """The kinds of results that are written of images, and of frames of videos."""

    of_images: frozenset[OutputKind]
    of_frames: frozenset[OutputKind]

    @classmethod
    def usual(cls, is_streamed: bool = False, without: Iterable[OutputKind] = ()) -> Save:
        """Of images the annotated image and YOLO rows, of videos the annotated video; and one JSON.

        Where it is not known how many there will be, JSON lines in its place. without: leave these out.
        """
        record: OutputKind = "jsonl" if is_streamed else "json"
        left_out = frozenset(without)
        return cls(frozenset({"images", "txt", record}) - left_out, frozenset({"video", record}) - left_out)

    @classmethod
    def only(cls, kinds: Iterable[OutputKind]) -> Save:
        """These, of images and frames alike; a video of frames alone."""
        chosen = frozenset(kinds)
        return cls(chosen - {"video"}, chosen)


def file_name(text: str) -> str:
    """A text without what some file system refuses: control characters, bytes that are no text, Windows' signs."""
    return "".join(sign if sign.isprintable() and sign not in _REFUSED_SIGNS else "_" for sign in text)


def folder_names(texts: Iterable[str]) -> list[str]:
    """A folder name for each text, all different: no path, no hidden folder, no device of Windows."""
    names, taken = [], set[str]()
    for text in texts:
        name = file_name(text).strip(". ") or "_"
        names.append(unused(f"{name}_" if name.partition(".")[0].casefold() in _DEVICES else name, taken))
    return names


def unused(stem: str, taken: set[str]) -> str:
    """The stem, shortened to what file systems hold, or the first of stem-2, stem-3, ... that is not taken; now it is.

    Names that differ in case alone are one to some file systems, so they count as equal.
    """
    stem = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


class GrowingFile:
    """A new UTF-8 file that grows by whole pieces, each readable at once; one that does not fit is taken back."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, piece: str) -> None:
        """Write a piece; StorageError when the disk refuses."""
        # Bytes of a file name that are no text become \\udc.., which is how JSON writes them.
        data = piece.encode("utf-8", "backslashreplace")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise cannot_write(self._path, error) from error
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonDocument:
    """A JSON file that holds one long list: written beside its place as it comes, and moved there when it is whole.

    path: its place; key: the list's; None for a file that is nothing but the list. before: what stands before the
    list in its object.
    """

    def __init__(self, path: Path, key: str | None = None, before: dict[str, Any] | None = None) -> None:
        self._path, self._key, self._margin, self._separator = path, key, "  " if key else " ", "\n"
        self._spool = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file = GrowingFile(self._spool)
        self._file.append("[" if key is None else _json({**(before or {}), key: []}).removesuffix("]\n}"))

    def add(self, entry: Any) -> None:
        """Write an entry of the list."""
        text = _json(entry).replace("\n", "\n" + self._margin)  # strings of JSON have no line ends of their own
        self._file.append(self._separator + self._margin + text)
        self._separator = ",\n"

    def finish(self, after: dict[str, Any] | None = None) -> None:
        """End the list, write what stands after it, and move the file to its place."""
        closing = "]" if self._key is None else _json({self._key: [], **(after or {})}).partition("[")[2]
        is_empty = self._separator == "\n"
        try:
            self._file.append(("" if is_empty else "\n" + self._margin[1:]) + closing + "\n")
            self._file.close()
            write_atomically(self._path, self._spool.replace)
        finally:
            self._file.close()
            with suppress(OSError):
                self._spool.unlink(missing_ok=True)


def _json(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)


class AnnotatedVideos:
    """Writes frames into a video for each that they come from, one after another: videos/NAME.mp4.

    A video has its final name only when it is complete and can be read. What goes on for ever is cut into hours.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._taken = folder, set[str]()
        self._video: Video | None = None  # that is being written
        self._writer, self._fps, self._next, self._num_written = cv2.VideoWriter(), 0.0, 0, 0
        self._path = self._temporary = folder
        self._size_wh = 0, 0
        try:
            str(folder.absolute()).encode()
        except UnicodeEncodeError:  # on which OpenCV crashes
            raise InputError(f"{folder}: the name of a folder for videos has to be UTF-8 text") from None

    def add(self, frame: Frame, drawn: UInt8[NDArray[np.uint8], "H W 3"]) -> str:
        """Write a frame as drawn, RGB; returns the name of the video it went into."""
        assert frame.video is not None
        if self._video != frame.video or (frame.video.is_live and self._num_written >= _LONGEST_LIVE_S * self._fps):
            self.finish()
            self._begin(frame.video, frame.number, drawn.shape)
        is_time_to_look = self._num_written % _FRAMES_BETWEEN_LOOKS == 0
        if is_time_to_look and shutil.disk_usage(self._folder).free < _LEAST_FREE_BYTES:
            raise StorageError(f"{self._path}: the disk is full. Free some space or choose another folder with --out")
        down, right = self._size_wh[1] - drawn.shape[0], self._size_wh[0] - drawn.shape[1]
        if down in (0, 1) and right in (0, 1):
            fitted = cv2.copyMakeBorder(drawn, 0, down, 0, right, cv2.BORDER_REPLICATE)
        else:  # a stream may change its size, a video may not
            fitted = cv2.resize(drawn, self._size_wh, interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR)
        # For frames of a camera that were left out, so that the video keeps time; a second at most, or a slow disk
        # would fall behind for good.
        missed = max(frame.number - self._next, 0) // frame.video.every
        for _ in range(1 + min(missed, round(self._fps))):
            self._writer.write(bgr)
            self._num_written += 1
        self._next = frame.number + frame.video.every
        return self._path.name

    def _begin(self, video: Video, number: int, shape: tuple[int, ...]) -> None:
        """Open the file of a video, whose first frame has this number and shape."""
        name = unused(file_name(Path(video.name).stem or "video"), self._taken)
        self._fps, self._next, self._num_written = video.fps / video.every, number, 0
        # These codecs halve the sides of the colours; OpenCV would cut off the odd row or column.
        self._size_wh = shape[1] + shape[1] % 2, shape[0] + shape[0] % 2
        hush()
        for suffix, codec in _CODECS:
            self._path = self._folder / f"{name}{suffix}"
            self._temporary = self._folder / f".{name}.{os.getpid()}.tmp{suffix}"
            place, code = str(self._temporary.absolute()), cv2.VideoWriter.fourcc(*codec)
            self._writer = cv2.VideoWriter(place, cv2.CAP_FFMPEG, code, self._fps, self._size_wh)
            if self._writer.isOpened():
                self._video = video
                return
            self._temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{self._path}: no video can be written there. Check the disk, or leave it out: --without video"
        )

    def finish(self) -> None:
        """Complete the video that is being written, if there is one.

        StorageError unless it has the frames that were written, of which the first and the last can be read.
        """
        if self._video is None:
            return
        self._video = None
        self._writer.release()
        capture = cv2.VideoCapture(str(self._temporary.absolute()), cv2.CAP_FFMPEG)
        asked = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
        is_whole = [*map(capture.get, asked)] == [*self._size_wh, self._num_written] and capture.read()[0]
        if is_whole and self._num_written > 1:  # OpenCV finds the way back to no frame but a later one
            capture.set(cv2.CAP_PROP_POS_FRAMES, self._num_written - 1)
            is_whole = capture.read()[0]
        capture.release()
        try:
            if not is_whole:
                raise StorageError(
                    f"{self._path}: could not be written whole; is the disk full? "
                    "Free some space or choose another folder with --out"
                )
            write_atomically(self._path, self._temporary.replace)
        finally:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def write_image(path: Path, image: UInt8[NDArray[np.uint8], "H W 3"]) -> None:
    """Write an RGB image in the format that the suffix says; StorageError when the disk refuses."""
    # Encoded in memory: OpenCV's own writing neither reports a full disk nor takes every file name.
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []  # it warns of any other's
    ok, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    assert ok, path
    write_bytes_atomically(path, encoded.tobytes())


def pixels_of(box_xyxy: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels that a box touches within an image: at least one, the last ones left out."""
    left, top, right, bottom = box_xyxy
    x0, y0 = min(max(math.floor(left), 0), width - 1), min(max(math.floor(top), 0), height - 1)
    return x0, y0, min(max(math.ceil(right), x0 + 1), width), min(max(math.ceil(bottom), y0 + 1), height)


def yolo_lines(detections: Detections) -> str:
    """One line a detection: class cx cy w h score, the box normalised to 0..1 of the image."""
    height, width = detections.image_size
    boxes_px = xyxy_to_cxcywh(detections.boxes_xyxy.double())
    boxes = boxes_px / boxes_px.new_tensor([width, height, width, height])
    rows = zip(detections.class_ids.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True)
    return "".join(
        f"{class_id} {' '.join(f'{value:.6f}' for value in (*box, score))}\n" for class_id, box, score in rows
    )


class PredictionWriter:
    """Writes the detections of one image after another; what is one file is complete when the `with` block ends.

    However it ends: what was written until then is whole. save: which kinds of results. Raises InputError when the
    folder holds something already, StorageError when the disk or a permission refuses.
    """

    def __init__(self, folder: StrPath, class_names: Iterable[str], save: Save | None = None) -> None:
        self.folder = folder = Path(folder)
        self.save = save or Save.usual()
        names, kinds = tuple(class_names), self.save.of_images | self.save.of_frames
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder}: there is something here already, and nothing is ever overwritten; "
                "name a new or an empty folder"
            )
        make_folder(folder)
        self._taken, self._num_images = set[str](), 0
        self._video_name: tuple[Video, str] | None = None
        self._unreadable: list[str] = []
        self._videos = AnnotatedVideos(folder / "videos") if "video" in kinds else None
        self._class_folders = folder_names(names)
        self._lines = GrowingFile(folder / "detections.jsonl") if "jsonl" in kinds else None
        head = {"format_version": _FORMAT_VERSION, "class_names": names}
        self._document = JsonDocument(folder / "detections.json", "images", head) if "json" in kinds else None
        self._coco_results = JsonDocument(folder / "coco-results.json") if "coco" in kinds else None
        self._coco_images = JsonDocument(folder / "coco-images.json", "images") if "coco" in kinds else None
        self._categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def add(self, result: FrameResult) -> None:
        """Write the results of one image or frame."""
        entry = result.to_dict() | self._write_files(result)
        if self._document is not None:
            self._document.add(entry)
        if self._lines is not None:
            self._lines.append(_json(entry, indent=None) + "\n")
        if self._coco_images is None or self._coco_results is None:
            return
        self._num_images += 1
        frame, (height, width) = result.frame, result.detections.image_size
        name = frame.name if frame.video is None else f"{frame.video.name}-frame-{frame.number:06d}"
        self._coco_images.add({"id": self._num_images, "file_name": name, "width": width, "height": height})
        for found in result.detections:
            x0, y0, x1, y1 = found.box_xyxy
            box_xywh = [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)]
            place = {"image_id": self._num_images, "category_id": found.class_id + 1, "bbox": box_xywh}
            self._coco_results.add(place | {"score": round(found.score, 6)})

    def add_unreadable(self, error: AnchoriteError) -> None:
        """Note an image that could not be read; fits `on_unreadable` of `Predictor.stream`."""
        if self._document is not None:
            self._unreadable.append(str(error))
        if self._lines is not None:
            self._lines.append(_json({"unreadable": str(error)}, indent=None) + "\n")

    def finish(self) -> None:
        """Complete all files with what there is so far; if one fails, the others are completed all the same."""
        with HeldInterrupts(), ExitStack() as stack:
            if self._document is not None:
                stack.callback(self._document.finish, {"unreadable": self._unreadable})
            if self._coco_images is not None and self._coco_results is not None:
                stack.callback(self._coco_images.finish, {"annotations": [], "categories": self._categories})
                stack.callback(self._coco_results.finish)
            if self._lines is not None:
                stack.callback(self._lines.close)
            if self._videos is not None:
                stack.callback(self._videos.finish)

    def _write_files(self, result: FrameResult) -> dict[str, str]:
        """Write what is a file of its own for each image, and frames of videos; the paths below the folder."""
        frame, image, detections = result.frame, result.image, result.detections
        kinds = (self.save.of_images - {"video"} if frame.video is None else self.save.of_frames) & _FOLDERS.keys()
        for kind in kinds:  # not before: where there is no video there is no folder for one
            make_folder(self.folder / _FOLDERS[kind])
        name, is_named = "", bool(kinds - {"video"})
        if is_named and frame.video is None:
            name = unused(file_name(Path(frame.name or "image").stem), self._taken)
        elif is_named and frame.video is not None:  # they share its name, so that none has to be remembered for each
            if self._video_name is None or self._video_name[0] != frame.video:
                self._video_name = (frame.video, unused(file_name(Path(frame.video.name).stem), self._taken))
            name = f"{self._video_name[1]}-frame-{frame.number:06d}"
        drawn = draw(image, detections) if kinds & {"images", "video"} else image
        paths: dict[str, str] = {}
        if "images" in kinds:
            is_png = frame.video is None and Path(frame.name).suffix.lower() == ".png"
            as_png = is_png or max(image.shape) > _LONGEST_JPEG_SIDE
            paths["annotated"] = f"images/{name}{'.png' if as_png else '.jpg'}"
            write_image(self.folder / paths["annotated"], drawn)
        if "video" in kinds and self._videos is not None:
            paths["video"] = f"videos/{self._videos.add(frame, drawn)}"
        if "txt" in kinds:
            paths["labels"] = f"labels/{name}.txt"
            write_text_atomically(self.folder / paths["labels"], yolo_lines(detections))
        if "crops" in kinds:
            for number, found in enumerate(detections, 1):
                folder = self.folder / "crops" / self._class_folders[found.class_id]
                make_folder(folder)
                x0, y0, x1, y1 = pixels_of(found.box_xyxy, *detections.image_size)
                write_image(folder / f"{name}-{number}.png", image[y0:y1, x0:x1])
        return paths
