"""The process that reads checkpoints: its limits on memory and time, what it imports, and how it ends."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from anchorite.errors import UnsafeFileError
from anchorite.model import import_checkpoint, torch_checkpoint
from anchorite.model.torch_checkpoint import MAX_STEPS, MEMORY_LIMIT_BYTES
from tests.model.sandboxed import read_in_a_fork
from tests.model.test_torch_checkpoint_attacks import baits, refused
from tests.model.torch_checkpoints import (
    foreign_model,
    random_detector,
    read_in_this_process,
    save_checkpoint,
    tensor_call,
    text,
    with_pickle,
    zip_of,
)
from tests.processes import ForkedProcess

MEMORY_BOUND_MB = 600
"""More than the reading process may take for a hostile file: its limit, and a little."""


def test_what_would_run_code_is_refused(tmp_path: Path) -> None:
    """In a process of its own; test_torch_checkpoint_attacks.py has all that is refused."""
    bait, said = baits(tmp_path / "marker")["system"]
    torch.save({"model": bait}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", f"asks for ({said})")
    assert not (tmp_path / "marker").exists()


def zip_bomb(path: Path) -> Path:
    return zip_of(path, {"data.pkl": bytes(1 << 26), "version": b"3\n"}, zipfile.ZIP_DEFLATED)


def data_bomb(path: Path) -> Path:
    zip_of(path, {"data.pkl": tensor_call(1 << 26, 0, (1 << 26,), (1,)), "version": b"3\n"})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 26))
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
    """Copies of a long list, each made by a few bytes."""
    pairs = b"".join(b"M" + struct.pack("<H", number) + b"K\x02\x86" for number in range(20_000))
    start = b"\x80\x02ccollections\nOrderedDict\nq\x00](" + pairs + b"e\x85q\x01("
    return with_pickle(path, start + b"h\x00h\x01R" * 100_000 + b"t.")


def nested(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02}N" + b"\x85" * 900_000 + b"K\x01s.")


def many_steps(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02]" + b"]a" * MAX_STEPS + b".")


def many_objects(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02(cmodels.common\nConv\nq\x00" + b"h\x00)\x81" * (MAX_STEPS // 3 - 10) + b"t.")


def large_pickle(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02" + text("a" * (17 << 20)) + b".")


def laughs(path: Path) -> Path:
    """A model of layers that all hold the next one a hundred times over."""
    layer = b"cmodels.common\nConv\n)\x81}" + text("_modules") + b"}(%ss" + b"sb"
    inner = b"cmodels.common\nConv\n)\x81"
    for _ in range(9):
        names = b"".join(text(str(number)) + b"h\x05" for number in range(100))
        inner = inner + b"q\x05" + layer.replace(b"%ss", names + b"u")
    # All of them in a tuple that nobody wants, for torch.save never takes anything off the stack.
    return with_pickle(path, b"\x80\x02}" + text("x") + b"(" + inner + b"q\x05ts" + text("model") + b"h\x05s.")


def wide(path: Path) -> Path:
    """A model of 1001 tensors that are none."""
    tensors = b"".join(text(str(number)) + b"N" for number in range(1001))
    layer = b"cmodels.common\nConv\n)\x81}" + text("_buffers") + b"}(" + tensors + b"usb"
    return with_pickle(path, b"\x80\x02}" + text("model") + layer + b"s.")


def many_records(path: Path) -> Path:
    return zip_of(path, {"data.pkl": b"N.", **{f"data/{number}": b"" for number in range(20_001)}})


def itself(path: Path) -> Path:
    """A model that is a layer of its own."""
    inner = b"cmodels.common\nConv\n)\x81q\x05}" + text("_modules") + b"}" + text("a") + b"h\x05ssb"
    return with_pickle(path, b"\x80\x02}" + text("model") + inner + b"s.")


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip bomb": (zip_bomb, "its record archive/data.pkl would grow from .* to 67108864 bytes"),
    "data bomb": (data_bomb, "its record archive/data/0 would grow from .* to 67108864 bytes"),
    "overlapping records": (overlapping, "its records claim [0-9]+ bytes, more than the [0-9]+ of the file"),
    "many steps": (many_steps, f"more than {MAX_STEPS} steps"),
    "large pickle": (large_pickle, "nothing"),
    "a wide layer": (wide, "nothing"),
    "many records": (many_records, "nothing"),
    "layers in layers": (laughs, "its layers go on beyond"),
    "a layer in itself": (itself, "its layers go on beyond 20000 or 12 deep"),
}
IN_ITS_OWN_PROCESS: list[tuple[Callable[[Path], Path], str]] = [
    (memo_bomb, "more than 512 MB of memory"),
    (nested, "ended with code|nested too deeply|a dict with a model|damaged"),
    (many_objects, "not a dict with a model|more than"),
]


@pytest.mark.parametrize("name", list(BOMBS))
def test_what_would_take_too_much_is_refused_before_it_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = BOMBS[name]
    path = make(tmp_path / "x.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_in_this_process(monkeypatch)
    refused(path, said, UnsafeFileError)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 64


@pytest.mark.slow
@pytest.mark.parametrize(("make", "said"), IN_ITS_OWN_PROCESS)
def test_memory_and_time_stay_bounded(
    make: Callable[[Path], Path], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = read_in_a_fork(monkeypatch)
    path = make(tmp_path / "x.pt")
    try:
        answer = torch_checkpoint.read_in_sandbox(path).decode()
    except ValueError as error:
        answer = str(error)
    assert re.search(said, answer), answer
    assert "nothing of it was run" in answer or "InputError" in answer
    assert taken[0] < MEMORY_BOUND_MB


def test_a_file_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)
    with (tmp_path / "x.pt").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate((4 << 30) + 1)  # holes: takes no room on the disk
    refused(tmp_path / "x.pt", "takes 4294967297 bytes, more than the 4294967296 that are read")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"MEMORY_LIMIT_BYTES": 24 << 20}, "takes more than 24 MB of memory"),
        ({"SECONDS_LIMIT": 1}, "s of processor time"),
    ],
)
def test_the_process_that_reads_is_stopped_at_its_limits(
    limits: dict[str, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in_a_fork(monkeypatch, **limits)
    refused(many_objects(tmp_path / "x.pt"), said)


def test_the_process_limits_itself() -> None:
    process = ForkedProcess("tests.model.sandboxed:limited")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    in_use, memory, *others = json.loads(output)
    assert others == [[60, 60], [0, 0], [0, 0]]
    assert MEMORY_LIMIT_BYTES < memory[0] - in_use + 1000 < MEMORY_LIMIT_BYTES + (16 << 20)
    assert memory[1] == memory[0] + 9 * 1000


def test_nothing_is_imported_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    trap = f"open({str(marker)!r}, 'w').close()"
    for name in ("zipfile.py", "json.py", "torch.py", "anchorite.py", "sitecustomize.py", "models.py"):
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
    monkeypatch.setattr(torch_checkpoint, "_START", "import time, os; print(os.getpid(), flush=True); time.sleep(1000)")
    monkeypatch.setattr(torch_checkpoint, "WAIT_SECONDS", 0.5)
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
        ("print('{\"part\": 1}')", "not understood"),
        ('print(\'{"refused": "SystemExit", "message": "odd"}\')', "odd"),
        ("print('{}')", "not understood"),
    ],
)
def test_an_answer_that_is_none_is_a_refusal(
    start: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_checkpoint, "_START", start)
    (tmp_path / "x.pt").write_bytes(b"x")
    refused(tmp_path / "x.pt", said)


def test_importing_takes_memory_by_the_size_of_the_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)
    path = save_checkpoint(tmp_path / "x.pt", foreign_model(random_detector(), ["a", "b", "c"]))
    import_checkpoint(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with zipfile.ZipFile(path, "a") as archive, archive.open("x/data/999999", "w", force_zip64=True) as record:
        for _ in range(400):
            record.write(bytes(1 << 20))  # a record that nothing refers to
    import_checkpoint(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 64
