"""The command line: parse, call, print; nothing else. Commands are imported when they are run."""

from __future__ import annotations

import _thread
import io
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from cyclopts import App, CycloptsError

from anchorite import __version__
from anchorite.cli.messages import hints, is_out_of_memory, usage_message
from anchorite.errors import AnchoriteError, InputError, ReportedByPeer, StorageError
from anchorite.launch import FROM_RANK, launched_rank

_HELP = """Train, check, explain and ship anchor-based YOLO detectors.

Start with `anchorite demo`, or with your own photographs: `anchorite train DATA`.
With `--debug`, any command shows the traceback of an error.
"""

# First lines of the commands' own help, here so that the overview imports none of them.
_COMMANDS = {
    "demo": "Train on synthetic scenes, validate, draw and report: the whole way in minutes.",
    "train": "Train a detector on a folder of labelled images (YOLO, COCO or Pascal VOC).",
    "validate": "Measure weights on a labelled split: COCO mAP in all, by size and by class.",
    "predict": "Find objects in images and videos: draws them, and writes them as JSON and YOLO txt.",
    "explain": "Show on one page which anchors and cells answer for which box and why, and what each box costs.",
    "inspect": "List what is wrong with a dataset (exit 2: labels or images get lost, or leak); correct it in a copy.",
    "suspects": "Rank labels that are likely wrong: other classes, missing, misplaced, doubled; as a page and as CSV.",
    "serve": "Answer requests with detections: POST an image, get JSON; a page to drop an image on.",
    "tune": "Search recipe fields for a higher mAP on val; the result is a recipe file.",
    "anchors": "Fit anchors to the training boxes and compare them with the default ones.",
    "convert": "Copy a dataset into another label format; read back and compared before it appears.",
    "split": "Copy a dataset with new splits: each class in its share, images of one view never in two splits.",
    "runs": "Show a run's state, its checkpoints, each verified, and what a resume would do.",
    "report": "Write the page of a run anew, or one that compares runs; or show it live while it trains (--serve).",
    "benchmark": "Measure how fast this machine trains and predicts.",
    "export": "Write weights as ONNX, OpenVINO or torch.export, once their answers are proved to be PyTorch's.",
    "import": "Turn a checkpoint of the original family into weights, without running anything of it.",
    "recipes": "List the built-in recipes, or print one as YAML to start your own from.",
}
_MODULES = {"import": "import_weights"}  # where module and function cannot be called like the command
_OUTPUT_CLOSED = 128 + 13  # as the shell reports a program that wrote into a pipe which `head` had left


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: everything is closed on the way out."""


def build_app() -> App:
    """The command tree; commands are import paths, so that help needs neither torch nor matplotlib."""
    app = App(
        name="anchorite",
        help=_HELP,
        version=__version__,
        help_format="markdown",
        suppress_keyboard_interrupt=False,  # else it would exit by itself, without a word on how to go on
    )
    for name, help_text in _COMMANDS.items():
        module = _MODULES.get(name, name)
        app.command(f"anchorite.cli.{module}:{module}", name=name, help=help_text)
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
        lines = [line for line in (message, *hints(error)) if line]
        if lines and (teller := _teller(error)):
            print(f"{teller}: " + "\n".join(lines), file=sys.stderr)
        return code
    return 0


def _teller(error: BaseException) -> str:
    """Who tells an error: of several ranks the first one what fails on all alike; nobody what another has told."""
    rank = launched_rank()
    if isinstance(error, ReportedByPeer):
        return ""
    if rank == 0:
        return "anchorite"
    is_its_own = any(note.startswith(FROM_RANK) for note in getattr(error, "__notes__", ()))
    return f"anchorite: rank {rank}" if is_its_own and not isinstance(error, KeyboardInterrupt) else ""


def _ending(error: BaseException) -> tuple[str, int] | None:
    """What to tell the user and the exit code; None for a defect of ours, which deserves its traceback."""
    if isinstance(error, CycloptsError):
        return usage_message(error), InputError.exit_code
    if isinstance(error, AnchoriteError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
    if isinstance(error, BrokenPipeError | SystemExit):  # the second is how rich reports the first
        return "", _OUTPUT_CLOSED
    if is_out_of_memory(error):
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return f"memory ran out: {first_line}\nuse a smaller --batch or --image-size", InputError.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}", StorageError.exit_code
    return None


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
