"""The commands, and messages on a command line that cannot be understood."""

from __future__ import annotations

import difflib

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

# First lines of the commands' own help, here so that the overview imports none of them.
COMMANDS = {
    "demo": "Train on synthetic scenes, validate, draw and report, in minutes.",
    "train": "Train a detector on a folder of labelled images (YOLO, COCO or Pascal VOC).",
    "validate": "Measure weights on a labelled split: COCO mAP in all, by size and by class.",
    "predict": "Find objects in images and videos: draws them, and writes them as JSON and YOLO txt.",
    "explain": "Show on one page which anchors and cells are assigned to which box and why, and what each box costs.",
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
    "export": "Write weights as ONNX, OpenVINO or torch.export, once their output is proved to be PyTorch's.",
    "import": "Turn a checkpoint of the original family into weights, without running anything of it.",
    "recipes": "List the built-in recipes, or print one as YAML to start your own from.",
}
_WORDS = {
    "train": "DATA",
    "validate": "WEIGHTS DATA",
    "predict": "WEIGHTS SOURCE...",
    "explain": "DATA",
    "inspect": "DATA",
    "suspects": "DATA --weights WEIGHTS",
    "serve": "WEIGHTS",
    "tune": "DATA",
    "anchors": "DATA",
    "convert": "DATA OUT --to yolo|coco|voc|shards",
    "split": "DATA OUT",
    "runs": "[RUN]",
    "report": "RUN [RUN...]",
    "benchmark": "[NAME]",
    "export": "WEIGHTS",
    "import": "SOURCE OUT",
    "recipes": "[NAME]",
}
# Commands that share a module, or a function that cannot be called like the command.
_FUNCTIONS = {
    "demo": "train:demo",
    "explain": "report:explain",
    "suspects": "report:suspects",
    "inspect": "datasets:inspect",
    "anchors": "datasets:anchors",
    "convert": "datasets:convert",
    "split": "datasets:split",
    "recipes": "runs:recipes",
    "export": "weights:export",
    "import": "weights:import_weights",
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
_GLOBAL_FLAGS = ("--help", "--version", "--debug")


def function_of(command: str) -> str:
    """The import path of a command's function, as cyclopts takes it."""
    return f"anchorite.cli.{_FUNCTIONS.get(command, f'{command}:{command}')}"


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
    usage = " ".join(filter(None, ["anchorite", command, _WORDS.get(command), "[OPTIONS]"]))
    where = f"usage: {usage}; all of them: anchorite {command} --help"
    if isinstance(error, UnusedCliTokensError):
        extra = " ".join(repr(word) for word in error.unused_tokens or ())
        return f"{command}: {extra} is one word too many; quote a name that has spaces\n{where}"
    if isinstance(error, MissingArgumentError) and _is_positional(error):
        return f"{command}: {_word(error)} is missing{_what_it_is(error)}\n{where}"
    if isinstance(error, UnknownOptionError) and (meant := _familiar(error)):
        return f"{command}: {meant}\n{where}"
    return f"{command}: {error}\n{where}"


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
    help_text = (error.argument.parameter.help or "") if error.argument is not None else ""
    return f": {help_text[0].lower()}{help_text[1:].rstrip('.')}" if help_text else ""


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
