"""A machine for the pickles of checkpoints that can only put plain values together.

It knows the instructions that torch.save writes and none that could reach anything outside: no global is imported, no
function of the file is called, and an object is a name with the state that was stored for it.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

from anchorite.errors import AnchoriteError, InputError, UnsafeFileError
from anchorite.model.foreign.allowed import Global, Kind, allowed_global, shown
from anchorite.model.foreign.archive import Archive
from anchorite.model.foreign.tensors import View, storage, view

MAX_STEPS = 2_000_000
"""Most instructions of a pickle, entries copied included; that of size n takes 34 000."""
MAX_INTEGER_BITS = 64

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PLAIN_KEYS = (str, bytes, int, float, bool, type(None))


@dataclass(eq=False)
class Inert:
    """An object of a class of the file: the class's name and, unless it is to be forgotten, the state."""

    kind: Global
    state: dict[Any, Any] = field(default_factory=dict)


def unpickled(content: bytes, archive: Archive) -> Any:
    """What a pickle describes, made of None, numbers, texts, lists, tuples, dicts, `View`s and `Inert` objects.

    Sets become lists. Raises UnsafeFileError naming what would run code or take too much, InputError for a pickle that
    is damaged.
    """
    machine = _Machine(archive)
    try:
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name == "STOP":
                return machine.result()
            machine.step(instruction.name, argument)
    except AnchoriteError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise InputError(f"its pickle is damaged ({shown(str(error))}); copy or download it again") from error
    raise InputError("its pickle is cut off; copy or download it again")


class _Machine:
    """A stack, the stacks below it that a mark has put aside, and the memo."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def result(self) -> Any:
        """What is left at the end, which must be one thing."""
        if self._below or len(self._stack) != 1:
            raise LookupError("it ends in the middle")
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        self._count(1)
        push = self._stack.append
        if name in ("BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in _NUMBERS:
            push(_bounded(argument))
        elif name in _TEXTS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name == "POP":
            self._stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "TUPLE":
            self._push_marked(tuple)
        elif name in _TUPLE_LENGTHS:
            push(tuple(reversed([self._stack.pop() for _ in range(_TUPLE_LENGTHS[name])])))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [self._stack.pop()] if name == "APPEND" else self._marked()
            _expect(self._stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._stack.pop(-2), self._stack.pop()] if name == "SETITEM" else self._marked()
            _expect(self._stack[-1], dict).update(_pairs(items))
        else:
            self._step_with_names(name, argument)

    def _step_with_names(self, name: str, argument: Any) -> None:
        """Carry out one of the instructions that speak of globals and objects."""
        if name == "GLOBAL":
            self._stack.append(allowed_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            wanted = self._stack.pop()
            self._stack.append(allowed_global(self._stack.pop(), wanted))
        elif name == "REDUCE":
            arguments = _expect(self._stack.pop(), tuple)
            self._stack.append(self._called(self._stack.pop(), arguments))
        elif name == "NEWOBJ":
            arguments = _expect(self._stack.pop(), tuple)
            self._stack.append(_made(self._stack.pop(), arguments))
        elif name == "BUILD":
            state = self._stack.pop()
            _restore(self._stack[-1], state)
        elif name == "BINPERSID":
            self._stack.append(storage(self._archive, self._stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            raise UnsafeFileError(f"its pickle has an instruction {name}, which torch.save never writes; nothing ran")

    def _called(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What calling one of the few known functions comes to, done here in its stead."""
        kind = function.kind if isinstance(function, Global) else None
        if kind is Kind.TENSOR:
            return view(arguments)
        if kind is Kind.PARAMETER:
            return _expect(arguments[0], View)
        if kind is Kind.SIZE:
            return _expect(arguments[0], tuple)
        if kind is Kind.FORGOTTEN:
            return Inert(function)
        if kind in (Kind.COLLECTION, Kind.MAPPING) and len(arguments) < 2:
            items = [] if not arguments else _expect(arguments[0], list)
            self._count(len(items))
            return list(items) if kind is Kind.COLLECTION else _pairs([part for pair in items for part in _two(pair)])
        raise UnsafeFileError(
            f"calls {_named(function)}, which no checkpoint of the family does; nothing of it was run"
        )

    def _marked(self) -> list[Any]:
        """What was pushed since the mark, which is gone then."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _push_marked(self, kind: type[tuple[Any, ...]]) -> None:
        items = self._marked()
        self._stack.append(kind(items))

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise UnsafeFileError(f"its pickle has more than {MAX_STEPS} steps; nothing of it was run")


def _made(kind: Any, arguments: tuple[Any, ...]) -> Inert:
    if isinstance(kind, Global) and kind.kind in (Kind.OBJECT, Kind.FORGOTTEN) and not arguments:
        return Inert(kind)
    raise UnsafeFileError(f"makes an object of {_named(kind)}, which no checkpoint of the family does; nothing was run")


def _restore(target: Any, state: Any) -> None:
    """Give an object its state; that of anything else is dropped, such as the attributes of an ordered dict."""
    if isinstance(target, Inert):
        if target.kind.kind is Kind.OBJECT:
            target.state.update(_expect(state, dict))
    elif not isinstance(target, dict):
        raise UnsafeFileError(f"sets the state of {_named(target)}, which has none; nothing was run")


def _bounded(number: float) -> float:
    if isinstance(number, int) and number.bit_length() > MAX_INTEGER_BITS:
        raise UnsafeFileError(f"its pickle has a number of {number.bit_length()} bits; the most is {MAX_INTEGER_BITS}")
    return number


def _pairs(items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    for key in keys:
        # Others are never needed, and the hash of a tuple in a tuple in a tuple ... would end the process.
        if not isinstance(key, _PLAIN_KEYS):
            raise InputError(f"its pickle is damaged ({_named(key)} as a key); copy or download it again")
    return dict(zip(keys, items[1::2], strict=True))


def _two(pair: Any) -> tuple[Any, Any]:
    key, value = _expect(pair, tuple | list)
    return key, value


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where it cannot be")
    return value


def _named(value: Any) -> str:
    if isinstance(value, Inert):
        return f"an object of {_named(value.kind)}"
    return shown(f"{value.module}.{value.name}") if isinstance(value, Global) else f"a {type(value).__name__}"
