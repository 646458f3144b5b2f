"""Anchor tables side by side: how many boxes each can learn, on which levels, and how well it fits them.

Legend: N boxes, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anchorite.anchors import AnchorSet, best_possible_recall, mean_agreement
from anchorite.files import write_atomically
from anchorite.inspect.anchors import levels_that_match

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 20_000
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True, slots=True)
class AnchorTable:
    """A table and how it fits. recall: share of boxes that an anchor matches, as the loss assigns; level_recalls: of
    each level; agreement: mean of the best anchor's min(r, 1/r) in 0..1, 0 where none matches."""

    name: str
    anchors: AnchorSet
    recall: float
    level_recalls: tuple[float, ...]
    agreement: float


def anchor_table(name: str, anchors: AnchorSet, wh_px: NDArray[np.float64], image_size: int) -> AnchorTable:
    """How a table fits boxes (N, 2) in pixels of a network input of `image_size`."""
    matched = levels_that_match(wh_px, anchors, image_size)
    return AnchorTable(
        name,
        anchors,
        best_possible_recall(wh_px, anchors),
        tuple(float(level.mean()) if len(level) else 1.0 for level in matched),
        mean_agreement(wh_px, anchors),
    )


def save_anchor_plot(path: Path, wh_px: NDArray[np.float64], tables: Sequence[AnchorTable], image_size: int) -> None:
    """Write a PNG, a panel a table: boxes (N, 2) by width and height, which of them none matches, anchors by level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(tables), 6.5), layout="constrained")
    points = wh_px[np.random.default_rng(0).permutation(len(wh_px))[:_MOST_POINTS]]
    panels = figure.subplots(1, len(tables), squeeze=False, sharex=True, sharey=True)[0]
    for axes, table in zip(panels, tables, strict=True):
        _draw(axes, points, table, image_size)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def _draw(axes: Axes, points: NDArray[np.float64], table: AnchorTable, image_size: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    matched = levels_that_match(points, table.anchors, image_size).any(axis=0)
    width, height = points.T
    axes.scatter(width[matched], height[matched], s=5, color="#999999", alpha=0.5, linewidths=0, label="boxes")
    axes.scatter(
        width[~matched],
        height[~matched],
        s=12,
        color="black",
        marker="x",
        linewidths=0.8,
        label="boxes that none matches",
    )
    for stride, level, colour in zip(table.anchors.strides, table.anchors.sizes_px, _COLOURS, strict=False):
        sizes = np.array(level)
        axes.scatter(
            sizes[:, 0],
            sizes[:, 1],
            s=70,
            color=colour,
            edgecolors="white",
            label=f"anchors of stride {stride}",
            zorder=3,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"width in pixels at {image_size} px",
        ylabel="height in pixels",
        title=f"{table.name}: {table.recall:.2%} of boxes matched, agreement {table.agreement:.3f}",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_aspect("equal", adjustable="box")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize="small", markerscale=1.3)
