"""Curves of growth as pictures; apart from the rest, so that only who plots loads matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from anchorite.benchmark.growth_benchmark import Curve


def plot_curves(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write FOLDER/growth-NAME.png for each curve, medians with quartiles; dotted: proportional growth."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_plot(curve, folder / f"growth-{curve.name}.png") for curve in curves]


def _plot(curve: Curve, path: Path) -> Path:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for line, points in curve.lines.items():
        amounts = sorted(points)
        medians = [1000 * points[amount].median for amount in amounts]
        (drawn,) = axes.plot(amounts, medians, marker="o", label=line)
        lower, upper = zip(*(points[amount].quartiles for amount in amounts), strict=True)
        axes.fill_between(
            amounts, [1000 * one for one in lower], [1000 * one for one in upper], alpha=0.2, color=drawn.get_color()
        )
        if curve.name in ("batch", "size", "dataset"):
            power = 2 if curve.name == "size" else 1  # the pixels of an image grow with the square of its side
            proportional = [medians[0] * (amount / amounts[0]) ** power for amount in amounts]
            axes.plot(amounts, proportional, linestyle=":", linewidth=0.8, color=drawn.get_color())
            axes.set_title("dotted: in proportion", fontsize="small", loc="right")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    every = sorted({amount for points in curve.lines.values() for amount in points})
    axes.set_xticks(every, [str(amount) for amount in every])
    axes.minorticks_off()
    axes.set_xlabel(curve.variable)
    axes.set_ylabel("milliseconds")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, dpi=110)
    return path
