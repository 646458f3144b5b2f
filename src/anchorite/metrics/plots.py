"""Plots of curves and of the confusion matrix as PNG files, readable with any number of classes.

Drawn on `Figure` objects of their own, so no state of matplotlib is shared or changed. Class names are shown as they
are: never read as mathematical notation, cut when long.

Legend: K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anchorite.files import StrPath, write_atomically
from anchorite.metrics.curves import Confusion, Curves, mean_of_defined, most_confused

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to so many classes each has a colour and a line in the legend; of more, only the best and the worst.
_MOST_NAMED_LINES = 10
# Up to so many rows the matrix has room for counts.
_MOST_NUMBERED_ROWS = 31
# With more classes than the first, the matrix shows so many of them: a cell of its own for each pair of a thousand
# would be a picture of 400 megapixels.
_MOST_CLASSES, _CHOSEN_CLASSES = 100, 60
_LONGEST_NAME = 24
# DejaVu Sans comes with matplotlib; the others fill in scripts that it lacks, where the machine has them.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Arial Unicode MS")


def save_pr_curve(path: StrPath, curves: Curves) -> None:
    """Write precision over recall of each class and their mean; the legend gives AP at the curves' IoU."""
    ap, mean = curves.average_precision(), mean_of_defined(curves.envelope)
    scored = zip([*curves.envelope, mean], [*ap, mean.mean()], strict=True)
    lines = [(row, float(value), _number(value)) for row, value in scored]
    _save_curves(path, curves, ("Recall", "Precision", "AP"), curves.recalls, lines)


def save_f1_curve(path: StrPath, curves: Curves) -> None:
    """Write F1 over confidence of each class and their mean; the legend gives each best F1 and where it lies."""
    best = [*curves.best_confidences(), curves.best_confidence()]
    scored = zip([*curves.f1, curves.mean_f1()], best, strict=True)
    lines = [(row, f1, f"{_number(f1)} at {_number(confidence)}") for row, (confidence, f1) in scored]
    _save_curves(path, curves, ("Confidence", "F1", "Best F1, at confidence"), curves.confidences, lines, best[-1][0])


def save_confusion_matrix(path: StrPath, confusion: Confusion) -> None:
    """Write the matrix, coloured by the share of each row, right in blue and wrong in orange.

    Up to 30 classes the cells show counts; of more than 100, the 60 with the most errors are drawn.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    num_classes = len(confusion.class_names)
    chosen = most_confused(confusion.counts, num_classes if num_classes <= _MOST_CLASSES else _CHOSEN_CLASSES)
    counts, shares = (matrix[np.ix_(chosen, chosen)] for matrix in (confusion.counts, confusion.shares()))
    size = len(chosen)
    is_numbered = size <= _MOST_NUMBERED_ROWS
    inches = 4.0 + (0.5 if is_numbered else 0.19) * size
    figure = Figure(figsize=(inches, inches * (0.9 if size > 5 else 0.8)), layout="constrained")
    axes = figure.add_subplot()
    is_right, is_empty = np.eye(size, dtype=bool), ~(shares > 0)
    for word, colours, hidden in (("wrong", "Oranges", is_right), ("right", "Blues", ~is_right)):
        shown = np.ma.masked_where(hidden | is_empty, shares)
        # On a root scale: one looks for confusions of a few percent.
        picture = axes.imshow(shown, cmap=colormaps[colours], norm=PowerNorm(0.5, vmin=0, vmax=1))
        figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, pad=0.02, label=f"share of the row, {word}")
    names = [*readable_names(confusion.class_names), "(background)"]
    names = [names[row] for row in chosen]
    turned = {"rotation": 90} if size > 4 else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(size), names, **turned)
    axes.set_yticks(range(size), names)
    axes.tick_params(labelsize=10 if is_numbered else 7.5, length=2)
    axes.set_xlabel("found as", fontsize=12)
    axes.set_ylabel("labelled as", fontsize=12)
    for axis in (axes.xaxis, axes.yaxis):  # lines between the cells
        axis.set_ticks(np.arange(1, size) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    title = f"Confusion at confidence {confusion.confidence:g}, IoU {confusion.iou_threshold:g}"
    if size <= num_classes:
        title += f": the {size - 1} of {num_classes} classes with the most errors"
    axes.set_title(title, fontsize=12 if size < 10 else 16)
    for row, column in np.argwhere(counts > 0) if is_numbered else []:
        count = int(counts[row, column])
        short = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        colour = "white" if shares[row, column] > 0.4 else "#222222"
        axes.text(column, row, short, ha="center", va="center", fontsize=9, color=colour)
    _save(figure, path)


def readable_names(names: Sequence[str]) -> list[str]:
    """Class names as short lines that matplotlib shows letter by letter (two bare $ would make a formula).

    Names beyond ASCII start with the class's number, because the installed fonts may not cover them; long ones lose
    their middle, because similar names tend to differ at their end.
    """
    shown = ["".join(letter if letter.isprintable() else " " for letter in name).strip() for name in names]
    shown = [name if name.isascii() and name else f"{number}: {name}" for number, name in enumerate(shown)]
    half = _LONGEST_NAME // 2 - 1
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:half]}..{name[-half:]}" for name in shown]
    return [name.replace("$", r"\$") for name in shown]


def _save_curves(
    path: StrPath,
    curves: Curves,
    words: tuple[str, str, str],
    x: NDArray[np.float64],
    lines: Sequence[tuple[NDArray[np.float64], float, str]],
    marked: float = math.nan,
) -> None:
    """Lines of the K classes and of their mean, each with its value, by which the best come first in the legend, and
    that in words. words: names of the axes and title of the legend; marked: x of a dotted line.

    Of many classes the middle ones are grey. Classes without labelled boxes have no line, and only say so in the legend
    of few classes.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6), layout="constrained")
    axes = figure.add_subplot()
    x_label, y_label, legend_title = words
    title = f"{y_label} over {x_label.lower()} at IoU {curves.iou_threshold:g}"
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    names = [*readable_names(curves.class_names), "mean of classes"]
    rows, values, numbers = zip(*lines, strict=True)
    ranking = sorted(range(len(lines) - 1), key=lambda k: (-np.nan_to_num(values[k], nan=-1.0), k))
    if len(ranking) > _MOST_NAMED_LINES:
        ranking = [k for k in ranking if not np.isnan(values[k])]
    half = _MOST_NAMED_LINES // 2
    unnamed = ranking[half:-half] if len(ranking) > _MOST_NAMED_LINES else []
    listed = []
    if unnamed:  # as one object: a thousand would take seconds
        axes.add_collection(
            LineCollection([np.stack([x, rows[k]], 1) for k in unnamed], colors="#b8b8b8", linewidths=0.7)
        )
    for place, k in enumerate(k for k in ranking if k not in unnamed):
        if unnamed and place == half:
            between = axes.plot([], [], color="#b8b8b8", linewidth=0.7)
            listed.append((between[0], f"({len(unnamed)} classes between)"))
        line = axes.plot(x, rows[k], color=colormaps["tab10"](place), linewidth=1.4)
        listed.append((line[0], f"{names[k]}  {numbers[k]}"))
    mean = axes.plot(x, rows[-1], color="black", linewidth=2.5)
    listed.append((mean[0], f"{names[-1]}  {numbers[-1]}"))
    if np.isfinite(marked):
        axes.axvline(marked, color="black", linewidth=0.8, linestyle=":")
    # A legend refuses labels that start with an underscore, as class names may: set them afterwards.
    legend = axes.legend(
        [line for line, _ in listed],
        [str(place) for place in range(len(listed))],
        title=legend_title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=9,
        alignment="left",
    )
    for text, (_, label) in zip(legend.get_texts(), listed, strict=True):
        text.set_text(label)
    _save(figure, path)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _save(figure: Figure, path: StrPath) -> None:
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
        write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=110))
