"""Detections as results of COCO, with the images and categories that their numbers mean.

    coco-results.json    [{image_id, category_id, bbox: [x, y, width, height], score}, ...]
    coco-images.json     {images: [{id, file_name, width, height}, ...], annotations: [], categories: [{id, name}, ...]}

Images and categories count from 1: category 1 is class 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anchorite.boxes import Detections
from anchorite.predict.output.json_files import JsonDocument


class CocoFiles:
    """Writes both files as results come, and moves them to their places at the end."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._categories = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
        self._num_images = 0
        self._results = JsonDocument(folder / "coco-results.json")
        self._images = JsonDocument(folder / "coco-images.json", "images")

    def add(self, file_name: str, detections: Detections) -> None:
        """Write one image and what was found in it."""
        self._num_images += 1
        height, width = detections.image_size
        self._images.add({"id": self._num_images, "file_name": file_name, "width": width, "height": height})
        for found in detections:
            x0, y0, x1, y1 = found.box_xyxy
            self._results.add(
                {
                    "image_id": self._num_images,
                    "category_id": found.class_id + 1,
                    "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(found.score, 6),
                }
            )

    def finish(self) -> None:
        """Both files in their places."""
        try:
            self._results.finish()
        finally:
            self._images.finish({"annotations": [], "categories": self._categories})
