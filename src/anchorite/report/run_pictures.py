"""Pictures of what a run's best weights find, for its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anchorite.data import Record
from anchorite.errors import StorageError
from anchorite.files import write_bytes_atomically
from anchorite.jpeg import encode_jpeg, shrunk
from anchorite.predict import Predictor, draw

_MAX_PICTURES = 12
_MAX_SIDE_PX = 1280
_JPEG_QUALITY = 90
_LONGEST_STEM = 50  # letters, each of up to four bytes


def save_predictions(folder: Path, predictor: Predictor, records: Sequence[Record]) -> list[Path]:
    """Draw what the predictor finds in up to 12 of the images, evenly spread over them, as NN-NAME.jpg into a folder.

    Boxes are drawn at full size, large pictures then made smaller. Raises StorageError when the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}") from error
    chosen = np.linspace(0, len(records) - 1, min(_MAX_PICTURES, len(records))).round().astype(int)
    sources = [records[index].path for index in chosen.tolist()]
    paths = []
    for number, (image, detections) in enumerate(predictor.stream(sources), 1):
        path = folder / f"{number:02d}-{_plain(Path(detections.source).stem)}.jpg"
        write_bytes_atomically(path, encode_jpeg(shrunk(draw(image, detections), _MAX_SIDE_PX), _JPEG_QUALITY))
        paths.append(path)
    return paths


def _plain(stem: str) -> str:
    """A file name's stem in letters that every file system takes, and not too long."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)[:_LONGEST_STEM]
