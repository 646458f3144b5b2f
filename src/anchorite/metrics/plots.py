"""Plots of curves and of the confusion matrix as PNG files, readable from 1 to 80 classes.

Drawn on `Figure` objects of their own, so no state of matplotlib is shared or changed. Class names are shown as they
are: never read as mathematical notation, cut when long.

Legend: K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anchorite.files import write_atomically
from anchorite.metrics.curves import Confusion, Curves, mean_of_defined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to so many classes each has a colour and a line in the legend; of more, only the best and the worst.
_MOST_NAMED_LINES = 10
# Up to so many rows the matrix has room for counts.
_MOST_NUMBERED_ROWS = 31
_LONGEST_NAME = 24
# DejaVu Sans comes with matplotlib; the others fill in scripts that it lacks, where the machine has them.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Arial Unicode MS")


def save_pr_curve(path: Path, curves: Curves) -> None:
    """Write precision over recall of each class and their mean; the legend gives AP at the curves' IoU."""
    figure, axes = _curve_axes("Recall", "Precision", f"Precision over recall at IoU {curves.iou_threshold:g}")
    ap = curves.average_precision()
    names = readable_names(curves.class_names)
    labels = [f"{name}  {_number(value)}" for name, value in zip(names, ap, strict=True)]
    _draw_classes(axes, curves.recalls, curves.envelope, ap, labels)
    mean = mean_of_defined(curves.envelope)
    axes.plot(curves.recalls, mean, color="black", linewidth=2.5, label=f"mean of classes  {_number(mean.mean())}")
    _finish_curves(figure, axes, "AP", path)


def save_f1_curve(path: Path, curves: Curves) -> None:
    """Write F1 over confidence of each class and their mean; the legend gives each best F1 and where it lies."""
    figure, axes = _curve_axes("Confidence", "F1", f"F1 over confidence at IoU {curves.iou_threshold:g}")
    best = curves.best_confidences()
    labels = [
        f"{name}  {_number(f1)} at {_number(confidence)}"
        for name, (confidence, f1) in zip(readable_names(curves.class_names), best, strict=True)
    ]
    _draw_classes(axes, curves.confidences, curves.f1, np.array([f1 for _, f1 in best]), labels)
    confidence, f1 = curves.best_confidence()
    label = f"mean of classes  {_number(f1)} at {_number(confidence)}"
    axes.plot(curves.confidences, curves.mean_f1(), color="black", linewidth=2.5, label=label)
    if np.isfinite(confidence):
        axes.axvline(confidence, color="black", linewidth=0.8, linestyle=":")
    _finish_curves(figure, axes, "Best F1, at confidence", path)


def save_confusion_matrix(path: Path, confusion: Confusion) -> None:
    """Write the matrix, coloured by the share of each row, right in blue and wrong in orange.

    Up to 30 classes the cells show counts.
    """
    from matplotlib.figure import Figure

    size = len(confusion.counts)
    is_numbered = size <= _MOST_NUMBERED_ROWS
    inches = 4.0 + (0.5 if is_numbered else 0.19) * size
    figure = Figure(figsize=(inches, inches * (0.9 if size > 5 else 0.8)), layout="constrained")
    axes = figure.add_subplot()
    _draw_shares(figure, axes, confusion.shares())
    _label_classes(axes, [*readable_names(confusion.class_names), "(background)"], is_numbered)
    title = f"Confusion at confidence {confusion.confidence:g}, IoU {confusion.iou_threshold:g}"
    axes.set_title(title, fontsize=12 if size < 10 else 16)
    if is_numbered:
        _write_counts(axes, confusion)
    _save(figure, path)


def readable_names(names: Sequence[str]) -> list[str]:
    """Class names as short lines that matplotlib shows letter by letter (two bare $ would make a formula).

    Names beyond ASCII start with the class's number, as the fonts at hand may not cover them; long ones lose their
    middle, because names that are alike tend to differ at their end.
    """
    shown = ["".join(letter if letter.isprintable() else " " for letter in name).strip() for name in names]
    shown = [name if name.isascii() and name else f"{number}: {name}" for number, name in enumerate(shown)]
    half = _LONGEST_NAME // 2 - 1
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:half]}..{name[-half:]}" for name in shown]
    return [name.replace("$", r"\$") for name in shown]


def _curve_axes(x_label: str, y_label: str, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    return figure, axes


def _draw_classes(
    axes: Axes, x: NDArray[np.float64], rows: NDArray[np.float64], values: NDArray[np.float64], labels: Sequence[str]
) -> None:
    """A line for each of K rows; the best by value first in the legend; of many classes the middle ones in grey.

    Classes without labelled boxes have no line, and only say so in the legend of few classes.
    """
    from matplotlib import colormaps

    ranking = sorted(range(len(labels)), key=lambda k: (-np.nan_to_num(values[k], nan=-1.0), k))
    if len(ranking) > _MOST_NAMED_LINES:
        ranking = [k for k in ranking if not np.isnan(values[k])]
    half = _MOST_NAMED_LINES // 2
    unnamed = ranking[half:-half] if len(ranking) > _MOST_NAMED_LINES else []
    for k in unnamed:
        axes.plot(x, rows[k], color="#b8b8b8", linewidth=0.7)
    named = [k for k in ranking if k not in unnamed]
    for place, k in enumerate(named):
        if unnamed and place == half:
            axes.plot([], [], color="#b8b8b8", linewidth=0.7, label=f"({len(unnamed)} classes between)")
        axes.plot(x, rows[k], color=colormaps["tab10"](place), linewidth=1.4, label=labels[k])


def _finish_curves(figure: Figure, axes: Axes, legend_title: str, path: Path) -> None:
    handles = axes.get_lines()
    named = [(line, str(line.get_label())) for line in handles if not str(line.get_label()).startswith("_child")]
    # A legend refuses labels that start with an underscore, as class names may: set them afterwards.
    legend = axes.legend(
        [line for line, _ in named],
        [str(place) for place in range(len(named))],
        title=legend_title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=9,
        alignment="left",
    )
    for text, (_, label) in zip(legend.get_texts(), named, strict=True):
        text.set_text(label)
    _save(figure, path)


def _draw_shares(figure: Figure, axes: Axes, shares: NDArray[np.float64]) -> None:
    """Shares (K + 1, K + 1) of each row, on a root scale: one looks for confusions of a few percent."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    is_right = np.eye(len(shares), dtype=bool)
    is_empty = ~(shares > 0)
    for word, colours, hidden in (("wrong", "Oranges", is_right), ("right", "Blues", ~is_right)):
        shown = np.ma.masked_where(hidden | is_empty, shares)
        picture = axes.imshow(shown, cmap=colormaps[colours], norm=PowerNorm(0.5, vmin=0, vmax=1))
        figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, pad=0.02, label=f"share of the row, {word}")


def _label_classes(axes: Axes, names: Sequence[str], is_numbered: bool) -> None:
    size = len(names)
    turned = {"rotation": 90} if size > 4 else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(size), names, **turned)
    axes.set_yticks(range(size), names)
    axes.tick_params(labelsize=10 if is_numbered else 7.5, length=2)
    axes.set_xlabel("found as", fontsize=12)
    axes.set_ylabel("labelled as", fontsize=12)
    axes.set_xticks(np.arange(1, size) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, size) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, confusion: Confusion) -> None:
    shares = confusion.shares()
    for row, column in np.argwhere(confusion.counts > 0):
        count, share = int(confusion.counts[row, column]), shares[row, column]
        short = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        colour = "white" if share > 0.4 else "#222222"
        axes.text(column, row, short, ha="center", va="center", fontsize=9, color=colour)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import font_manager
    from matplotlib.text import Text

    present = set(font_manager.get_font_names())
    families = [name for name in _FONTS if name in present]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(families)
    with warnings.catch_warnings():
        # A script that no font covers shows as boxes; that is no reason to talk on stderr.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
