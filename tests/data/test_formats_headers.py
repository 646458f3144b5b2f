"""Sizes read from headers agree with what the files were made with, and with OpenCV's own reading."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import cv2
import pytest
from PIL import Image

from anchorite.data.headers import parse_header, read_header
from anchorite.errors import InputError
from tests.data.format_samples import write_image, write_text
from tests.shared import shared_path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".JPEG", ".jfif", ".jpe"])
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
    [
        (b"", "empty"),
        (b"hello, I am a text", "not a JPEG"),
        (b"GIF89a" + bytes(40), "a GIF image, which is not read; convert it"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, which is not read; convert it"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image, which is not read; convert it"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "an AVIF image, .*Pillow"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f\x01\x90", "JPEG XL"),
        (b"II+\0\x08\0\0\0", "BigTIFF"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_header(write_text(tmp_path / "a.jpg", content))


def tiff(sample_format: int, bits: int, samples: bytes, channels: int = 1, order: str = "<", width: int = 4) -> bytes:
    """An uncompressed TIFF of a few pixels, as image-processing programs write it."""
    height = len(samples) // (width * channels * bits // 8)
    values = {256: width, 257: height, 259: 1, 262: 1 if channels == 1 else 2, 273: 8, 277: channels, 278: height}
    values |= {279: len(samples), 258: bits, 339: sample_format}
    entries, start = b"", 8 + len(samples)
    several = (
        struct.pack(order + f"{channels}H", *[bits] * channels),
        struct.pack(order + f"{channels}H", *[sample_format] * channels),
    )
    for tag, value in sorted(values.items()):
        count, field = 1, struct.pack(order + "I", value)
        if tag in (258, 339):
            count, field = channels, several[tag == 339].ljust(4, b"\0")
            if channels > 2:
                field = struct.pack(order + "I", start + (0 if tag == 258 else 2 * channels))
        kind = 3 if tag in (258, 339) else 4
        entries += struct.pack(order + "HHI", tag, kind, count) + field
    directory = start + sum(map(len, several))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory)
    return head + samples + b"".join(several) + struct.pack(order + "H", len(values)) + entries + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("sample_format", "bits", "channels", "reason"),
    [
        (3, 32, 1, "a TIFF of 32-bit float samples, which are not read"),
        (3, 32, 3, "a TIFF of 32-bit float samples"),
        (3, 64, 1, "64-bit float"),
        (1, 32, 1, "32-bit integer"),
        (1, 32, 3, "32-bit integer"),
        (2, 16, 1, "16-bit signed"),
    ],
)
def test_samples_of_an_unknown_range_are_named(
    sample_format: int, bits: int, channels: int, reason: str, order: str
) -> None:
    data = tiff(sample_format, bits, bytes(bits // 8 * channels * 8), channels, order)
    with pytest.raises(InputError, match=reason):
        parse_header(io.BytesIO(data))


def test_a_jpeg_of_twelve_bits_is_named(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.jpg", 37, 21).read_bytes()
    place = data.index(b"\xff\xc0") + 4
    with pytest.raises(InputError, match="12-bit samples in a JPEG"):
        parse_header(io.BytesIO(data[:place] + b"\x0c" + data[place + 1 :]))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("L", "RGB")),
        *((kind, mode) for kind in ("PNG", "TIFF") for mode in ("L", "RGB", "P", "LA", "RGBA", "I;16")),
    ],
)
def test_grey_and_sixteen_bits_are_told_from_the_header(kind: str, mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (9, 7)).save(stream, kind)
    stream.seek(0)
    header = parse_header(stream)
    assert header.is_grey == (mode in ("L", "LA", "I;16"))
    assert header.is_deep == (mode == "I;16")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_a_tiff_are_read_of_one_channel_or_three(channels: int, order: str) -> None:
    header = parse_header(io.BytesIO(tiff(1, 16, bytes(2 * channels * 8), channels, order)))
    assert (header.width, header.height, header.is_grey, header.is_deep) == (4, 2, channels == 1, True)


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
