"""Numbers as label files should show them: the shortest spelling that still means the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

_RELATIVE_TOLERANCE = 1e-10


def shortest_close(value: float) -> str:
    """A plain decimal within 1e-10 of `value`, of six decimals where they suffice: undoes rounding errors."""
    return _spelled(_shortest(value, lambda rounded: abs(rounded - value) <= _RELATIVE_TOLERANCE * abs(value), 6))


def exact(value: float) -> str:
    """A plain decimal that reads back as the very same number."""
    return _spelled(value)


def json_text(content: object) -> str:
    """JSON with a line for each entry of its lists, in plain ASCII."""
    assert isinstance(content, dict)
    parts = [f"{json.dumps(key)}: {_json_value(value)}" for key, value in content.items()]
    return "{" + ",\n".join(parts) + "}\n"


def side_between(low: float, high: float) -> float:
    """The side s, as short as can be, for which low + s is exactly `high` in floating point.

    Where `high` came of such a sum there is one; for a few other pairs there is none, and the sum is off by rounding.
    """
    side = high - low
    for candidate in (side, math.nextafter(side, 0), math.nextafter(side, math.inf)):
        if low + candidate == high:
            return _shortest(candidate, lambda rounded: low + rounded == high)
    return side


def whole_if_possible(value: float) -> float | int:
    """The same number, as an int where it is whole."""
    return int(value) if float(value).is_integer() else float(value)


def _json_value(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
    return json.dumps(value)


def _shortest(value: float, is_good: Callable[[float], bool], fewest_digits: int = 0) -> float:
    for digits in range(fewest_digits, 17):
        rounded = round(value, digits)
        if rounded > 0 and is_good(rounded):
            return rounded
    return value


def _spelled(value: float) -> str:
    if float(value).is_integer():
        return str(int(value))
    text = repr(float(value))
    return text if "e" not in text else format(float(value), ".40f").rstrip("0")
