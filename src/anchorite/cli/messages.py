"""What the user is told about a command line that cannot be understood."""

from __future__ import annotations

import difflib
import errno

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

_USAGE = {
    "demo": "anchorite demo",
    "train": "anchorite train DATA",
    "validate": "anchorite validate WEIGHTS DATA",
    "predict": "anchorite predict WEIGHTS SOURCE...",
    "explain": "anchorite explain DATA",
    "inspect": "anchorite inspect DATA",
    "suspects": "anchorite suspects DATA --weights WEIGHTS",
    "serve": "anchorite serve WEIGHTS",
    "tune": "anchorite tune DATA",
    "anchors": "anchorite anchors DATA",
    "convert": "anchorite convert DATA OUT --to yolo|coco|voc|shards",
    "split": "anchorite split DATA OUT",
    "runs": "anchorite runs [RUN]",
    "report": "anchorite report RUN [RUN...]",
    "export": "anchorite export WEIGHTS",
    "import": "anchorite import SOURCE OUT",
    "recipes": "anchorite recipes [NAME]",
    "benchmark": "anchorite benchmark [NAME]",
}
# Flags that other trainers have for what some command here has, too: docs/other-trainers.md.
_FAMILIAR_FLAGS = {
    "--agnostic-nms": "--class-agnostic",
    "--batch-size": "--batch",
    "--cfg": "--model",
    "--conf": "--confidence",
    "--conf-thres": "--confidence",
    "--exist-ok": "--out",
    "--half": "--precision",
    "--hyp": "--recipe",
    "--img": "--image-size",
    "--img-size": "--image-size",
    "--imgsz": "--image-size",
    "--iou": "--iou-threshold",
    "--iou-thres": "--iou-threshold",
    "--max-det": "--max-detections",
    "--name": "--out",
    "--pretrained": "--weights",
    "--project": "--out",
}
GO_ON = "to go on with the run:"  # begins the note that an error takes along out of a run
_GLOBAL_FLAGS = ("--help", "--version", "--debug")


def usage_message(error: CycloptsError) -> str:
    """What is wrong with the words of a command line, and where to read how they should be."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnknownCommandError):
        word = (error.unused_tokens or [""])[0]
        if word in ("help", "version"):
            return f"{word}: no such command; write anchorite --{word}"
        if not word.startswith("-"):
            first = str(error).partition(" Available commands:")[0]
            return f"{first}\nall commands: anchorite --help"
        close = difflib.get_close_matches(word, _GLOBAL_FLAGS, n=1)
        meant = f" Did you mean {close[0]}?" if close else " The command comes first: anchorite COMMAND ..."
        return f"Unknown option: {word}.{meant}\nsee anchorite --help"
    where = f"usage: {_USAGE.get(command, 'anchorite')} [OPTIONS]; all of them: anchorite {command} --help"
    if isinstance(error, UnusedCliTokensError):
        extra = " ".join(repr(word) for word in error.unused_tokens or ())
        return f"{command}: {extra} is one word too many; quote a name that has spaces\n{where}"
    if isinstance(error, MissingArgumentError) and _is_positional(error):
        return f"{command}: {_word(error)} is missing{_what_it_is(error)}\n{where}"
    if isinstance(error, UnknownOptionError) and (meant := _familiar(error)):
        return f"{command}: {meant}\n{where}"
    return f"{command}: {error}\n{where}"


def hints(error: BaseException) -> list[str]:
    """The notes of an error that are for the user; others hold what only a developer wants."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(GO_ON)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's and NumPy's error, CUDA's, the system's, or that of torch's CPU allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _is_positional(error: MissingArgumentError) -> bool:
    """Whether a word is missing, rather than the value of a flag that was given."""
    argument = error.argument
    return argument is not None and argument.required and not argument.tokens and error.keyword is None


def _word(error: MissingArgumentError) -> str:
    """How the command's usage calls what is missing; with its flag where it can be given by that alone."""
    if error.argument is None:
        return ""
    name = error.argument.name.lstrip("-").upper()
    by_flag = error.argument.field_info.kind is error.argument.field_info.KEYWORD_ONLY
    return f"{error.argument.name} {name}" if by_flag else name


def _what_it_is(error: MissingArgumentError) -> str:
    """Its help as the end of a sentence."""
    told = (error.argument.parameter.help or "") if error.argument is not None else ""
    return f": {told[0].lower()}{told[1:].rstrip('.')}" if told else ""


def _familiar(error: UnknownOptionError) -> str:
    """What a flag of other trainers is called here, if this command has it; else an empty string."""
    from anchorite.train.recipe_names import FAMILIAR_NAMES, WITHOUT_FIELD

    flag = (error.token.keyword or error.token.value).partition("=")[0]
    known = {name for argument in error.argument_collection for name in argument.names}
    name = flag.lstrip("-").replace("-", "_")
    if _FAMILIAR_FLAGS.get(flag) in known:
        return f"unknown option {flag}: here it is {_FAMILIAR_FLAGS[flag]}"
    if "--set" not in known:
        return ""
    if name in WITHOUT_FIELD:
        return f"unknown option {flag}: nothing here does what it does elsewhere: {WITHOUT_FIELD[name]}"
    field = FAMILIAR_NAMES.get(name) or _field_called(name)
    return f"unknown option {flag}: it is a field of the recipe: --set {field}=VALUE" if field else ""


def _field_called(name: str) -> str:
    """The recipe field of this very name or last part of a name, if there is one alone."""
    from anchorite.train.recipe import field_names

    found = [full for full in field_names() if full.rsplit(".", 1)[-1] == name]
    return found[0] if len(found) == 1 else ""
