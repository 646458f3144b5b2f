"""Sizes read from headers agree with what the files were made with, and with OpenCV's own reading."""

from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import pytest
from PIL import Image

from anchorite.data.headers import parse_header, read_header
from anchorite.errors import InputError
from tests.data.format_samples import write_image, write_text
from tests.shared import shared_path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".JPEG"])
def test_the_size_of_each_kind(tmp_path: Path, suffix: str) -> None:
    header = read_header(write_image(tmp_path / f"a{suffix}", 37, 21))
    assert (header.width, header.height, header.orientation) == (37, 21, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_bytes_give_the_same_header_and_a_part_of_it_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a{suffix}", 37, 21)
    data = path.read_bytes()
    assert parse_header(io.BytesIO(data)) == read_header(path)
    with pytest.raises(InputError, match="cut short"):
        parse_header(io.BytesIO(data[:16]))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_displayed_size_follows_the_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    header = read_header(write_image(tmp_path / f"a{suffix}", 37, 21, orientation))
    assert header.orientation == orientation
    assert (header.stored_width, header.stored_height) == (37, 21)
    assert (header.width, header.height) == ((37, 21) if orientation < 5 else (21, 37))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lossless.webp", {"lossless": True}),
        ("progressive.jpg", {"progressive": True}),
        ("profile.jpg", {"icc_profile": bytes(200_000)}),
        ("comment.jpg", {"comment": b"\xff\xc0" * 100}),
    ],
)
def test_variants_of_encoding(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / name, **options)
    header = read_header(tmp_path / name)
    assert (header.width, header.height) == (300, 200)


def test_a_bmp_stored_from_the_top(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.bmp", 37, 21)
    data = path.read_bytes()
    path.write_bytes(data[:22] + (-21).to_bytes(4, "little", signed=True) + data[26:])
    assert (read_header(path).width, read_header(path).height) == (37, 21)


def test_a_big_endian_exif_block(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", 37, 21)
    tiff = b"MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)
    payload = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + data[2:])
    assert (read_header(path).width, read_header(path).height) == (21, 37)


@pytest.mark.parametrize(
    "tiff", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + bytes(20), b"no"]
)
def test_a_damaged_exif_block_counts_as_upright(tmp_path: Path, tiff: bytes) -> None:
    path = write_image(tmp_path / "a.jpg", 37, 21)
    payload = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + data[2:])
    assert (read_header(path).width, read_header(path).height) == (37, 21)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_every_cut_is_an_input_error_or_the_right_size(tmp_path: Path, suffix: str) -> None:
    data = write_image(tmp_path / f"a{suffix}", 37, 21, 1 if suffix != ".bmp" else None).read_bytes()
    for length in [*range(min(len(data), 300)), *range(300, len(data), 101)]:
        path = write_text(tmp_path / "cut.png", data[:length])
        try:
            header = read_header(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            assert (header.width, header.height) == (37, 21)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello, I am a text", "not a JPEG"), (b"GIF89a" + bytes(40), "not a JPEG")],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_header(write_text(tmp_path / "a.jpg", content))


def test_a_missing_image_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: the image does not exist"):
        read_header(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path)


def test_real_photos_agree_with_opencv_and_cost_little() -> None:
    paths = sorted(shared_path("datasets/cards").glob("images/*/*"))
    start = time.perf_counter()
    headers = [read_header(path) for path in paths]
    assert time.perf_counter() - start < 1.0
    for path, header in list(zip(paths, headers, strict=True))[::20]:
        image = cv2.imread(str(path))
        assert image is not None
        assert image.shape[:2] == (header.height, header.width)
    assert len(paths) == 363
