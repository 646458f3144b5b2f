from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchorite.anchors import AnchorSet
from anchorite.errors import InputError, StorageError, UnsafeFileError
from anchorite.model import Detector, WeightsInfo, default_anchors, fold_batch_norm, load_weights, save_weights
from tests.model.oracle import randomise_norms

NAMES = ("Blutk\u00f6rperchen", "\u8840\u5c0f\u677f", "\U0001f9b4 <script>", 'quote " back \\ nul \x00', "lone \ud800")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Detector, WeightsInfo]:
    torch.manual_seed(0)
    anchors = AnchorSet.from_rows([[10.1, 13, 16, 30], [30, 61, 62.7, 45], [116, 90, 156, 198]], (8, 16, 32))
    detector = Detector("n", len(NAMES), anchors)
    randomise_norms(detector, seed=1)
    info = WeightsInfo("n", NAMES, anchors, 320)
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_weights(path, detector, info)
    return path, detector, info


def rewrite(source: Path, target: Path, change=None, **fields) -> Path:
    """The file again, with other header fields or changed tensors."""
    content = source.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["anchorite"])
    tensors = load_file(source)
    if change:
        change(tensors)
    save_file(tensors, target, {"anchorite": json.dumps({**header, **fields})})
    return target


def test_what_was_saved_is_loaded_bit_for_bit(saved: tuple) -> None:
    path, detector, info = saved
    loaded, loaded_info = load_weights(path)
    assert loaded_info == info
    assert (loaded.size, loaded.num_classes, loaded.anchors) == (detector.size, detector.num_classes, detector.anchors)
    assert not loaded.training
    state = loaded.state_dict()
    assert list(state) == list(detector.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in detector.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_other_precisions_and_memory_formats_are_stored_as_plain_float32(saved: tuple, tmp_path: Path) -> None:
    _, detector, info = saved
    half = Detector("n", len(NAMES), info.anchors)
    half.load_state_dict(detector.state_dict())
    save_weights(tmp_path / "half.safetensors", half.bfloat16().to(memory_format=torch.channels_last), info)
    tensors = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(tensors[name].to(value.dtype), value) for name, value in half.state_dict().items())


def test_anchors_in_an_unusual_order_come_back_in_that_order(tmp_path: Path) -> None:
    falling = AnchorSet((((90.0, 90.0),), ((30.0, 30.0),), ((9.0, 9.0),)), (8, 16, 32))
    save_weights(tmp_path / "a.safetensors", Detector("n", 1, falling), WeightsInfo("n", ("a",), falling, 640))
    assert load_weights(tmp_path / "a.safetensors")[1].anchors == falling


def test_a_loaded_detector_outlives_its_file(saved: tuple, tmp_path: Path) -> None:
    path, detector, _ = saved
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    loaded, _ = load_weights(copy)
    with copy.open("r+b") as file:
        file.truncate(0)
    assert torch.equal(loaded.head.predictors["p3"].weight, detector.head.predictors["p3"].weight)


class Bait:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    torch.save({"model": Bait()}, tmp_path / name)
    with pytest.raises(UnsafeFileError, match=rf"{name}: by content a zip, as torch.save writes it around a pickle"):
        load_weights(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Bait()))
    with pytest.raises(UnsafeFileError, match="pickle"):
        load_weights(tmp_path / name)


def test_a_file_without_our_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"no metadata 'anchorite'.*\['format'\]"):
        load_weights(path)


def test_a_newer_format_is_refused_naming_both_versions(saved: tuple, tmp_path: Path) -> None:
    path = rewrite(saved[0], tmp_path / "new.safetensors", format_version=7, invented_later=True)
    with pytest.raises(InputError, match="format version 7, but this release reads up to 3; upgrade"):
        load_weights(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": "1"}, "format version"),
        ({"format_version": None}, "format version"),
        ({"format_version": 0}, "format version"),
        ({"size": "xl"}, "no model size 'xl'"),
        ({"class_names": []}, "class_names"),
        ({"class_names": [1, 2]}, "class_names"),
        ({"anchors": [[1.0, 2.0, 3.0]]}, "metadata 'anchorite'"),
        ({"anchors": [[1.0, 2.0]] * 3, "strides": [4, 8, 16]}, "strides"),
        ({"anchors": [[1.0, -2.0]] * 3}, "positive"),
        ({"image_size": 0}, "image_size"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_damaged_header_is_refused_naming_the_field(saved: tuple, tmp_path: Path, fields: dict, message: str) -> None:
    path = rewrite(saved[0], tmp_path / "damaged.safetensors", **fields)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


def test_a_header_that_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", "[" * 100_000):
        save_file({"a": torch.zeros(2)}, tmp_path / "bad.safetensors", {"anchorite": text})
        with pytest.raises(InputError, match="metadata 'anchorite'"):
            load_weights(tmp_path / "bad.safetensors")


def test_tensors_of_another_detector_are_refused_naming_the_first(saved: tuple, tmp_path: Path) -> None:
    path = rewrite(saved[0], tmp_path / "s.safetensors", size="s")
    with pytest.raises(InputError, match=r"tensors do not fit its detector: backbone\.pool") as caught:
        load_weights(path)
    assert len(str(caught.value)) < 1500
    path = rewrite(saved[0], tmp_path / "k.safetensors", class_names=["only one"])
    with pytest.raises(InputError, match=r"6 tensors .* head.predictors.p3.bias is F32 \[20\] instead of F32 \[12\]"):
        load_weights(path)


def test_missing_unknown_and_mistyped_tensors_are_named(saved: tuple, tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        tensors["stray"] = torch.zeros(1)
        del tensors["head.predictors.p4.bias"]
        tensors["head.predictors.p5.bias"] = tensors["head.predictors.p5.bias"].half()

    path = rewrite(saved[0], tmp_path / "odd.safetensors", change)
    with pytest.raises(InputError) as caught:
        load_weights(path)
    for part in ("3 tensors", "stray is unknown", "p4.bias is missing", "p5.bias is F16 [20] instead of F32 [20]"):
        assert part in str(caught.value)


def test_files_cut_off_anywhere_are_refused(saved: tuple, tmp_path: Path) -> None:
    content = saved[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors: cut off or no safetensors file"):
            load_weights(path)


def test_a_missing_file_or_a_folder_is_a_mistake_in_the_path(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.safetensors", "cannot be read"), (tmp_path, "a folder, no weight file")):
        with pytest.raises(InputError, match=said):
            load_weights(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        ("Gewichte f\u00fcr Karten\n".encode() * 40, "no safetensors file but a text that begins with 'Gewichte f"),
        (b'{"weights": [' + b"1, " * 300, "a text that begins with"),
        (b"<!DOCTYPE html><title>Not found</title>", "a web page, saved in place of a download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image; the weights come first"),
        (b"\xff" * 600, "cut off or no safetensors file"),
        (b"\x10" + bytes(7) + b"junk" * 4, "cut off or no safetensors file"),
    ],
)
def test_what_was_given_instead_of_weights_is_said(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_pickle_is_not_to_be_imported_over_itself(tmp_path: Path) -> None:
    for name, out in (("a.pt", "a.safetensors"), ("b.safetensors", "b-imported.safetensors")):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(UnsafeFileError) as caught:
            load_weights(tmp_path / name)
        assert str(caught.value).endswith(f"anchorite import {tmp_path / name} {out}")


def test_a_place_that_cannot_be_written_is_a_storage_error(saved: tuple, tmp_path: Path) -> None:
    _, detector, info = saved
    with pytest.raises(StorageError, match="cannot be written"):
        save_weights(tmp_path / "no folder" / "x.safetensors", detector, info)


def test_folded_weights_are_not_saved(saved: tuple, tmp_path: Path) -> None:
    _, detector, info = saved
    with pytest.raises(InputError, match="folded"):
        save_weights(tmp_path / "folded.safetensors", fold_batch_norm(detector), info)
    assert not list(tmp_path.iterdir())


def test_info_of_another_detector_is_a_broken_invariant(saved: tuple, tmp_path: Path) -> None:
    _, detector, info = saved
    with pytest.raises(AssertionError):
        save_weights(tmp_path / "x", detector, WeightsInfo("n", ("a",), info.anchors, 640))
    with pytest.raises(AssertionError):
        save_weights(tmp_path / "x", detector, WeightsInfo("n", NAMES, default_anchors("n"), 640))


HUGE: list[dict] = [
    {"image_size": 8193},
    {"image_size": 10**4000},
    {"format_version": 10**4000},
    {"format_version": "9" * 1_000_000},
    {"size": "n" * 1_000_000},
    {"class_names": ["a" * 1_000_000] * 4},
    {"class_names": list(range(200_000))},
    {"class_names": [str(number) for number in range(100_001)]},
    {"anchors": [[1.0, 2.0]] * 100_000},
    {"anchors": [[1.0, 2.0] * 100_000] * 3},
    {"anchors": [[1e300, 1e300]] * 3},
    {"strides": [10**4000, 16, 32]},
    {"strides": [8] * 100_000},
    {"x" * 1_000_000: 1},
    {f"field {number}": number for number in range(10_000)},
]


@pytest.mark.parametrize("fields", HUGE, ids=range(len(HUGE)))
def test_a_header_of_huge_values_is_refused_in_a_short_message(saved: tuple, tmp_path: Path, fields: dict) -> None:
    path = rewrite(saved[0], tmp_path / "huge.safetensors", **fields)
    with pytest.raises(InputError, match="huge") as caught:
        load_weights(path)
    assert len(str(caught.value)) < 1500 + len(str(path))
    assert str(caught.value).isprintable()


def test_names_of_a_stranger_are_shown_shortened(saved: tuple, tmp_path: Path) -> None:
    path = tmp_path / "strange.safetensors"
    save_file({"a": torch.zeros(2)}, path, {f"\x1b{'k' * 100_000} {number}": "" for number in range(20)})
    with pytest.raises(InputError, match="no metadata 'anchorite'") as caught:
        load_weights(path)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()
    odd = rewrite(saved[0], path, lambda tensors: tensors.update({"\x1b" + "t" * 100_000: torch.zeros(1)}))
    with pytest.raises(InputError, match="is unknown") as caught:
        load_weights(odd)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_names_that_could_not_be_read_again_are_refused_before_any_training() -> None:
    for names in ((), ("a" * 10_001,), ("a",) * 100_001):
        with pytest.raises(InputError, match="a weight file has 1 to 100000 classes"):
            WeightsInfo("n", names, default_anchors("n"), 640)
