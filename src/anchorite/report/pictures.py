"""Pictures as data URIs, so that a page stays one file; large ones are made smaller to keep it light."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anchorite.jpeg import encode_jpeg, shrunk

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_MAX_FILE_BYTES = 20_000_000
_MAX_RAW_BYTES = 120_000
_MAX_SIDE_PX = 720
_JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Picture:
    """name: the file's name. uri: its content as a data URI, safe to put into a page."""

    name: str
    uri: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures in order, and the names of files that were left out, each with the reason."""

    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """What the pictures add to the page."""
        return sum(len(picture.uri) for picture in self.pictures)


def make_gallery(paths: Sequence[Path], max_pictures: int, max_bytes: int) -> Gallery:
    """Embed PNG and JPEG files in the given order until number or bytes run out; others are left out with a reason."""
    pictures: list[Picture] = []
    left_out: list[str] = []
    num_bytes = 0
    for path in paths:
        if len(pictures) == max_pictures:
            left_out.append(f"{path.name} (only {max_pictures} are shown)")
            continue
        uri = _uri_of(path)
        if uri is None:
            left_out.append(f"{path.name} (not a readable PNG or JPEG)")
        elif num_bytes + len(uri) > max_bytes:
            left_out.append(f"{path.name} (the page would grow too large)")
        else:
            pictures.append(Picture(path.name, uri))
            num_bytes += len(uri)
    return Gallery(tuple(pictures), tuple(left_out))


def data_uri(kind: str, content: bytes) -> str:
    """The content of an image file as a data URI; kind: "jpeg" or "png"."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def _uri_of(path: Path) -> str | None:
    """The file as a data URI, unchanged if it is small, else decoded and made smaller; None where that fails."""
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_FILE_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    kind = next((kind for signature, kind in _SIGNATURES.items() if content.startswith(signature)), None)
    if kind is None:
        return None
    if len(content) > _MAX_RAW_BYTES:
        smaller = _smaller(content)
        if smaller is None:
            return None
        kind, content = "jpeg", smaller
    return data_uri(kind, content)


def _smaller(content: bytes) -> bytes | None:
    """The picture as a JPEG whose longer side is at most 720 pixels."""
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            return None
        return encode_jpeg(shrunk(np.asarray(image, np.uint8), _MAX_SIDE_PX), _JPEG_QUALITY)
    except cv2.error:
        return None
