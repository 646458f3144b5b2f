"""The decoder against Pillow, and against every kind of damage it must name."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from anchorite.data.headers import read_header
from anchorite.data.images import decode_image, is_grey, value_range
from anchorite.errors import AnchoriteError, InputError
from tests.shared import shared_path


def smooth_picture(width: int = 61, height: int = 43) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def as_pillow_sees(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def worst_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


PICTURE = smooth_picture()
KINDS: dict[str, tuple[str, str, dict[str, Any], int]] = {  # mode, kind, options, allowed difference
    "jpeg": ("RGB", "JPEG", {}, 1),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True}, 1),
    "jpeg grey": ("L", "JPEG", {}, 0),
    "jpeg grey progressive": ("L", "JPEG", {"progressive": True}, 0),
    "jpeg cmyk": ("CMYK", "JPEG", {"quality": 95}, 2),
    "jpeg restarts": ("RGB", "JPEG", {"restart_marker_blocks": 3}, 1),
    "png": ("RGB", "PNG", {}, 0),
    "png grey": ("L", "PNG", {}, 0),
    "png one bit": ("1", "PNG", {}, 0),
    "png palette": ("P", "PNG", {}, 0),
    "png palette with a transparent colour": ("P", "PNG", {"transparency": 3}, 0),
    "bmp": ("RGB", "BMP", {}, 0),
    "bmp palette": ("P", "BMP", {}, 0),
    "webp": ("RGB", "WEBP", {"lossless": True}, 0),
    "webp lossy": ("RGB", "WEBP", {}, 0),
    "tiff": ("RGB", "TIFF", {}, 0),
    "tiff lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}, 0),
    "tiff cmyk": ("CMYK", "TIFF", {}, 0),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_gives_the_pixels_that_pillow_gives(case: str, tmp_path: Path) -> None:
    mode, kind, options, tolerance = KINDS[case]
    data = encoded(PICTURE.convert(mode), kind, **options)
    (tmp_path / "picture").write_bytes(data)
    image = decode_image(tmp_path / "picture")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert worst_difference(image, as_pillow_sees(data)) <= tolerance
    assert np.array_equal(image, decode_image(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_once_and_agrees_with_the_header(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "picture"
    path.write_bytes(data)
    image = decode_image(path)
    assert worst_difference(image, as_pillow_sees(data)) <= 1
    assert (read_header(path).height, read_header(path).width) == image.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_is_applied(orientation: int) -> None:
    data = encoded(PICTURE, "TIFF", tiffinfo={0x0112: orientation})
    assert worst_difference(decode_image(data), as_pillow_sees(data)) == 0


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_high_eight(kind: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (20, 30, channels), dtype=np.uint16)
    data = cv2.imencode(kind, deep)[1].tobytes()
    expected = np.broadcast_to((deep >> 8)[..., ::-1], (20, 30, 3))
    assert worst_difference(decode_image(data), expected) <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_the_colours_under_it_kept(kind: str) -> None:
    see_through = PICTURE.copy()
    see_through.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (43, 61)).astype(np.uint8)))
    data = encoded(see_through, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert worst_difference(decode_image(data), np.asarray(PICTURE)) == 0


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.97])
def test_a_truncated_file_of_any_kind_is_named(case: str, fraction: float, tmp_path: Path) -> None:
    mode, kind, options, _ = KINDS[case]
    data = encoded(PICTURE.convert(mode).resize((320, 240)), kind, **options)
    path = tmp_path / "cut picture"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(InputError, match="cut picture"):
        decode_image(path)


@pytest.mark.parametrize("case", ["jpeg", "jpeg grey", "jpeg cmyk", "jpeg restarts"])
def test_a_jpeg_cut_and_closed_with_an_end_marker_is_named(case: str) -> None:
    mode, kind, options, _ = KINDS[case]
    data = encoded(PICTURE.convert(mode).resize((320, 240)), kind, **options)
    for num_missing in [*range(20, 120), 400, 1000]:
        with pytest.raises(InputError, match="truncated"):
            decode_image(data[: -2 - num_missing] + b"\xff\xd9", name="padded.jpg")


def test_a_progressive_jpeg_closed_before_its_last_scan_is_named() -> None:
    data = encoded(PICTURE.resize((320, 240)), "JPEG", progressive=True)
    last_scan = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))  # its Huffman table comes first
    with pytest.raises(InputError, match="truncated"):
        decode_image(data[:last_scan] + b"\xff\xd9")


def test_a_thumbnail_that_ends_does_not_stand_for_the_picture() -> None:
    exif = b"Exif\0\0" + encoded(PICTURE.resize((16, 16)), "JPEG")
    data = encoded(PICTURE.resize((320, 240)), "JPEG", exif=exif)
    decode_image(data)
    with pytest.raises(InputError, match="truncated"):
        decode_image(data[: len(data) // 2])


def test_bytes_after_the_end_of_a_jpeg_are_allowed() -> None:
    data = encoded(PICTURE, "JPEG")
    assert np.array_equal(decode_image(data + b"appended by a phone" * 9), decode_image(data))


def test_a_jpeg_whose_end_is_plain_grey_is_whole() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    assert (decode_image(encoded(grey, "JPEG")) == 128).all()


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"no image\n" * 40, "not a JPEG"), (b"\xff\xd8\xff", "cut short")]
)
def test_what_is_no_image_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"text\.jpg: .*{words}"):
        decode_image(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(InputError, match="no such image file"):
            decode_image(path)


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side * 3 + 1)) for _ in range(200)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_file_that_decodes_to_gigabytes_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bomb(40_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.png: 40000x40000 pixels .* nothing was decoded"):
        decode_image(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_the_size_limit_can_be_set() -> None:
    data = encoded(PICTURE, "PNG")
    assert decode_image(data, max_pixels=61 * 43).shape == (43, 61, 3)
    with pytest.raises(InputError, match="limit"):
        decode_image(data, max_pixels=61 * 43 - 1)


def test_damaged_bytes_give_an_image_or_a_message_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    for mode, kind, options, _ in KINDS.values():
        data = encoded(PICTURE.convert(mode), kind, **options)
        for _ in range(20):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 4):
                damaged[position] = int(rng.integers(256))
            with contextlib.suppress(AnchoriteError):
                assert decode_image(bytes(damaged)).shape[2] == 3


@pytest.mark.parametrize("dataset", ["bccd", "cards"])
def test_real_photos_decode_as_opencv_decodes_them(dataset: str) -> None:
    paths = sorted(path for path in shared_path(f"datasets/{dataset}").rglob("*") if path.suffix.lower() == ".jpg")
    assert len(paths) > 300
    for path in paths[::40]:
        assert np.array_equal(decode_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))


def test_float_samples_are_named_without_a_word_of_the_library(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).random((6, 8), np.float32)), "TIFF")
    with pytest.raises(InputError, match=r"grey\.tif: a TIFF of 32-bit float samples.*8-bit or 16-bit"):
        decode_image(data, name="grey.tif")
    assert capfd.readouterr() == ("", "")


def test_the_range_of_values_is_that_of_all_sixteen_bits(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(600, 3901, (20, 30), dtype=np.uint16)
    deep[0, :2] = 600, 3900
    for suffix in (".png", ".tif"):
        path = tmp_path / f"a{suffix}"
        cv2.imwrite(str(path), deep)
        assert value_range(path) == (600, 3900)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    assert value_range(tmp_path / "cut.png") is None
    assert value_range(tmp_path / "gone.png") is None


def test_grey_is_told_by_the_pixels() -> None:
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 30, 1), dtype=np.uint8), 3, axis=2)
    assert is_grey(grey)
    grey[8, 16, 1] ^= 1
    assert not is_grey(grey)
