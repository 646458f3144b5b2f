"""The image of a record, decoded and resized, as stores and streams hold it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anchorite.data.decode import decode_image
from anchorite.data.letterbox import resized
from anchorite.data.records import Record
from anchorite.errors import InputError


class ChangedImageError(InputError):
    """An image is not of the size that it had when the dataset was read."""


def decode_resized(record: Record, size_hw: tuple[int, int], data: bytes | None = None) -> NDArray[np.uint8]:
    """The image of a record at a (height, width); data: its file's bytes, read where they are not at hand.

    Raises what `decode_image` raises, and ChangedImageError when the image has another size than its record.
    """
    image = decode_image(record.path if data is None else data, name=str(record.path))
    if image.shape[:2] != (record.height, record.width):
        raise ChangedImageError(
            f"{record.path}: is {image.shape[1]}x{image.shape[0]} pixels but was {record.width}x{record.height} "
            "when the dataset was read. Start again, so that the labels are read anew"
        )
    return resized(image, size_hw)
