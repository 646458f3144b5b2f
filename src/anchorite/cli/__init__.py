"""The command line: parse, call, print; nothing else."""

from __future__ import annotations

import _thread
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cyclopts import App, CycloptsError, Parameter

from anchorite import __version__
from anchorite.cli.usage import usage_message
from anchorite.errors import FROM_RANK, AnchoriteError, InputError, ReportedByPeer, StorageError

_HELP = """Train, check, explain and ship anchor-based YOLO detectors.

Start with `anchorite demo`, or with your own photographs: `anchorite train DATA`.
With `--debug`, any command shows the traceback of an error.
"""

RESUME_HINT = "to go on with the run:"  # begins the note on an error that ended a run which can be resumed
_OUTPUT_CLOSED = 128 + 13  # as the shell reports a program that wrote into a pipe which `head` had left


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: everything is closed on the way out."""


def build_app() -> App:
    """The command tree. Commands import torch and matplotlib when they are run, so that help waits for neither."""
    from anchorite.cli import benchmark, datasets, predict, report, runs, serve, train, tune, validate, weights

    app = App(
        name="anchorite",
        help=_HELP,
        version=__version__,
        help_format="markdown",
        default_parameter=Parameter(negative=""),  # no --no-FLAG and --empty-FLAG
        suppress_keyboard_interrupt=False,  # else it would exit by itself, without a word on how to go on
    )
    words: dict[Callable[..., None], str] = {
        train.demo: "",
        train.train: "DATA",
        validate.validate: "WEIGHTS DATA",
        predict.predict: "WEIGHTS SOURCE...",
        report.explain: "DATA",
        datasets.inspect: "DATA",
        report.suspects: "DATA --weights WEIGHTS",
        serve.serve: "WEIGHTS",
        tune.tune: "DATA",
        datasets.anchors: "DATA",
        datasets.convert: "DATA OUT --to yolo|coco|voc|shards",
        datasets.split: "DATA OUT",
        runs.runs: "[RUN]",
        report.report: "RUN [RUN...]",
        benchmark.benchmark: "[WHICH]",
        weights.export: "WEIGHTS",
        weights.import_weights: "SOURCE OUT",
        runs.recipes: "[NAME]",
    }
    for command, positional in words.items():
        name = command.__name__.removesuffix("_weights")
        usage = " ".join(filter(None, ["Usage: anchorite", name, positional, "[OPTIONS]"]))
        app.command(command, name=name, usage=usage)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: see DESIGN, "Runs and files"."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A line is shown when it is printed, also in a pipe, and whatever the terminal cannot spell is escaped.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _send_again
    code = run(words, debug)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not break into the way out
    _give_up_broken_stdout()
    sys.exit(code)


def run(words: list[str], debug: bool = False) -> int:
    """The exit code of a command; errors of the user's are printed to stderr without a traceback unless `debug`."""
    try:
        build_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # an error of the output should be told, too
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        ended = _ending(error)
        if ended is None or (debug and not isinstance(error, KeyboardInterrupt)):
            raise
        message, code = ended
        hints = [note for note in getattr(error, "__notes__", ()) if note.startswith(RESUME_HINT)]
        text = "\n".join(filter(None, [message, *hints]))
        if text and (prefix := _prefix(error)):
            print(f"{prefix}: {text}", file=sys.stderr)
        return code
    return 0


def _prefix(error: BaseException) -> str:
    """Who prints an error: rank 0 what fails on all ranks, any rank its own; "" for what another rank has printed."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by torchrun
    rank = int(os.environ.get("RANK", "0")) if launched else 0
    if isinstance(error, ReportedByPeer):
        return ""
    if rank == 0:
        return "anchorite"
    is_its_own = any(note.startswith(FROM_RANK) for note in getattr(error, "__notes__", ()))
    return f"anchorite: rank {rank}" if is_its_own and not isinstance(error, KeyboardInterrupt) else ""


def _ending(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit code; None for a defect of ours, which keeps its traceback."""
    if isinstance(error, CycloptsError):
        return usage_message(error), InputError.exit_code
    if isinstance(error, AnchoriteError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
    if isinstance(error, BrokenPipeError | SystemExit):  # the second is how rich reports the first
        return "", _OUTPUT_CLOSED
    if _is_out_of_memory(error):
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return f"memory ran out: {first_line}\nuse a smaller --batch or --image-size", InputError.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}", StorageError.exit_code
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's and NumPy's error, CUDA's, the system's, or that of torch's CPU allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send an interrupt again that Python raised inside a destructor, where it would be reported and forgotten."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
    # A moment later, from a thread: sent from here, it would be raised in here and lost once more.
    threading.Timer(0.05, _thread.interrupt_main, [number]).start()


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _give_up_broken_stdout() -> None:
    """Where stdout takes nothing more, drop the rest, instead of Python's complaint at exit about the same."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
