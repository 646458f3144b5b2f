"""Hostile checkpoints: each is refused by name, and nothing of it runs."""

from __future__ import annotations

import builtins
import functools
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorite.errors import InputError, UnsafeFileError
from anchorite.model import import_checkpoint
from anchorite.model.foreign import sandbox
from anchorite.model.foreign.machine import MAX_STEPS
from anchorite.model.foreign.reader import MEMORY_LIMIT_BYTES
from tests.model.foreign_files import (
    called,
    foreign_model,
    integers,
    legacy_bytes,
    random_detector,
    rewritten,
    save_checkpoint,
    tensor_call,
    text,
    with_pickle,
    zip_of,
)

MEMORY_BOUND_MB = 256
"""More than the reading process may take for a hostile file: it is stopped, or never begins, long before its limit."""


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
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path}: ")
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
    message = refused(with_pickle(tmp_path / "x.pt", content), "nothing")
    assert ("posix.system" in message) == (protocol > 0)  # the oldest has instructions that torch.save never writes
    assert not (tmp_path / "marker").exists()


def test_when_reading_fails_nothing_else_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    unknown = b"cmodels.unheard\nThing\n)\x81"  # what a reader of known classes alone stumbles over first
    bait = b"cposix\nsystem\n(" + text(f"touch {marker}") + b"tR"
    path = with_pickle(tmp_path / "x.pt", b"\x80\x02}(" + text("model") + unknown + text("opt") + bait + b"u.")
    for function in (torch.load, pickle.load, pickle.loads):
        module = sys.modules[function.__module__]
        if hasattr(module, function.__name__):
            monkeypatch.setattr(module, function.__name__, lambda *_, **__: pytest.fail("unpickled"))
    refused(path, "asks for models.unheard.Thing, which could run code")
    assert not marker.exists()


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
    ("content", "said"),
    [
        (b"N0" + CONV + b")R", "calls torch.nn.modules.conv.Conv2d, which"),
        (CONV + b")\x81)R", "calls an object of torch.nn.modules.conv.Conv2d, which"),
        (CONV + b")\x81K\x01a", "damaged"),  # append
        (CONV + b")\x81(K\x01e", "damaged"),  # append several
        (CONV + b")\x81" + text("a") + b"K\x01s", "damaged"),  # set an item
        (CONV + b")\x81(" + text("a") + b"K\x01u", "damaged"),  # set several
        (CONV + b")\x81K\x01b", "damaged"),  # a state that is no dict
        (CONV + STATE + b"b", "sets the state of torch.nn.modules.conv.Conv2d, which has none"),
        (CONV + b"K\x01\x85\x81", "makes an object of torch.nn.modules.conv.Conv2d"),
        (CONV + b")}\x92", "an instruction NEWOBJ_EX, which torch.save never writes"),
        (b"(" + CONV + b"o", "an instruction OBJ, which"),
        (b"(iposix\nsystem\n", "an instruction INST, which"),
        (b"\x82\x01", "an instruction EXT1, which"),
        (b"Pposix\n", "an instruction PERSID, which"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)\x81", "makes an object of torch._utils._rebuild_tensor_v2"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n" + STATE + b"b", "sets the state of torch._utils"),
        (b"ctorch._utils\n_rebuild_parameter\n" + CONV + b"\x85R", "damaged"),
        (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage, which"),
        (b"ccollections\nOrderedDict\n)\x81", "makes an object of collections.OrderedDict"),
        (b"ccollections\nOrderedDict\n]]]K\x01ae\x85R", "damaged"),
        (text("os") + b")R", "calls a str, which"),
        (b"]" + STATE + b"b", "sets the state of a list"),
        (b"})K\x01s", "damaged .a tuple as a key"),
        (b"}" + CONV + b")\x81K\x01s", "damaged .an object of torch.nn.modules.conv.Conv2d as a key"),
        (b"\x8a\xff" + b"\x7f" * 255, "a number of 2039 bits"),
        (b"h\x07", "damaged"),
        (b"0", "damaged"),
    ],
)
def test_stand_ins_do_nothing_whatever_they_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pt", b"\x80\x02}" + text("model") + content + b"s.")
    refused(path, said, InputError if said.startswith("damaged") else UnsafeFileError)


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (tensor_call(4, 0, (10**9,), (0,)), r"a tensor of \[1000000000\] entries with strides \[0\] .* has 4"),
        (tensor_call(4, 0, (10**6, 10**6), (0, 0)), "has 4; it was not made"),
        (tensor_call(4, 0, (2**62, 2**62, 2**62), (0, 0, 0)), "has 4"),
        (tensor_call(4, 0, (5,), (0,)), "has 4"),
        (tensor_call(4, 1, (4,), (1,)), "has 4"),
        (tensor_call(4, 0, (2, 2), (3, 1)), "has 4"),
        (tensor_call(4, 4, (1,), (1,)), "from entry 4, but its storage has 4"),
        (tensor_call(4, 10**18, (1,), (1,)), "has 4"),
        (tensor_call(4, -1, (4,), (1,)), "with the sizes"),
        (tensor_call(4, 0, (-4,), (1,)), r"with the sizes \[-4\]"),
        (tensor_call(4, 3, (4,), (-1,)), r"strides \[-1\]"),
        (tensor_call(4, 0, (2, 2), (1,)), "2 sizes and 1 strides"),
        (tensor_call(4, 0, (1,) * 9, (1,) * 9), "9 sizes and 9 strides"),
        (tensor_call(5, 0, (4,), (1,)), "claims 5 numbers of type float32 in its record data/0, which has 16 bytes"),
        (tensor_call(10**15, 0, (10**15,), (1,)), "claims 1000000000000000 numbers"),
        (tensor_call(-4, 0, (4,), (1,)), "claims -4 numbers"),
        (tensor_call(4, 0, (4,), (1,), "HalfStorage"), "claims 4 numbers of type float16"),
        (tensor_call(4, 0, (4,), (1,), "DoubleStorage"), "claims 4 numbers of type float64"),
    ],
)
def test_a_tensor_is_never_larger_than_what_is_stored(pickled: bytes, said: str, tmp_path: Path) -> None:
    refused(with_pickle(tmp_path / "x.pt", pickled, data0=struct.pack("<4f", 1, 2, 3, 4)), said)


def test_the_tensors_of_these_tests_are_otherwise_fine(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pt", tensor_call(4, 0, (2, 2), (1, 2)), data0=bytes(16))
    refused(path, "its model is a View, not a model", InputError)


def test_a_record_that_is_missing_is_damage(tmp_path: Path) -> None:
    refused(with_pickle(tmp_path / "x.pt", tensor_call(4, 0, (4,), (1,))), "no record data/0", InputError)
    content = tensor_call(4, 0, (4,), (1,)).replace(text("0"), text("../../../etc/passwd"))
    refused(with_pickle(tmp_path / "y.pt", content), r"no record data/../../", InputError)


def peak_mb(path: Path) -> tuple[float, str]:
    """Most memory that the process which reads a file takes, and what is said of it; from a process without torch."""
    script = (
        "import json, resource, sys; from pathlib import Path; from anchorite.model.foreign.sandbox import *\n"
        "path = Path(sys.argv[1])\n"
        "try: read_in_sandbox(path, path.open('rb')); said = ''\n"
        "except ValueError as error: said = str(error)\n"
        # Its own peak would count what the process had that it was forked from.
        "own = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([max(own, child) / 1024, said]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    megabytes, said = json.loads(done.stdout)
    return megabytes, said


def zip_bomb(path: Path) -> Path:
    return zip_of(path, {"data.pkl": bytes(1 << 30), "version": b"3\n"}, zipfile.ZIP_DEFLATED)


def data_bomb(path: Path) -> Path:
    zip_of(path, {"data.pkl": tensor_call(1 << 28, 0, (1 << 28,), (1,)), "version": b"3\n"})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 30))
    return path


def overlapping(path: Path) -> Path:
    """Many entries that are all the same megabyte of the file, so that they add up to more than it has."""
    zip_of(path, {"data.pkl": b"N.", "data/0": bytes(1 << 20)})
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    first = content.index(b"PK\x01\x02")
    last = content.rindex(b"PK\x01\x02")
    entries = content[first:end]
    for number in range(2000):
        entries += content[last : end - 4] + f"{number:04}".encode()[: end - last]
        name_at = len(entries) - (end - last) + 46
        entries[name_at : name_at + 14] = f"archive/d/{number:04}".encode()
    trailer = bytearray(content[end:])
    struct.pack_into("<HHII", trailer, 8, 2002, 2002, len(entries), first)
    path.write_bytes(content[:first] + entries + trailer)
    return path


def memo_bomb(path: Path) -> Path:
    """Copies of a long list, each made by two bytes."""
    start = b"\x80\x02ccollections\nOrderedDict\nq\x00](" + b"K\x01K\x02\x86" * 100_000 + b"e\x85q\x010("
    return with_pickle(path, start + b"h\x00h\x01R" * 1_000_000 + b"t.")


def nested(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02}N" + b"\x85" * 1_500_000 + b"K\x01s.")


def many_steps(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02]" + b"]a" * MAX_STEPS + b".")


def large_stack(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02(" + b"}" * (MAX_STEPS - 10) + b"t.")


def many_objects(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02(cmodels.common\nConv\nq\x00" + b"h\x00)\x81" * (MAX_STEPS // 3 - 10) + b"t.")


def large_pickle(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02B" + struct.pack("<I", 17 << 20) + bytes(17 << 20) + b".")


def laughs(path: Path) -> Path:
    """A model of layers that all hold the next one a hundred times over."""
    layer = b"cmodels.common\nConv\n)\x81}" + text("_modules") + b"}(%ss" + b"sb"
    inner = b"cmodels.common\nConv\n)\x81"
    for _ in range(9):
        names = b"".join(text(str(number)) + b"h\x05" for number in range(100))
        inner = inner + b"q\x050" + layer.replace(b"%ss", names + b"u")
    return with_pickle(path, b"\x80\x02}" + text("model") + inner + b"s.")


def wide(path: Path) -> Path:
    """A model of 1001 tensors that are none."""
    tensors = b"".join(text(str(number)) + b"N" for number in range(1001))
    layer = b"cmodels.common\nConv\n)\x81}" + text("_buffers") + b"}(" + tensors + b"usb"
    return with_pickle(path, b"\x80\x02}" + text("model") + layer + b"s.")


def itself(path: Path) -> Path:
    """A model that is a layer of its own."""
    inner = b"cmodels.common\nConv\n)\x81q\x05}" + text("_modules") + b"}" + text("a") + b"h\x05ssb"
    return with_pickle(path, b"\x80\x02}" + text("model") + inner + b"s.")


def many_records(path: Path) -> Path:
    return zip_of(path, {"data.pkl": b"N.", **{f"data/{number}": b"" for number in range(20_001)}})


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip bomb": (zip_bomb, "its record archive/data.pkl would grow from .* to 1073741824 bytes"),
    "data bomb": (data_bomb, "its record archive/data/0 would grow from .* to 1073741824 bytes"),
    "overlapping records": (overlapping, "its records claim [0-9]+ bytes, more than the [0-9]+ of the file|damaged"),
    "memo": (memo_bomb, f"more than {MAX_STEPS} steps"),
    "nested": (nested, "a tuple as a key"),
    "many steps": (many_steps, f"more than {MAX_STEPS} steps"),
    "large stack": (large_stack, "not a dict with a model"),
    "many objects": (many_objects, "not a dict with a model"),
    "large pickle": (large_pickle, "its data.pkl takes 17825800 bytes, more than the 16777216 that are read"),
    "layers in layers": (laughs, "its layers go on beyond"),
    "a wide layer": (wide, "one of its layers holds 1001 others or tensors"),
    "a layer in itself": (itself, "its layers go on beyond 20000 or 12 deep"),
    "many records": (many_records, "holds 20002 records, more than the 20000"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BOMBS))
def test_memory_and_time_stay_bounded(name: str, tmp_path: Path) -> None:
    make, said = BOMBS[name]
    path = make(tmp_path / "x.pt")
    started = time.monotonic()
    megabytes, message = peak_mb(path)
    print(f"{name}: {megabytes:.0f} MB, {time.monotonic() - started:.1f} s: {message}")
    assert megabytes < MEMORY_BOUND_MB
    kind = InputError if "damaged" in message or "not a dict" in message else UnsafeFileError
    refused(path, said, kind)


def test_a_file_too_long_is_not_looked_at(tmp_path: Path) -> None:
    with (tmp_path / "x.pt").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate((4 << 30) + 1)  # holes: takes no room on the disk
    refused(tmp_path / "x.pt", "takes 4294967297 bytes, more than the 4294967296 that are looked at")


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("MEMORY_LIMIT_BYTES = 24 << 20", "takes more than 24 MB of memory"),
        ("SECONDS_LIMIT = 1", "s of processor time"),
    ],
)
def test_the_process_that_reads_is_stopped_at_its_limits(
    limit: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large_stack(tmp_path / "x.pt")
    name, _, value = limit.partition(" = ")
    lower = f"from anchorite.model.foreign import reader; reader.{name} = {value}; reader.main()"
    monkeypatch.setattr(sandbox, "_START", "import sys; sys.path.append(sys.argv[1]); " + lower)
    refused(path, said)


def test_the_process_limits_itself_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import json, resource, sys; sys.path.append(sys.argv[1]); from anchorite.model.foreign import reader\n"
        "reader._limit_itself(); names = ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_CORE')\n"
        "print(json.dumps([resource.getrlimit(getattr(resource, name)) for name in names] + ['torch' in sys.modules]))"
    )
    folder = str(sandbox._PACKAGE_FOLDER)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script, folder], capture_output=True, check=True)
    limits = json.loads(done.stdout)
    assert limits == [[MEMORY_LIMIT_BYTES] * 2, [60, 60], [0, 0], [0, 0], False]


def test_nothing_is_imported_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    trap = f"open({str(marker)!r}, 'w').close()"
    for name in ("zipfile.py", "json.py", "pickletools.py", "anchorite.py", "sitecustomize.py", "models.py"):
        (tmp_path / name).write_text(trap)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    import_checkpoint(save_checkpoint(tmp_path / "x.pt", foreign_model(random_detector(), ["a", "b", "c"])))
    assert not marker.exists()


def children() -> set[int]:
    """The processes that this one has started and that are not gone."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(entry.name))
    return found


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START", "import time, os; print(os.getpid(), flush=True); time.sleep(1000)")
    monkeypatch.setattr(sandbox, "WAIT_SECONDS", 0.5)
    (tmp_path / "x.pt").write_bytes(b"x")
    before = children()
    refused(tmp_path / "x.pt", "was not read within 0.5 s")
    assert children() <= before


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("import os; os.abort()", "ended with code -6"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "or more memory than there is"),
        ("print('no JSON')", "not understood"),
        ("print('[' * 100000)", "not understood"),
        ('print(\'{"found": {"part": 1}}\')', "not understood"),
        ('print(\'{"refused": "SystemExit", "message": "odd"}\')', "odd"),
        ("print('{}')", "x.pt: "),
        ("print('1' * (17 << 20))", "not understood"),
    ],
)
def test_an_answer_that_is_none_is_a_refusal(
    start: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_START", start)
    (tmp_path / "x.pt").write_bytes(b"x")
    refused(tmp_path / "x.pt", said)


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
        (lambda path: path.write_bytes(legacy_bytes({"model": torch.zeros(3)})), "from before version 1.6"),
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
        (twice, "holds archive/data.pkl twice"),
        (lambda path: zip_of(path, {"data.pkl": b"N.", "byteorder": b"big"}), "big-endian"),
        (lambda path: with_pickle(path, b""), "its pickle is cut off|damaged"),
        (lambda path: with_pickle(path, b"\x80\x02}"), "its pickle is (cut off|damaged)"),
        (lambda path: with_pickle(path, b"\x80\x02NN."), "damaged"),
        (lambda path: with_pickle(path, b"\xff\xfe"), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_a_mistake_of_input(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    make(tmp_path / "x.pt")
    refused(tmp_path / "x.pt", said, InputError)


def test_importing_takes_memory_by_the_size_of_the_detector(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "x.pt", foreign_model(random_detector(), ["a", "b", "c"]))
    import_checkpoint(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with zipfile.ZipFile(path, "a") as archive, archive.open("x/data/999999", "w", force_zip64=True) as record:
        for _ in range(400):
            record.write(bytes(1 << 20))  # a record that nothing refers to
    import_checkpoint(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 64


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
    assert integers(1, 2) == b"(K\x01K\x02t"


def test_arguments_that_are_none_are_damage(tmp_path: Path) -> None:
    for arguments in (b")", b"N\x85", b"(NNNNt", integers(1, 2, 3, 4)):
        path = with_pickle(tmp_path / "x.pt", called("torch._utils", "_rebuild_tensor_v2", arguments))
        refused(path, "damaged", InputError)
