"""What is said about an error, and the exit code: see DESIGN, "Runs and files"."""

from __future__ import annotations

import difflib
import os
import sys

import cyclopts

from anchorite.errors import (
    FROM_RANK,
    AnchoriteError,
    InputError,
    NoMemoryError,
    ReportedByPeer,
    StorageError,
    is_out_of_memory,
)

RESUME_HINT = "to go on with the run:"  # begins the note on an error that ended a run which can be resumed
_OUTPUT_CLOSED = 128 + 13  # as the shell reports a program that wrote into a pipe which `head` had left
# Flags here, each with what other trainers call it: docs/other-trainers.md.
_FAMILIAR_FLAGS = {
    "--batch": ("--batch-size",),
    "--class-agnostic": ("--agnostic-nms",),
    "--confidence": ("--conf", "--conf-thres"),
    "--image-size": ("--img", "--img-size", "--imgsz"),
    "--iou-threshold": ("--iou", "--iou-thres"),
    "--max-detections": ("--max-det",),
    "--model": ("--cfg",),
    "--out": ("--exist-ok", "--name", "--project"),
    "--precision": ("--half",),
    "--recipe": ("--hyp",),
    "--weights": ("--pretrained",),
}
_GLOBAL_FLAGS = ("--help", "--version", "--debug")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: everything is closed on the way out."""


def tell(error: BaseException, debug: bool = False) -> int | None:
    """Print what ended a command to stderr and return the exit code; None for what keeps its traceback.

    That is a defect of ours, and with `debug` every error. Hints on how to go on with a run are printed, too.
    """
    ended = _ending(error)
    if ended is None or (debug and not isinstance(error, KeyboardInterrupt)):
        return None
    message, code = ended
    notes = getattr(error, "__notes__", ())
    text = "\n".join(filter(None, [message, *(note for note in notes if note.startswith(RESUME_HINT))]))
    # Under torchrun, rank 0 prints what fails on all ranks, and any rank its own; nobody what another rank has printed.
    rank = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    is_own = any(note.startswith(FROM_RANK) for note in notes) and not isinstance(error, KeyboardInterrupt)
    if text and (rank == 0 or is_own) and not isinstance(error, ReportedByPeer):
        print(f"anchorite: {f'rank {rank}: ' if rank else ''}{text}", file=sys.stderr)
    return code


def _ending(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit code; None for a defect of ours, which keeps its traceback."""
    if isinstance(error, cyclopts.CycloptsError):
        return _about_usage(error), InputError.exit_code
    if isinstance(error, AnchoriteError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
    if isinstance(error, BrokenPipeError | SystemExit):  # the second is how rich reports the first
        return "", _OUTPUT_CLOSED
    if is_out_of_memory(error):
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return f"memory ran out: {first_line}\nuse a smaller --batch or --image-size", NoMemoryError.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}", StorageError.exit_code
    return None


def _about_usage(error: cyclopts.CycloptsError) -> str:
    """What is wrong with the words of a command line, and where to read how they should be."""
    command, said = " ".join(error.command_chain or ()), str(error)
    if isinstance(error, cyclopts.UnknownCommandError):
        word = (error.unused_tokens or [""])[0]
        if word in ("help", "version"):
            return f"{word}: no such command; write anchorite --{word}"
        if not word.startswith("-"):
            return f"{said.partition(' Available commands:')[0]}\nall commands: anchorite --help"
        close = difflib.get_close_matches(word, _GLOBAL_FLAGS, n=1)
        meant = f" Did you mean {close[0]}?" if close else " The command comes first: anchorite COMMAND ..."
        return f"Unknown option: {word}.{meant}\nsee anchorite --help"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        extra = " ".join(map(repr, error.unused_tokens or ()))
        said = f"{extra} is one word too many; quote a name that has spaces"
    elif isinstance(error, cyclopts.MissingArgumentError):
        argument = error.argument
        # Else it is the value of a flag that is missing.
        if argument is not None and argument.required and not argument.tokens and error.keyword is None:
            name = word = argument.name.lstrip("-").upper()
            if argument.field_info.kind is argument.field_info.KEYWORD_ONLY:
                name = f"{argument.name} {word}"
            what = argument.parameter.help or ""
            said = f"{name} is missing: {what[:1].lower()}{what[1:-1]}"
    elif isinstance(error, cyclopts.UnknownOptionError):
        said = _about_option(error) or said
    usage = str(error.app and error.app.usage).removeprefix("Usage: ")
    return f"{command}: {said}\nusage: {usage}; all of them: anchorite {command} --help"


def _about_option(error: cyclopts.UnknownOptionError) -> str:
    """What a flag of other trainers is called here, if this command has it; else an empty string."""
    from anchorite.recipe_names import other_names
    from anchorite.train.recipe import field_names

    flag = (error.token.keyword or error.token.value).partition("=")[0]
    known = {name for argument in error.argument_collection for name in argument.names}
    ours = next((ours for ours, others in _FAMILIAR_FLAGS.items() if flag in others), None)
    if ours in known:
        return f"unknown option {flag}: here it is {ours}"
    if "--set" not in known:
        return ""
    name = flag.lstrip("-").replace("-", "_")
    fields = [field for field in field_names() if field.rsplit(".", 1)[-1] == name]
    if other := other_names().get(name):
        if not other.field:
            return f"unknown option {flag}: nothing here does what it does elsewhere: {other.note}"
        fields = [other.field]
    return f"unknown option {flag}: it is a field of the recipe: --set {fields[0]}=VALUE" if len(fields) == 1 else ""
