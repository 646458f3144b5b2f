"""The command line: parse, call, print; nothing else."""

from __future__ import annotations

import _thread
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cyclopts import App, Parameter

from anchorite import __version__
from anchorite.cli.messages import Terminated, tell

_HELP = """Train, check, explain and ship anchor-based YOLO detectors.

Start with `anchorite demo`, or with your own photographs: `anchorite train DATA`.
With `--debug`, any command shows the traceback of an error.
"""


def build_app() -> App:
    """The command tree. Commands import torch and matplotlib when they are run, so that help waits for neither."""
    from anchorite.cli import datasets, measure, predict, report, train, weights

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
        measure.validate: "WEIGHTS DATA",
        predict.predict: "WEIGHTS SOURCE...",
        predict.pseudo: "WEIGHTS FOLDER OUT",
        report.explain: "DATA",
        datasets.inspect: "DATA",
        report.suspects: "DATA --weights WEIGHTS",
        predict.serve: "WEIGHTS",
        train.tune: "DATA",
        datasets.anchors: "DATA",
        datasets.convert: "DATA OUT --to yolo|coco|voc|shards",
        datasets.split: "DATA OUT",
        report.runs: "[RUN]",
        report.report: "RUN [RUN...]",
        measure.benchmark: "[WHICH]",
        weights.export: "WEIGHTS",
        weights.import_weights: "SOURCE OUT",
        train.recipes: "[NAME]",
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

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = _send_again
    code = run(words, debug)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not break into the way out
    try:
        sys.stdout.flush()
    except OSError:  # drop what it takes no more, which Python would complain of once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(words: list[str], debug: bool = False) -> int:
    """The exit code of a command; errors of the user's are printed to stderr without a traceback unless `debug`."""
    try:
        build_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # an error of the output should be told, too
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code = tell(error, debug)
        if code is None:
            raise
        return code
    return 0


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send an interrupt again that Python raised inside a destructor, where it would be reported and forgotten."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
    # A moment later, from a thread: sent from here, it would be raised in here and lost once more.
    threading.Timer(0.05, _thread.interrupt_main, [number]).start()
