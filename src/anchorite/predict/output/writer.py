"""Results written to a folder.

    FOLDER/images/NAME.jpg     images: the image with its boxes drawn in (NAME.png for a PNG)
    FOLDER/videos/NAME.mp4     video: a video with the boxes drawn in
    FOLDER/labels/NAME.txt     txt: class cx cy w h score, a line each, normalised to 0..1
    FOLDER/crops/CLASS/...png  crops: what lies inside each box
    FOLDER/detections.json     json: everything, in pixels
    FOLDER/detections.jsonl    jsonl: the same, a line an image or frame, there as soon as it is found
    FOLDER/coco-*.json         coco: results, and the images and categories that their numbers mean

NAME is the stem of the source, and NAME-frame-000123 for the frame of a video. Of several sources of one name, the
later ones are called NAME-2, NAME-3; the JSON says which is which. The folder must be new or empty, so nothing is ever
overwritten, least of all an input.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from anchorite.boxes import Detections, xyxy_to_cxcywh
from anchorite.errors import AnchoriteError
from anchorite.files import write_text_atomically
from anchorite.interrupts import HeldInterrupts
from anchorite.predict.drawing import draw
from anchorite.predict.output.coco_files import CocoFiles
from anchorite.predict.output.json_files import JsonDocument, JsonLines, rounded
from anchorite.predict.output.kinds import Kind, Save
from anchorite.predict.output.names import Names, file_name, make_empty, make_part
from anchorite.predict.output.pictures import Crops, suffix_for, write_image
from anchorite.predict.output.videos import AnnotatedVideos
from anchorite.predict.sources import Frame, Video, entry_of

_FORMAT_VERSION = 1
_FOLDERS: dict[Kind, str] = {"images": "images", "txt": "labels", "crops": "crops", "video": "videos"}


class PredictionWriter:
    """Writes the detections of one image after another; what is one file is complete when the `with` block ends.

    However it ends: what was written until then is whole. save: which kinds of results. Raises InputError when the
    folder holds something already, StorageError when the disk or a permission refuses.
    """

    def __init__(self, folder: Path, class_names: Iterable[str], save: Save | None = None) -> None:
        self.folder, self.save = folder, save or Save.usual()
        names, kinds = tuple(class_names), self.save.kinds
        make_empty(folder)
        self._names = Names()
        self._video_names: tuple[Video, str] | None = None
        self._unreadable: list[str] = []
        self._videos = AnnotatedVideos(folder / "videos") if "video" in kinds else None
        self._crops = Crops(folder / "crops", names) if "crops" in kinds else None
        self._lines = JsonLines(folder / "detections.jsonl") if "jsonl" in kinds else None
        head = {"format_version": _FORMAT_VERSION, "class_names": names}
        self._document = JsonDocument(folder / "detections.json", "images", head) if "json" in kinds else None
        self._coco = CocoFiles(folder, names) if "coco" in kinds else None

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def add(self, image: UInt8[NDArray[np.uint8], "H W 3"], detections: Detections, frame: Frame | None = None) -> None:
        """Write one image's results; image: (H, W, 3) uint8 RGB, the frame of the boxes; frame: where it is one."""
        is_frame = frame is not None and frame.video is not None
        kinds = self.save.of(is_frame)
        entry = rounded(entry_of(detections, frame))
        entry.update(self._write_files(image, detections, frame if is_frame else None, kinds))
        if self._document is not None:
            self._document.add(entry)
        if self._coco is not None:
            self._coco.add(_coco_name(detections, frame), detections)
        if self._lines is not None:
            self._lines.add(entry)

    def add_unreadable(self, error: AnchoriteError) -> None:
        """Note an image that could not be read; fits `on_unreadable` of `Predictor.stream`."""
        if self._document is not None:
            self._unreadable.append(str(error))
        if self._lines is not None:
            self._lines.add({"unreadable": str(error)})

    def finish(self) -> None:
        """Complete all files with what there is so far; if one fails, the others are completed all the same."""
        with HeldInterrupts(), ExitStack() as stack:
            if self._document is not None:
                stack.callback(self._document.finish, {"unreadable": self._unreadable})
            for part in (self._coco, self._lines, self._videos):
                if part is not None:
                    stack.callback(part.finish)

    def _write_files(
        self,
        image: NDArray[np.uint8],
        detections: Detections,
        frame: Frame | None,
        kinds: frozenset[Kind],
    ) -> dict[str, Any]:
        """What is a file of its own for each image, and frames of videos; returns where it is."""
        places: dict[str, Any] = {}
        if not kinds & _FOLDERS.keys():
            return places
        for kind in kinds & _FOLDERS.keys():  # not before: where there is no video no folder is to promise one
            make_part(self.folder / _FOLDERS[kind])
        name = self._name_of(detections, frame) if kinds & {"images", "txt", "crops"} else ""
        drawn = draw(image, detections) if kinds & {"images", "video"} else image
        if "images" in kinds:
            places["annotated"] = f"images/{name}{suffix_for(image, '' if frame else detections.source)}"
            write_image(self.folder / places["annotated"], drawn)
        if self._videos is not None and frame is not None:
            places["video"] = f"videos/{self._videos.add(frame, drawn)}"
        if "txt" in kinds:
            places["labels"] = f"labels/{name}.txt"
            write_text_atomically(self.folder / places["labels"], yolo_lines(detections))
        if self._crops is not None:
            self._crops.add(name, image, detections)
        return places

    def _name_of(self, detections: Detections, frame: Frame | None) -> str:
        """A name of its own; frames share that of their video, so that none has to be remembered for each."""
        if frame is None or frame.video is None:
            return self._names.unused(file_name(Path(detections.source or "image").stem))
        if self._video_names is None or self._video_names[0] != frame.video:
            self._video_names = (frame.video, self._names.unused(file_name(Path(frame.video.name).stem)))
        return f"{self._video_names[1]}-frame-{frame.number:06d}"


def yolo_lines(detections: Detections) -> str:
    """One line a detection: class cx cy w h score, the box normalised to 0..1 of the image."""
    height, width = detections.image_size
    boxes_px = xyxy_to_cxcywh(detections.boxes_xyxy.double())
    boxes = boxes_px / boxes_px.new_tensor([width, height, width, height])
    rows = zip(detections.class_ids.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True)
    return "".join(
        f"{class_id} {' '.join(f'{value:.6f}' for value in (*box, score))}\n" for class_id, box, score in rows
    )


def _coco_name(detections: Detections, frame: Frame | None) -> str:
    if frame is None or frame.video is None:
        return detections.source
    return f"{frame.video.name}-frame-{frame.number:06d}"
