"""Damaged and random checkpoints: refused, or read as what they say; nothing else ever happens."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorite.errors import AnchoriteError, InputError, UnsafeFileError
from anchorite.model import ImportedCheckpoint, import_checkpoint, torch_checkpoint
from tests.model.torch_checkpoints import foreign_model, random_detector, read_in_this_process, save_checkpoint, text

NAMES = ["a", "b", "c"]
EXAMPLES = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("foreign") / "x.pt"
    return save_checkpoint(path, foreign_model(random_detector(), NAMES), opt={"imgsz": 64}).read_bytes()


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)


def checked(path: Path) -> ImportedCheckpoint | AnchoriteError:
    """What comes of a file: a detector that is whole, or a refusal that a user can read."""
    try:
        imported = import_checkpoint(path)
    except AnchoriteError as error:
        refusal = error
    else:
        return whole_detector(imported)
    assert str(refusal).startswith(f"{path}: ")
    assert str(refusal).removeprefix(str(path)).isascii()
    assert len(str(refusal)) < 1500
    return refusal


@cache
def expected_state() -> dict[str, torch.Tensor]:
    return random_detector().state_dict()


def whole_detector(imported: ImportedCheckpoint) -> ImportedCheckpoint:
    """The same again, if it has all tensors of `random_detector`."""
    expected = expected_state()
    found = imported.detector.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(tensor.isfinite().all() for tensor in found.values())
    return imported


def test_cut_off_anywhere_it_is_refused(whole: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
    lengths = [0, 1, 3, 4, 30, 1000, len(whole) - 1, len(whole) - 22, archive.start_dir, archive.start_dir + 40]
    lengths += [*starts[:5], *(len(whole) * part // 11 for part in range(1, 11))]
    assert len(set(lengths)) >= 20
    for length in lengths:
        (tmp_path / "x.pt").write_bytes(whole[:length])
        assert isinstance(checked(tmp_path / "x.pt"), InputError), length


@pytest.mark.slow
def test_with_one_bit_changed_it_is_refused_or_means_the_same(whole: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        size = archive.getinfo("x/data.pkl").file_size
        directory = archive.start_dir
    own = random_detector().state_dict()
    generator = random.Random(0)
    outcomes = {"pickle": [0, 0], "directory": [0, 0], "anywhere": [0, 0]}
    for number in range(100):
        where = ("pickle", "directory", "anywhere")[number % 3]
        low, high = {"pickle": (64, 64 + size), "directory": (directory, len(whole)), "anywhere": (0, len(whole))}[
            where
        ]
        changed = bytearray(whole)
        changed[generator.randrange(low, high)] ^= 1 << generator.randrange(8)
        (tmp_path / "x.pt").write_bytes(changed)
        outcome = checked(tmp_path / "x.pt")
        outcomes[where][isinstance(outcome, ImportedCheckpoint)] += 1
        if isinstance(outcome, ImportedCheckpoint):  # a bit that says nothing, such as a record's date
            found = outcome.detector.state_dict()
            assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
            assert outcome.info.class_names == tuple(NAMES)
    assert outcomes["pickle"][1] == 0  # its checksum is wrong then
    assert outcomes["anywhere"][0] > 15


def rewrapped(whole: bytes, pickled: bytes) -> bytes:
    """The checkpoint with another pickle, whose checksum is right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename == "x/data.pkl" else old.read(entry))
    return stream.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_with_a_few_bytes_of_its_pickle_changed_it_is_refused_or_whole(whole: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        content = archive.read("x/data.pkl")
    generator = random.Random(1)
    kinds = set()
    for _ in range(35):
        changed = bytearray(content)
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        (tmp_path / "x.pt").write_bytes(rewrapped(whole, bytes(changed)))
        kinds.add(type(checked(tmp_path / "x.pt")))
    assert {InputError, UnsafeFileError} <= kinds


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.pt"


def answered(file: Path, content: bytes) -> None:
    """Read in this process; what comes of it must be a refusal that a user can read."""
    file.write_bytes(content)
    answer = json.loads(torch_checkpoint.answer(file))
    assert answer["refused"] in ("InputError", "UnsafeFileError")
    assert answer["message"].isascii()


def zipped(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(16))
    return stream.getvalue()


@EXAMPLES
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"PK\x05\x06"]))
def test_random_bytes_are_refused(file: Path, content: bytes, start: bytes) -> None:
    answered(file, start + content)


# Whole instructions, so that most sequences get past the first.
GLOBALS = (
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n",
    b"c__builtin__\nset\n",
    b"cmodels.common\nConv\n",
    b"ctorch.nn.modules.conv\nConv2d\n",
    b"ctorch\nSize\n",
    b"cnumpy\ndtype\n",
)
TEXTS = ("model", "ema", "_modules", "_parameters", "names", "storage", "cpu", "0", "stride", "f", "\ud800")
INSTRUCTIONS = (
    *GLOBALS,
    *(pickle.dumps(one, 2)[2:-1] for one in TEXTS),
    *(b"N \x88 \x89 ) ] } ( t \x85 \x86 \x87 a e s u R \x81 b Q 0 1 \x8f \x90 \x94 2".split(b" ")),
    *(b"K\x00 K\x04 h\x00 h\x01 q\x00 q\x01 G\x7f\xf8\x00\x00\x00\x00\x00\x00 \x8a\x01\xff".split(b" ")),
)
STORAGE = b"(" + b"".join(pickle.dumps(one, 2)[2:-1] for one in ("storage",)) + b"ctorch\nFloatStorage\n"


@EXAMPLES
@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=60))
def test_random_instructions_are_refused(file: Path, instructions: list[bytes]) -> None:
    answered(file, zipped(b"\x80\x02" + b"".join(instructions) + b"."))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(TEXTS) | st.integers(0, 3), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@EXAMPLES
@given(st.dictionaries(st.sampled_from([*TEXTS, "eps", "add", "d", "kernel_size", "_buffers"]), PLAIN), PLAIN)
def test_layers_with_any_state_are_refused(file: Path, state: dict[str, Any], options: Any) -> None:
    pickled = b"\x80\x02}(" + text("model") + b"cmodels.yolo\nDetect\n)\x81" + pickle.dumps(state, 2)[2:-1]
    answered(file, zipped(pickled + b"b" + text("opt") + pickle.dumps(options, 2)[2:-1] + b"u."))
