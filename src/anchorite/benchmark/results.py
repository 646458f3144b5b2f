"""What benchmarks return: figures, comparisons with a target and a floor, and a whole report as JSON or as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from anchorite.benchmark.timing import Sample, round_ratios

Unit = Literal["s", "B", "img/s", "share"]
_WORD: Mapping[bool | None, str] = MappingProxyType({None: "", True: "met", False: "missed"})


@dataclass(frozen=True)
class Figure:
    """One measured value: a median with its quartiles, or, without quartiles, a single value such as a peak."""

    name: str
    value: float
    unit: Unit = "s"
    quartiles: tuple[float, float] | None = None
    note: str = ""

    @classmethod
    def of(cls, name: str, sample: Sample, note: str = "") -> Figure:
        """The median of a sample of seconds."""
        return cls(name, sample.median, "s", sample.quartiles, note)

    @classmethod
    def per_second(cls, name: str, sample: Sample, num_images: int, note: str = "") -> Figure:
        """Images a second, for calls that make `num_images` each."""
        slow, fast = sample.quartiles[1], sample.quartiles[0]
        return cls(name, num_images / sample.median, "img/s", (num_images / slow, num_images / fast), note)


@dataclass(frozen=True)
class Target:
    """What a ratio should be: at least or at most a value."""

    bound: Literal["at least", "at most"]
    value: float

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.value if self.bound == "at least" else ratio <= self.value


@dataclass(frozen=True)
class Floor:
    """The least that ours could cost on this machine, in the unit of ours, and in words what it counts."""

    value: float
    what: str


@dataclass(frozen=True)
class Comparison:
    """Ours against a yardstick of the same run.

    ratio_of: "faster" is yardstick / ours in seconds (more is better), "cost" is ours / yardstick (less is better).
    spread: quartiles of that ratio round by round.
    """

    name: str
    ours: Figure
    yardstick: Figure
    ratio_of: Literal["faster", "cost"]
    spread: tuple[float, float] | None = None
    target: Target | None = None
    floor: Floor | None = None

    @property
    def ratio(self) -> float:
        above, below = (self.yardstick, self.ours) if self.ratio_of == "faster" else (self.ours, self.yardstick)
        return above.value / below.value if below.value else math.inf

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.target.is_met(self.ratio)


def faster(ours: str, yardstick: str, samples: dict[str, Sample], name: str, at_least: float | None) -> Comparison:
    """How many times less time ours takes; the figures carry the samples' names."""
    spread = round_ratios(samples[yardstick], samples[ours])
    target = None if at_least is None else Target("at least", at_least)
    return Comparison(
        name, Figure.of(ours, samples[ours]), Figure.of(yardstick, samples[yardstick]), "faster", spread, target
    )


def cost(ours: str, yardstick: str, samples: dict[str, Sample], name: str, at_most: float | None) -> Comparison:
    """How many times the yardstick's time ours takes."""
    spread = round_ratios(samples[ours], samples[yardstick])
    target = None if at_most is None else Target("at most", at_most)
    return Comparison(
        name, Figure.of(ours, samples[ours]), Figure.of(yardstick, samples[yardstick]), "cost", spread, target
    )


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found; facts: sizes it ran with and rates it measured."""

    name: str
    comparisons: tuple[Comparison, ...]
    figures: tuple[Figure, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Outcomes with everything needed to repeat and to judge them."""

    command: str
    machine: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: dictionaries, lists, numbers and text; what is not finite becomes None."""
        outcomes = [
            {
                **asdict(outcome),
                "comparisons": [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in outcome.comparisons],
            }
            for outcome in self.outcomes
        ]
        report = {"command": self.command, "warnings": self.warnings, "machine": self.machine, "outcomes": outcomes}
        return dict(_plain(report))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def to_lines(outcome: Outcome) -> list[str]:
    """An outcome for people: two or three lines a comparison, one a figure."""
    lines = []
    for one in outcome.comparisons:
        lines.append(f"{outcome.name}: {one.name}")
        lines.append(
            f"    {one.ours.name} {shown(one.ours.value, one.ours.unit)}, {one.yardstick.name} "
            f"{shown(one.yardstick.value, one.yardstick.unit)}: {shown_ratio(one)}{_verdict(one)}"
        )
        if one.floor is not None:
            lines.append(f"    floor {shown(one.floor.value, one.ours.unit)}: {one.floor.what}")
    for figure in outcome.figures:
        note = f" ({figure.note})" if figure.note else ""
        lines.append(f"{outcome.name}: {figure.name}: {shown(figure.value, figure.unit)}{note}")
    return lines


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """The comparisons as a Markdown table."""
    rows: list[tuple[str, ...]] = [("measured", "ours", "yardstick", "ratio", "target", "floor"), ("---",) * 6]
    for outcome in outcomes:
        for one in outcome.comparisons:
            target = "" if one.target is None else f"{one.target.bound} {one.target.value:g}: {_WORD[one.met]}"
            ours, yardstick = shown(one.ours.value, one.ours.unit), shown(one.yardstick.value, one.yardstick.unit)
            floor = "" if one.floor is None else f"{shown(one.floor.value, one.ours.unit)}: {one.floor.what}"
            rows.append((f"{outcome.name}: {one.name}", ours, yardstick, shown_ratio(one), target, floor))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(value: float, unit: Unit) -> str:
    """A value with the unit that suits its size."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 10 else f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "B":
        return f"{value / 2**20:.1f} MiB"
    return f"{100 * value:.2f} %" if unit == "share" else f"{value:.0f} img/s"


def shown_ratio(one: Comparison) -> str:
    """The ratio in words, with the quartiles of its rounds."""
    spread = "" if one.spread is None else f" ({one.spread[0]:.3g} to {one.spread[1]:.3g})"
    return f"{one.ratio:.3g}{spread} times {'faster' if one.ratio_of == 'faster' else 'the cost'}"


def _verdict(one: Comparison) -> str:
    return "" if one.target is None else f"; target {one.target.bound} {one.target.value:g}: {_WORD[one.met]}"
