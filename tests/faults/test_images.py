"""Images that are damaged, dangerous or odd: named, or decoded alike everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anchorite.cli import run
from anchorite.data import DatasetIndex, ImageStore, decode_image, letterboxed_batches, open_dataset
from anchorite.data.headers import MAX_FILE_BYTES, read_header
from anchorite.errors import InputError
from anchorite.predict.frames import read_frame
from tests.cli.commands import data_folder, quick_recipe, weights
from tests.data.format_samples import write_image, write_text
from tests.data.test_decode import KINDS, PICTURE, as_pillow_sees, encoded, worst_difference
from tests.faults.watch import unchanged
from tests.processes import ForkedProcess

WIDTH, HEIGHT = 64, 48
UPRIGHT = PICTURE.resize((WIDTH, HEIGHT))
# How an upright picture must be stored for each orientation to show it upright again.
UNTURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def one_bit_png(side: int) -> bytes:
    """A whole black PNG of one bit a pixel: side 30 000 makes 110 kB, and 2.7 GB once it is decoded to RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned(picture: Image.Image, orientation: int) -> bytes:
    """The picture as a PNG that is stored turned and says so."""
    stored = picture.transpose(UNTURN[orientation]) if orientation in UNTURN else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "PNG", exif=exif.tobytes())


PHOTO = encoded(PICTURE.resize((320, 240)), "JPEG")
BAD_IMAGES = {
    "truncated JPEG": (PHOTO[: len(PHOTO) // 2], "truncated"),
    "truncated JPEG with an end marker": (PHOTO[:-200] + b"\xff\xd9", "truncated"),
    "truncated PNG": (encoded(PICTURE, "PNG")[:-400], "truncated"),
    "zero bytes": (b"", "empty"),
    "text": (b"no image\n" * 40, "not a JPEG"),
    "bomb": (one_bit_png(30_000), "more than the limit of 200 million"),
}


def data_with(folder: Path, split: str, content: bytes) -> tuple[Path, Path]:
    """A copy of the scenes with one image of a split replaced; the folder and that image."""
    data = Path(shutil.copytree(data_folder(), folder / "data"))
    image = sorted((data / "images" / split).iterdir())[1]
    image.write_bytes(content)
    return data, image


def failing(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says that must fail as a mistake in its input."""
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize(("content", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_named_by_every_command(
    content: bytes, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, image = data_with(tmp_path / "a", "train", content)
    with unchanged(data):
        message = failing(capsys, "train", data, "--recipe", quick_recipe(), "--out", tmp_path / "run")
        assert f"{image}: " in message
        assert reason in message
        assert not (tmp_path / "run").exists()
    with unchanged(data):
        assert run(["inspect", str(data)]) == 2
        shown = "".join(capsys.readouterr())
        assert image.name in shown
        assert "Traceback" not in shown
    data, image = data_with(tmp_path / "b", "val", content)
    with unchanged(data):
        message = failing(capsys, "validate", weights(), data)
        assert f"{image}: " in message
        assert reason in message
        message = failing(capsys, "predict", weights(), image.parent, "--out", tmp_path / "found")
        assert f"anchorite: {image}: " in message
        assert reason in message
        assert "1 of 4 images could not be read" in message
    found = json.loads((tmp_path / "found" / "detections.json").read_text(encoding="utf-8"))
    assert len(found["images"]) == 3
    assert len(found["unreadable"]) == 1


ODD_IMAGES: dict[str, bytes] = {
    **{name: encoded(UPRIGHT.convert(mode), kind, **options) for name, (mode, kind, options, _) in KINDS.items()},
    **{f"orientation {number}": turned(UPRIGHT, number) for number in range(1, 9)},
    "16 bits": cv2.imencode(".png", np.asarray(UPRIGHT)[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "16 bits grey": cv2.imencode(".tiff", np.asarray(UPRIGHT.convert("L")).astype(np.uint16) * 257)[1].tobytes(),
}


@pytest.mark.parametrize("content", ODD_IMAGES.values(), ids=ODD_IMAGES.keys())
def test_an_odd_image_is_the_same_to_training_validation_and_prediction(content: bytes, tmp_path: Path) -> None:
    index = one_image_dataset(tmp_path, content)
    (record,) = index.splits["train"]
    assert (record.width, record.height) == (WIDTH, HEIGHT)
    expected = decode_image(record.path)
    is_deep = content in (ODD_IMAGES["16 bits"], ODD_IMAGES["16 bits grey"])  # which Pillow does not scale
    grey = expected[..., :1].repeat(3, 2)
    shown = UPRIGHT if not np.array_equal(expected, grey) else UPRIGHT.convert("L").convert("RGB")
    assert worst_difference(expected, np.asarray(shown) if is_deep else as_pillow_sees(content)) <= 2
    for mode in ("ram", "none"):
        images = ImageStore([record], WIDTH, mode)  # type: ignore[arg-type]
        images.build()
        assert np.array_equal(images.image(0), expected)
    (batch,) = letterboxed_batches([record], WIDTH, 1)
    (left, top), canvas = batch.transforms[0].pad_left_top, batch.images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(canvas[int(top) : int(top) + HEIGHT, int(left) : int(left) + WIDTH], expected)
    assert np.array_equal(read_frame(record.path).image, expected)


def one_image_dataset(folder: Path, content: bytes) -> DatasetIndex:
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(content)  # whatever it is: the content decides
    (folder / "data.yaml").write_text("train: images\nnames: [cat]\n")
    return open_dataset(folder)


@pytest.mark.slow
def test_all_orientations_give_the_same_weights_scores_and_boxes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = []
    for name, is_turned in (("upright", False), ("turned", True)):
        data = Path(shutil.copytree(data_folder(), tmp_path / name / "data"))
        for number, image in enumerate(sorted((data / "images").rglob("*.jpg"))):
            picture = Image.fromarray(decode_image(image))
            image.with_suffix(".png").write_bytes(turned(picture, 1 + number % 8 if is_turned else 1))
            image.unlink()
        out = tmp_path / name / "run"
        assert run(["train", str(data), "--recipe", quick_recipe(), "--epochs", "1", "--out", str(out)]) == 0
        capsys.readouterr()
        assert run(["validate", weights(), str(data), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        found = tmp_path / name / "found"
        words = ["predict", weights(), str(data / "images" / "train"), "--confidence", "0.0001", "--out", str(found)]
        assert run([*words, "--without", "images", "--max-detections", "20"]) == 0
        boxes = [entry["detections"] for entry in json.loads((found / "detections.json").read_text())["images"]]
        digest = hashlib.sha256((out / "best.safetensors").read_bytes()).hexdigest()
        results.append((digest, {key: value for key, value in scores.items() if "speed" not in key}, boxes))
    (digest, scores, boxes), (turned_digest, turned_scores, turned_boxes) = results
    assert len(boxes) == 10
    assert all(boxes)
    assert turned_digest == digest
    assert turned_boxes == boxes
    assert {key for key in scores if turned_scores[key] != scores[key]} <= {"images_per_second", "seconds"}


@pytest.mark.slow
def test_a_bomb_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    bomb = one_bit_png(30_000)
    assert len(bomb) < 120_000
    data, image = data_with(tmp_path, "val", bomb)
    commands = [
        ["train", data, "--out", tmp_path / "run"],
        ["validate", weights(), data],
        ["predict", weights(), image, "--out", tmp_path / "found"],
    ]
    process = ForkedProcess("tests.faults.watch:measure", [[str(word) for word in words] for words in commands])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert errors.count(f"{image}: ") == len(commands)
    for code, processor_seconds, megabytes in json.loads(output.splitlines()[-1]):
        assert code == 2
        assert processor_seconds < 1.5
        assert megabytes < 100


def test_skip_bad_leaves_a_bomb_out(tmp_path: Path) -> None:
    data, image = data_with(tmp_path, "train", one_bit_png(30_000))
    index = open_dataset(data, skip_bad=True)
    assert len(index.splits["train"]) == 9
    assert [adjustment.origin for adjustment in index.adjustments] == [str(image)]


def test_a_pipe_or_a_device_in_the_place_of_an_image_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images" / "pipe.png")
    write_text(tmp_path / "data.yaml", "train: list.txt\nnames: [cat]\n")
    write_text(tmp_path / "list.txt", "images/pipe.png\n")
    with pytest.raises(InputError, match=r"pipe\.png: not a regular file"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"pipe\.png: not a regular file"):
        decode_image(tmp_path / "images" / "pipe.png")
    with pytest.raises(InputError, match="/dev/zero: not a regular file"):
        decode_image("/dev/zero")


def test_a_file_of_holes_is_not_read(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    os.truncate(path, MAX_FILE_BYTES + 1)
    for read in (read_header, decode_image):
        with pytest.raises(InputError, match=r"a\.png: 2000 MB, more than"):
            read(path)


def test_a_header_of_filling_bytes_ends(tmp_path: Path) -> None:
    for name, content in (("a.jpg", b"\xff" * 2_000_000), ("b.jpg", b"\xff\xe0\0\2" * 500_000)):
        path = write_text(tmp_path / name, b"\xff\xd8" + content)
        started = time.perf_counter()
        with pytest.raises(InputError, match=f"{name}: a "):
            read_header(path)
        assert time.perf_counter() - started < 1


def tiff_that_says(widths: list[tuple[int, int]], height: int = 10) -> bytes:
    """A TIFF directory with (kind, value) for each width it states."""
    tags = [(256, kind, width) for kind, width in widths] + [(257, 3, height)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("widths", [[(3, 10), (3, 60_000)], [(4, 60_000), (3, 10)], [(1, 200), (3, 10)], [(16, 10)]])
def test_a_tiff_that_states_two_widths_is_refused(widths: list[tuple[int, int]], tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tif", tiff_that_says(widths))
    with pytest.raises(InputError, match=r"a\.tif: a TIFF without width or height, or with two of them"):
        read_header(path)
    assert read_header(write_text(tmp_path / "b.tif", tiff_that_says([(3, 10)]))).width == 10
