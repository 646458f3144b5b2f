"""Several listeners as one: those that a run stands or falls with, and loggers, which may fail without harm to it."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from anchorite.reading import one_line, printable
from anchorite.train.events import EpochDone, Event, Listener, RunStarted, StepDone

ERRORS_FILE = "logger-errors.txt"  # in the folder of the run


def listeners(*members: Listener) -> Listener:
    """One listener of several, called in this order. What any of them raises ends the run."""

    def hear(event: Event) -> None:
        for member in members:
            member(event)

    return hear


def loggers(*members: Listener, tell: Callable[[str], None] | None = None) -> Listener:
    """One listener of several that cannot end the run: one that raises is dropped, and the others and the run go on.

    tell: takes the one sentence on it, with the logger's name; by default a RuntimeWarning. The traceback is added to
    logger-errors.txt in the folder of the run. Ctrl-C passes, as does what else is no Exception.
    """
    return _Loggers(members, tell or _warn)


class _Loggers:
    """What `loggers` returns."""

    def __init__(self, members: tuple[Listener, ...], tell: Callable[[str], None]) -> None:
        self._members = members
        self._tell = tell
        self._folder: Path | None = None  # known when the run has started

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._folder = event.folder
        for member in self._members:
            try:
                member(event)
            except Exception as error:
                self._drop(member, event, error)

    def _drop(self, member: Listener, event: Event, error: Exception) -> None:
        self._members = tuple(one for one in self._members if one is not member)
        reason = printable(one_line(f"{type(error).__name__}: {error}"))
        told = (
            f"logger {_name(member)} failed at {_moment(event)}: {reason}. It hears no more of this run, which goes on"
        )
        self._tell(f"{told}; {self._kept(told, error)}")

    def _kept(self, told: str, error: Exception) -> str:
        """Where the traceback is; itself where it cannot be kept."""
        trace = "".join(traceback.format_exception(error))
        if self._folder is not None:
            path = self._folder / ERRORS_FILE
            try:
                with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{told}\n{trace}\n")
            except OSError:  # a full disk, perhaps, which may be why the logger failed
                pass
            else:
                return f"traceback: {path}"
        return f"traceback:\n{trace}"


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _name(member: Listener) -> str:
    """What a user calls it: a function's own name, else that of its class."""
    return str(getattr(member, "__qualname__", None) or type(member).__qualname__)


def _moment(event: Event) -> str:
    if isinstance(event, StepDone):
        return f"epoch {event.epoch}, batch {event.batch}"
    if isinstance(event, EpochDone):
        return f"the end of epoch {event.epoch}"
    return type(event).__name__
