"""What is said about a command line that cannot be understood."""

from __future__ import annotations

import difflib

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

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


def usage_message(error: CycloptsError) -> str:
    """What is wrong with the words of a command line, and where to read how they should be."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnknownCommandError):
        return _about_command(error)
    said = str(error)
    if isinstance(error, UnusedCliTokensError):
        extra = " ".join(map(repr, error.unused_tokens or ()))
        said = f"{extra} is one word too many; quote a name that has spaces"
    elif isinstance(error, MissingArgumentError):
        said = _about_missing(error) or said
    elif isinstance(error, UnknownOptionError):
        said = _about_option(error) or said
    usage = str(error.app and error.app.usage).removeprefix("Usage: ")
    return f"{command}: {said}\nusage: {usage}; all of them: anchorite {command} --help"


def _about_command(error: UnknownCommandError) -> str:
    word = (error.unused_tokens or [""])[0]
    if word in ("help", "version"):
        return f"{word}: no such command; write anchorite --{word}"
    if not word.startswith("-"):
        first = str(error).partition(" Available commands:")[0]
        return f"{first}\nall commands: anchorite --help"
    close = difflib.get_close_matches(word, _GLOBAL_FLAGS, n=1)
    meant = f" Did you mean {close[0]}?" if close else " The command comes first: anchorite COMMAND ..."
    return f"Unknown option: {word}.{meant}\nsee anchorite --help"


def _about_missing(error: MissingArgumentError) -> str:
    """Which word is missing and what it is; an empty string where it is the value of a flag that was given."""
    argument = error.argument
    if argument is None or not argument.required or argument.tokens or error.keyword is not None:
        return ""
    word = argument.name.lstrip("-").upper()
    by_flag = argument.field_info.kind is argument.field_info.KEYWORD_ONLY
    help_text = argument.parameter.help or ""
    return f"{f'{argument.name} {word}' if by_flag else word} is missing: {help_text[:1].lower()}{help_text[1:-1]}"


def _about_option(error: UnknownOptionError) -> str:
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
    if other := other_names().get(name):
        without = f"unknown option {flag}: nothing here does what it does elsewhere: {other.note}"
        return (
            f"unknown option {flag}: it is a field of the recipe: --set {other.field}=VALUE" if other.field else without
        )
    of_this_name = [field for field in field_names() if field.rsplit(".", 1)[-1] == name]
    field = of_this_name[0] if len(of_this_name) == 1 else ""
    return f"unknown option {flag}: it is a field of the recipe: --set {field}=VALUE" if field else ""
