"""Real processes in milliseconds: forked from one that has imported the package and run nothing.

A fresh `python -m anchorite train` imports for seconds before it does anything. Here a server imports once for all
tests of a process and forks a child for each order: with a session, standard streams, folder and environment of its
own, and with the exit code that the interpreter would give. What Python and libraries read when they start or are
imported (PYTHONPATH, OMP_NUM_THREADS = 1) is the server's: a test of that, or of imports, starts a fresh process.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import io
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import mkdtemp
from typing import Any, NoReturn, TextIO

_ADDRESS = "ANCHORITE_TEST_SERVER"  # the variable by which a forked process finds the server that forked it
SMALL_VARIABLE = "ANCHORITE_TEST_SMALL_NETWORKS"
"""Set for processes with the networks of `tests.small.small_networks`."""
_COMMANDS = ("datasets", "display", "measure", "predict", "report", "train", "weights")
_ROOMS = ("benchmark", "data.convert", "export", "inspect", "report.conclusion", "report.explain", "serve", "tune")
_IMPORTED = (
    *(f"anchorite.cli.{name}" for name in _COMMANDS),
    *(f"anchorite.{name}" for name in _ROOMS),
    *("torch._dynamo", "torch.distributed.run", "torch.profiler", "cv2", "faster_coco_eval", "uvicorn", "xml.sax"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "rich.live", "rich.progress", "rich.table"),
)


class ForkedProcess:
    """A process that calls "module:function" with JSON arguments; what tests need of `subprocess.Popen`, as text.

    It ends with what the function returns, 0 for None.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    def __init__(
        self,
        function: str,
        *arguments: Any,
        stdin: int | None = DEVNULL,
        stdout: int | None = PIPE,
        stderr: int | None = PIPE,
        cwd: str | os.PathLike[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.returncode: int | None = None
        order = {
            "function": function,
            "arguments": arguments,
            "cwd": str(cwd or Path.cwd()),
            "environment": (os.environ if env is None else env) | {_ADDRESS: server()},
        }
        self._answers = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answers.connect(server())
        with ExitStack() as stack:
            streams = []
            for number, (name, place) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
                if place == PIPE:
                    ends = os.pipe()
                    mine, place = ends if number else ends[::-1]
                    setattr(self, name, os.fdopen(mine, "r" if number else "w", encoding="utf-8"))
                    stack.callback(os.close, place)
                elif place == DEVNULL:
                    place = os.open(os.devnull, os.O_RDWR)
                    stack.callback(os.close, place)
                streams.append(number if place is None else place)
            socket.send_fds(self._answers, [json.dumps(order).encode()], streams)
        self.pid = int(self._answers.recv(32))

    def poll(self) -> int | None:
        """The exit code, minus the signal that ended it; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = int(self._answers.recv(32))
            self._answers.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it still says on stdout and stderr until it has ended; it is killed where that takes longer."""
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
            output, errors = (reading.result(timeout) for reading in said)
        self.stdout.close()
        self.stderr.close()
        return output, errors

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


@cache
def server() -> str:
    """The address of the server, which the first call starts; in a forked process, of the one that forked it."""
    if _ADDRESS in os.environ:
        return os.environ[_ADDRESS]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        address = str(Path(mkdtemp()) / "server")  # a file: an abstract name would end at a network namespace
        listener.bind(address)
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes", str(listener.fileno())],
            stdin=PIPE,
            pass_fds=[listener.fileno()],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        atexit.register(process.kill)  # where this process is killed itself, the end of stdin ends the server
        return address


def serve(listener: socket.socket) -> Callable[[], object]:
    """Fork a process for each order until stdin ends; returns in each of them, with what it is to do."""
    for module in _IMPORTED:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has no threads but the one that forks"
    gc.collect()
    gc.freeze()
    with selectors.DefaultSelector() as selector, listener:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == 0:
                    sys.exit()
                if key.fileobj is not listener:
                    child, answers = key.data
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(child, 0)
                    with answers, suppress(OSError):  # nobody waits for it any more
                        answers.send(str(os.waitstatus_to_exitcode(status)).encode())
                    continue
                answers, _ = listener.accept()
                content, streams, _, _ = socket.recv_fds(answers, 1 << 20, 3)
                order = json.loads(content)
                with suppress(Exception):  # for all children to come; the child tells what is wrong with it
                    importlib.import_module(order["function"].partition(":")[0])
                child = os.fork()
                if child == 0:
                    for other in list(selector.get_map().values()):
                        if other.data:
                            os.close(other.fd)
                            other.data[1].close()
                    answers.close()
                    return partial(_run, order, streams)
                for stream in streams:
                    os.close(stream)
                answers.send(str(child).encode())
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, answers))


def _run(order: dict[str, Any], streams: list[int]) -> NoReturn:
    """Make this process a fresh one in a session of its own, call the function, and end with its exit code."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", sys.stdout.encoding).partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        kind = "backslashreplace" if name == "stderr" else errors or sys.stdout.errors
        binary = os.fdopen(number, "wb" if number else "rb", closefd=False)
        stream = io.TextIOWrapper(binary, encoding, kind, line_buffering=name == "stderr" or os.isatty(number))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    code = 1
    with_networks = ExitStack()
    try:
        if SMALL_VARIABLE in os.environ:
            with_networks.enter_context(importlib.import_module("tests.small").small_networks())
        module, _, function = order["function"].partition(":")
        code = getattr(importlib.import_module(module), function)(*order["arguments"]) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    # As the interpreter ends, but for taking apart everything that the server imported, which takes half a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))()
