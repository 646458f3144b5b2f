"""What the user is told about a command line that cannot be understood."""

from __future__ import annotations

import difflib
import errno

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnusedCliTokensError

_USAGE = {
    "demo": "anchorite demo",
    "train": "anchorite train DATA",
    "validate": "anchorite validate WEIGHTS DATA",
    "predict": "anchorite predict WEIGHTS SOURCE...",
    "inspect": "anchorite inspect DATA",
    "runs": "anchorite runs [RUN]",
    "report": "anchorite report RUN [RUN...]",
    "import": "anchorite import SOURCE OUT",
    "recipes": "anchorite recipes [NAME]",
    "benchmark": "anchorite benchmark [NAME]",
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
        return f"{command}: {_word(error)} is missing\n{where}"
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
    return error.argument.name.lstrip("-").upper() if error.argument is not None else ""
