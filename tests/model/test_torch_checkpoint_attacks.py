"""Hostile checkpoints: each is refused by name, and nothing of it runs. Limits: test_torch_checkpoint_sandbox.py."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorite.errors import AnchoriteError, InputError, UnsafeFileError
from anchorite.model import import_checkpoint
from tests.model.torch_checkpoints import (
    called,
    foreign_model,
    integers,
    legacy_bytes,
    random_detector,
    read_in_this_process,
    rewritten,
    save_checkpoint,
    tensor_call,
    text,
    with_pickle,
    zip_of,
)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)


class Bait:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def refused(path: Path, said: str, kind: type[Exception] = UnsafeFileError) -> str:
    """The message of the refusal; nothing is left behind by the process that read the file."""
    before = set(path.parent.iterdir())
    with pytest.raises(kind, match=said) as caught:
        import_checkpoint(path)
    assert type(caught.value) is kind or (
        kind is AnchoriteError and type(caught.value) in (InputError, UnsafeFileError)
    )
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).removeprefix(str(path)).isascii()
    assert len(str(caught.value)) < 1000
    assert set(path.parent.iterdir()) == before
    return str(caught.value)


def baits(marker: Path) -> dict[str, tuple[Any, str]]:
    """Objects that make the file `marker` when they are unpickled, and the global that each asks for."""
    make = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": (Bait(os.system, f"touch {marker}"), r"posix.system \(os.system\)"),
        "eval": (Bait(eval, make), r"__builtin__.eval \(builtins.eval\)"),
        "exec": (Bait(exec, make), r"__builtin__.exec \(builtins.exec\)"),
        "open": (Bait(io.open, str(marker), "w"), "io.open"),
        "popen": (Bait(subprocess.Popen, ["touch", str(marker)]), r"commands.Popen \(subprocess.Popen\)"),
        "partial": (Bait(functools.partial, os.system, f"touch {marker}"), "functools.partial"),
        "getattr": (
            Bait(getattr, Bait(builtins.__import__, "os"), "system"),
            r"__builtin__.getattr \(builtins.getattr\)",
        ),
        "load": (Bait(torch.load, str(marker)), "torch.serialization.load"),
        "hub": (Bait(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        "path": (Bait(Path.touch, marker), r"__builtin__.getattr \(builtins.getattr\)"),
    }


@pytest.mark.parametrize("place", ["alone", "beside", "within"])
@pytest.mark.parametrize("name", list(baits(Path("marker"))))
def test_what_would_run_code_is_refused_by_its_name(name: str, place: str, tmp_path: Path) -> None:
    bait, said = baits(tmp_path / "marker")[name]
    path = tmp_path / "x.pt"
    if place == "alone":
        torch.save(bait, path)
    else:
        model = foreign_model(random_detector(), ["a", "b", "c"])
        if place == "within":
            model.model[3].payload = bait  # type: ignore[index]
        save_checkpoint(path, model, opt=bait if place == "beside" else None)
    message = refused(path, f"x.pt: asks for ({said}), which could run code; nothing of it was run")
    assert message.isascii()
    assert not (tmp_path / "marker").exists()


def test_the_baits_would_work_elsewhere(tmp_path: Path) -> None:
    for name in ("system", "eval", "exec"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w"):
            pickle.loads(pickle.dumps(baits(tmp_path / name)[name][0]))
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_in_every_protocol_of_pickle(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"model": Bait(os.system, f"touch {tmp_path / 'marker'}")}, protocol)
    assert "posix.system" in refused(with_pickle(tmp_path / "x.pt", content), "nothing")
    assert not (tmp_path / "marker").exists()


def test_when_reading_fails_nothing_else_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_first = b"cmodels.common\nConv\n)\x81]e"  # what torch.load alone stumbles over first
    bait = b"cposix\nsystem\n(" + text(f"touch {tmp_path / 'marker'}") + b"tR"
    path = with_pickle(tmp_path / "x.pt", b"\x80\x02}(" + text("model") + wrong_first + text("opt") + bait + b"u.")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    refused(path, "asks for posix.system")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("__builtin__", "bytearray"),
        ("collections", "Counter"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ],
)
def test_what_torch_allows_and_no_checkpoint_asks_for_is_refused(module: str, name: str, tmp_path: Path) -> None:
    refused(with_pickle(tmp_path / "x.pt", called(module, name, integers(1 << 40))), f"asks for {module}.{name}")


STACK_GLOBAL = b"\x93"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "nn.Module.eval"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.nn.modules.conv", "Conv2d.__init__"),
        ("torch.nn.modules.conv", "__builtins__"),
        ("torch.nn.modules.module", "register_module_forward_hook"),
        ("collections", "OrderedDict.fromkeys"),
        ("models.yolo", "os"),
        ("models.yolo.os", "System"),
        ("modelsx.yolo", "Detect"),
        ("torch", "load"),
        ("torch", "_utils"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._dynamo.guards", "Guard"),
        ("argparse", "_sys"),
        ("numpy", "load"),
        ("_codecs", "decode"),
        ("pathlib", "os"),
        ("", ""),
        ("evil\x1b[31m", "\u202e" * 500),
    ],
)
def test_only_whole_names_that_are_known_are_allowed(module: str, name: str, tmp_path: Path) -> None:
    content = b"\x80\x04}" + text("model") + text(module) + text(name) + STACK_GLOBAL + b"s."
    message = refused(with_pickle(tmp_path / "x.pt", content), "asks for .*, which could run code")
    assert message.isascii()
    assert message.isprintable()


def test_a_global_made_of_other_things_than_text_is_refused(tmp_path: Path) -> None:
    content = b"\x80\x04}" + text("model") + b"]N" + STACK_GLOBAL + b"s."
    refused(with_pickle(tmp_path / "x.pt", content), "asks for")


CONV = b"ctorch.nn.modules.conv\nConv2d\n"
STATE = b"}" + text("a") + b"K\x01s"


@pytest.mark.parametrize(
    "content",
    [
        CONV + b")\x81)R",  # a call of an object
        CONV + b")\x81K\x01a",  # append
        CONV + b")\x81" + text("a") + b"K\x01s",  # set an item
        CONV + b")}\x92",
        b"(" + CONV + b"o",
        b"(iposix\nsystem\n",
        b"\x82\x01",
        b"Pposix\n",
        text("posix") + b"Q",  # persistent ids that are none of torch.save's
        b"(" + text("module") + text("posix") + b"tQ",
        b"ctorch._utils\n_rebuild_tensor_v2\n)\x81",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + STATE + b"b",
        b"ctorch._utils\n_rebuild_parameter\n" + CONV + b"\x85R",
        b"ctorch\nFloatStorage\n)R",
        text("os") + b")R",
        b"]" + STATE + b"b",
        b"h\x07",
        b"0",
    ],
)
def test_instructions_that_torch_save_never_writes_are_refused(content: bytes, tmp_path: Path) -> None:
    refused(with_pickle(tmp_path / "x.pt", b"\x80\x02}" + text("model") + content + b"s."), ".", AnchoriteError)


@pytest.mark.parametrize(
    "content",
    [
        CONV + b")R",
        CONV + b"K\x01\x85\x81",
        CONV + b")\x81K\x01b",
        CONV + b")\x81N" + b"}" + text("__class__") + CONV + b"s\x86b",  # a state that sets attributes
        CONV + b")\x81}" + text("__setstate__") + text("x") + b"sb",
    ],
)
def test_stand_ins_do_nothing_whatever_they_are_given(content: bytes, tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pt", b"\x80\x02}" + text("model") + content + b"s.")
    refused(path, "is of another architecture: no tensor model.24.anchors", InputError)


@pytest.mark.parametrize(
    "pickled",
    [
        tensor_call(4, 0, (10**9,), (0,)),
        tensor_call(4, 0, (10**6, 10**6), (0, 0)),
        tensor_call(4, 0, (2**62, 2**62, 2**62), (0, 0, 0)),
        tensor_call(4, 0, (5,), (0,)),
        tensor_call(4, 1, (4,), (1,)),
        tensor_call(4, 0, (2, 2), (3, 1)),
        tensor_call(4, 4, (1,), (1,)),
        tensor_call(4, 10**18, (1,), (1,)),
        tensor_call(4, -1, (4,), (1,)),
        tensor_call(4, 0, (-4,), (1,)),
        tensor_call(4, 3, (4,), (-1,)),
        tensor_call(4, 0, (2, 2), (1,)),
        tensor_call(5, 0, (4,), (1,)),
        tensor_call(5, 0, (5,), (1,)),
        tensor_call(10**15, 0, (10**15,), (1,)),
        tensor_call(-4, 0, (4,), (1,)),
        tensor_call(4, 0, (4,), (1,), "HalfStorage"),
        tensor_call(4, 0, (4,), (1,), "DoubleStorage"),
    ],
)
def test_a_tensor_is_never_larger_than_what_is_stored(pickled: bytes, tmp_path: Path) -> None:
    """As a buffer of a layer, where tensors are looked at."""
    tensor = pickled[pickled.index(b"ctorch._utils") : -2]
    layer = b"cmodels.common\nConv\n)\x81}" + text("_buffers") + b"}" + text("a") + tensor + b"ssb"
    content = b"\x80\x02}" + text("model") + layer + b"s."
    path = with_pickle(tmp_path / "x.pt", content, data0=struct.pack("<4f", 1, 2, 3, 4))
    message = refused(path, ".", AnchoriteError)
    if b"J\x00\xca\x9a;" in pickled:  # the tiny file with a huge expanded view
        assert "1000000000 entries" in message
        refused(path, "its storage only 16 bytes")


def test_the_tensors_of_these_tests_are_otherwise_fine(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pt", tensor_call(4, 0, (2, 2), (1, 2)), data0=bytes(16))
    refused(path, "its model is a Tensor, not a model", InputError)


def test_a_record_that_is_missing_is_damage(tmp_path: Path) -> None:
    refused(with_pickle(tmp_path / "x.pt", tensor_call(4, 0, (4,), (1,))), "data/0", InputError)
    content = tensor_call(4, 0, (4,), (1,)).replace(text("0"), text("../../../etc/passwd"))
    refused(with_pickle(tmp_path / "y.pt", content), "etc/passwd", InputError)


@pytest.mark.parametrize(
    "name", ["archive/../../x", "/etc/passwd", "archive\\..\\x", "C:/x", "archive/data/../../../x"]
)
def test_a_record_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pt", b"N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    refused(path, "which leads out of it; nothing was unpacked")


def scripted(path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.trace(Model(), torch.zeros(1)), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(legacy_bytes({"model": torch.zeros(3)})), "before version 1.6"),
        (lambda path: path.write_bytes(pickle.dumps({"model": 1})), "a bare pickle"),
        (lambda path: path.write_bytes(pickle.dumps(Bait(os.system, "false"), 2)), "a bare pickle"),
        (scripted, "a TorchScript archive, which holds code; give the checkpoint"),
    ],
)
def test_other_formats_that_run_code_are_refused_with_a_remedy(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "x.pt")
    refused(tmp_path / "x.pt", said)


def two_folders(path: Path) -> None:
    with zipfile.ZipFile(with_pickle(path, b"N."), "a") as archive:
        archive.writestr("other/data.pkl", b"N.")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def twice(path: Path) -> None:
    with zipfile.ZipFile(with_pickle(path, b"N."), "a") as archive:
        archive.writestr("archive/data.pkl", b"I1\n.")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("hello, this is no checkpoint at all"), "does not begin as a zip"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"), "a safetensors file already; use it as it is"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "cut off or damaged"),
        (lambda path: zip_of(path, {"notes.txt": b"hello"}), "a zip without data.pkl"),
        (two_folders, "a zip of other things"),
        (twice, "holds a record twice"),
        (lambda path: zip_of(path, {"data.pkl": b"N.", "byteorder": b"big"}), "big-endian"),
        (lambda path: with_pickle(path, b""), "its pickle is cut off|damaged"),
        (lambda path: with_pickle(path, b"\x80\x02}"), "its pickle is (cut off|damaged)"),
        (lambda path: with_pickle(path, b"\x80\x02NN."), "not a dict with a model"),
        (lambda path: with_pickle(path, b"\xff\xfe"), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_a_mistake_of_input(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    make(tmp_path / "x.pt")
    refused(tmp_path / "x.pt", said, InputError)


def test_a_name_in_the_pickle_that_reaches_further_changes_nothing(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "x.pt", foreign_model(random_detector(), ["a", "b", "c"]))
    for old, new, said in (
        (b"cmodels.common\nConv\n", b"cposix\nsystem\n", "asks for posix.system"),
        (
            b"ctorch.nn.modules.conv\nConv2d\n",
            b"ctorch.nn.modules.conv\nConv2d.x\n",
            "asks for torch.nn.modules.conv.Co",
        ),
        (b"c__builtin__\nset\n", b"c__builtin__\neval\n", "asks for __builtin__.eval"),
    ):
        changed = rewritten(path, tmp_path / "y.pt", lambda content, old=old, new=new: content.replace(old, new))
        refused(changed, said)


def test_arguments_that_are_none_are_damage(tmp_path: Path) -> None:
    for arguments in (b")", b"N\x85", b"(NNNNt", integers(1, 2, 3, 4)):
        path = with_pickle(tmp_path / "x.pt", called("torch._utils", "_rebuild_tensor_v2", arguments))
        refused(path, "damaged|refuses", AnchoriteError)
