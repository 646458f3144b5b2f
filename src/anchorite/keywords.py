"""Keywords of public functions: one that is not known, or whose value does not fit, is told as on the command line."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from anchorite.errors import InputError
from anchorite.reading import shorten
from anchorite.recipe_names import other_names

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
Config = TypeVar("Config")


def nothing_else(_name: str) -> str:
    """What `checks_keywords` knows of names beside those of the function: nothing."""
    return ""


def checks_keywords(
    elsewhere: Callable[[str], str] = nothing_else,
) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """A decorator: a keyword that the function does not have is an InputError that says which may be meant.

    elsewhere: what else a name may stand for, as the end of a message, or an empty text.
    """

    def decorate(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            for name in kwargs:
                if name not in known:
                    hint = elsewhere(name) or suggestion(name, known) or f"; it has {', '.join(known)}"
                    raise InputError(f"{function.__name__}: no keyword {shorten(name)[1:-1]}{hint}")
            return function(*args, **kwargs)

        return call

    return decorate


def config_of(
    kind: Callable[..., Config],
    values: Mapping[str, Any],
    known: Collection[str],
    said: Callable[[str], str] = str,
) -> Config:
    """A pydantic config of these values; InputError naming the value that does not fit, or what an unknown name means.

    known: the names that there are; said: how the user wrote a name.
    """
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        hint = suggestion(name, known) or f"; there are {', '.join(known)}"
        raise InputError(f"{said(shorten(name)[1:-1])}: no such setting{hint}")
    reason = problem["msg"].replace("Input should be", "must be")
    raise InputError(f"{said(name)} {shorten(problem['input'])}: {reason}")


def suggestion(name: str, known: Collection[str]) -> str:
    """Which of the known names may be meant by one that is not, as the end of a message; empty when none is like it.

    That is the one that other trainers call so, the one that begins so, or the one of the nearest spelling.
    """
    other = other_names().get(name)
    near = [other.field.rpartition(".")[2]] if other else []
    near += [one for one in known if one.startswith(name)] + difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return next((f"; did you mean {one}?" for one in near if one in known), "")
