"""Pictures of curves and bars: three cells, balance, gr, label smoothing, number formats."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import ACCENT, FAINT, INK, LEVELS, SECOND, THIRD, panels

_COLOURS = (ACCENT, SECOND, THIRD)


def bars(axes: Axes, groups: list[str], series: dict[str, list[float]], label: str, colours: tuple[str, ...]) -> None:
    """Grouped bars with their values on top; label: a format of those values."""
    width = 0.8 / len(series)
    for number, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=False)):
        places = [index + (number - (len(series) - 1) / 2) * width for index in range(len(groups))]
        drawn = axes.bar(places, values, width * 0.94, label=name, color=colour)
        axes.bar_label(drawn, [label.format(value) for value in values], fontsize=8.5, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)


def draw_three_cells(numbers: dict[str, Any]) -> Figure:
    """Matched places per object without and with neighbours, and their share of all places."""
    figure, (counts, shares) = panels(2, height=3.3, width_ratios=[1.5, 1])
    levels = [*LEVELS, "all levels"]
    series = {
        "its own cell only": [*numbers["own"], sum(numbers["own"])],
        "with neighbours": [*numbers["all"], sum(numbers["all"])],
    }
    bars(counts, levels, series, "{:.2f}", (FAINT, ACCENT))
    counts.set_title(f"places that answer, per object ({numbers['objects']} objects)")
    counts.legend(loc="upper left")
    bars(shares, list(LEVELS), {"": [100 * share for share in numbers["shares"]]}, "{:.3g} %", (ACCENT,))
    shares.set_title("share of a level's places, in %")
    return figure


def draw_balance(numbers: dict[str, Any]) -> Figure:
    """Places and objectness loss by level, before and after the weights."""
    figure, (places, losses) = panels(2, height=3.2, width_ratios=[1, 1.6])
    bars(places, list(LEVELS), {"": numbers["places"]}, "{:.0f}", (FAINT,))
    places.set_title("places of an image of 640 px")
    groups = [f"{name}\nweight {weight:.1f}" for name, weight in zip(LEVELS, numbers["balance"], strict=True)]
    series = {"mean over the level's places": numbers["plain"], "times its weight": numbers["weighted"]}
    bars(losses, groups, series, "{:.4f}", (FAINT, ACCENT))
    losses.set_title("objectness loss at the start of training")
    losses.legend(loc="upper left")
    return figure


def draw_gr(numbers: dict[str, Any]) -> Figure:
    """Objectness target against IoU, and where the loss of a target has its minimum."""
    figure, (targets, losses) = panels(2, height=3.2)
    for (gr, values), colour in zip(numbers["targets"].items(), _COLOURS, strict=True):
        targets.plot(numbers["iou"], values, color=colour, label=f"gr = {gr}")
    targets.set_xlabel("CIoU of the predicted box and the object")
    targets.set_title("objectness target of a matched place")
    targets.legend(loc="lower right")
    for (goal, values), colour in zip(numbers["losses"].items(), _COLOURS, strict=True):
        losses.plot(numbers["answer"], values, color=colour, label=f"target {goal}")
        lowest = min(range(len(values)), key=values.__getitem__)
        losses.plot(numbers["answer"][lowest], values[lowest], "o", color=colour)
    losses.set_xlabel("predicted objectness, sigma(tobj)")
    losses.set_title("loss of the place, lowest at the target")
    losses.set_ylim(0, 3)
    losses.legend(loc="upper right", bbox_to_anchor=(0.92, 1))
    for panel in (targets, losses):
        panel.grid(linewidth=0.5)
    return figure


def draw_smoothing(numbers: dict[str, Any]) -> Figure:
    """Class targets with and without smoothing, and the loss of the object's own class."""
    figure, (targets, losses) = panels(2, height=3.2)
    classes = ["class 0", "class 1\n(the object's)", "class 2", "class 3"]
    bars(targets, classes, {f"e = {e}": values for e, values in numbers["targets"].items()}, "{:g}", _COLOURS)
    targets.set_ylim(0, 1.35)
    targets.set_title("targets of the class term")
    targets.legend(loc="upper right", ncols=3, columnspacing=1)
    for (smoothing, values), colour in zip(numbers["losses"].items(), _COLOURS, strict=True):
        losses.plot(numbers["logit"], values, color=colour, label=f"e = {smoothing}")
        if smoothing in numbers["lowest"]:
            place = numbers["lowest"][smoothing]
            losses.axvline(place, color=colour, linewidth=1, linestyle="--")
            losses.text(place + 0.08, 1.55, f"{place:.2f}", color=INK, fontsize=8.5, rotation=90, va="top")
    losses.set_ylim(0, 1.6)
    losses.set_xlabel("logit of the object's class")
    losses.set_title("its loss: lowest at infinity, or at a finite logit")
    losses.grid(linewidth=0.5)
    losses.legend(loc="upper right")
    return figure


def draw_precision(numbers: dict[str, Any]) -> Figure:
    """The box loss of a box that slides off its target by format, and the gradients' errors."""
    figure, (box, errors) = panels(2, height=3.3, width_ratios=[1.25, 1])
    styles = {"float64": (FAINT, 5.0, "-"), "float32": (ACCENT, 1.6, "-"), "bf16": (SECOND, 1.6, "-")}
    for name, values in numbers["losses"].items():
        colour, width, line = styles[name]
        box.plot(numbers["moved"], values, line, color=colour, linewidth=width, label=name)
    box.set_xlabel("the box is off by so many cells (sides of 4 cells)")
    box.set_title("1 - CIoU")
    box.grid(linewidth=0.5)
    box.legend(loc="upper left")
    series = {name: list(values.values()) for name, values in numbers["errors"].items()}
    bars(errors, list(numbers["errors"]["bf16 loss"]), series, "{:.0e}", (ACCENT, SECOND))
    errors.set_yscale("log")
    errors.set_ylim(1e-8, 30)
    errors.set_title("largest error of the logits' gradient")
    errors.legend(loc="upper left", ncols=2, columnspacing=1)
    return figure
