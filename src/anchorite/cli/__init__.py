"""The command line: parse, call, print; nothing else. Commands are imported when they are run."""

from __future__ import annotations

import sys

from cyclopts import App, CycloptsError

from anchorite import __version__
from anchorite.errors import AnchoriteError, StorageError

_HELP = """Train, check, explain and ship anchor-based YOLO detectors.

Start with `anchorite demo`, or with your own photographs: `anchorite train DATA`.
"""

# First lines of the commands' own help, here so that the overview imports none of them.
_COMMANDS = {
    "demo": "Train on synthetic scenes, validate, draw and report: the whole way in minutes.",
    "train": "Train a detector on a folder of labelled images (YOLO, COCO or Pascal VOC).",
    "validate": "Measure weights on a labelled split: COCO mAP in all, by size and by class.",
    "predict": "Find objects in images: draws them, and writes them as JSON and YOLO txt.",
    "report": "Write the report page of a run anew.",
    "recipes": "List the built-in recipes, or print one as YAML to start your own from.",
}


def build_app() -> App:
    """The command tree; commands are import paths, so that help needs neither torch nor matplotlib."""
    app = App(name="anchorite", help=_HELP, version=__version__, help_format="markdown")
    for name, help_text in _COMMANDS.items():
        app.command(f"anchorite.cli.{name}:{name}", help=help_text)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: see DESIGN, "Runs and files"."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    sys.exit(run(words, debug))


def run(words: list[str], debug: bool = False) -> int:
    """The exit code of a command; errors of the user's are printed to stderr without a traceback unless `debug`."""
    try:
        build_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _refuse(f"{error}\n`anchorite --help` and `anchorite COMMAND --help` list what there is", 2)
    except AnchoriteError as error:
        if debug:
            raise
        return _refuse(str(error), error.exit_code)
    except OSError as error:
        if debug:
            raise
        return _refuse(f"{error.filename or 'input/output'}: {error.strerror or error}", StorageError.exit_code)
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)
    return 0


def _refuse(message: str, code: int) -> int:
    print(f"anchorite: {message}", file=sys.stderr)
    return code
