"""Pictures of boxes and cells: the anchors, the decode ranges, the neighbour rule, what labels do not know."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import ACCENT, FAINT, INK, LEVELS, SECOND, THIRD, panels


def grid(axes: Axes, columns: int, rows: int) -> None:
    """Lines of a grid of cells, row 0 on top, without ticks."""
    for x in range(columns + 1):
        axes.plot([x, x], [0, rows], color=FAINT, linewidth=0.8, zorder=0)
    for y in range(rows + 1):
        axes.plot([0, columns], [y, y], color=FAINT, linewidth=0.8, zorder=0)
    bare(axes)
    axes.set_xlim(-0.1, columns + 0.1)
    axes.set_ylim(rows + 0.1, -0.1)


def bare(axes: Axes) -> None:
    """Equal scales, no frame."""
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_anchors(numbers: dict[str, Any]) -> Figure:
    """The 3 x 6 table: in pixels to one scale, and by level in cells to one scale."""
    figure, axes = panels(4, height=3.5, width_ratios=[1.25, 1, 1, 1])
    bare(axes[0])
    axes[0].set_xlim(-8, 392)
    axes[0].set_ylim(340, -8)
    for row, colour in zip(numbers["px"], LEVELS.values(), strict=True):
        for width, height in zip(row[::2], row[1::2], strict=True):
            axes[0].add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=colour, linewidth=1.6))
    axes[0].set_title("in pixels: all nine, one scale")
    axes[0].text(373, 332, "373 x 326 px", ha="right", va="top", fontsize=9)
    for panel, (name, colour), sizes, stride in zip(
        axes[1:], LEVELS.items(), numbers["cells"], numbers["strides"], strict=True
    ):
        grid(panel, 13, 13)
        panel.set_title(f"{name}: cells of {stride} px", color=colour)
        for width, height in sizes:
            panel.add_patch(Rectangle((0.5, 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.8))
        table = "\n".join(f"{width:g} x {height:g}" for width, height in sizes)
        panel.text(6.5, 13.6, table, ha="center", va="top", fontsize=9)
        panel.set_ylim(16.4, -0.1)
    return figure


def draw_decode(numbers: dict[str, Any]) -> Figure:
    """What box logits become, and how far a cell reaches."""
    figure, (centre, side, reach) = panels(3, height=3.3)
    for panel, key, ends, unit in (
        (centre, "centre", numbers["centre_range"], "centre, cells from the cell's corner"),
        (side, "side", numbers["side_range"], "side, in anchors"),
    ):
        panel.plot(numbers["logit"], numbers[key], color=ACCENT)
        for end in ends:
            panel.axhline(end, color=SECOND, linewidth=1, linestyle="--")
        panel.set_xlabel("logit")
        panel.set_title(unit)
        panel.grid(linewidth=0.5)
    centre.axhspan(0, 1, color=THIRD, alpha=0.18, linewidth=0)
    centre.text(-5.8, 0.8, "the cell itself", fontsize=9)
    side.plot([0], [1], "o", color=ACCENT)
    side.text(0.4, 0.75, "logit 0: the anchor", fontsize=9)
    grid(reach, 3, 3)
    low, high = numbers["centre_range"]
    reach.add_patch(Rectangle((1, 1), 1, 1, facecolor=THIRD, alpha=0.3))
    reach.add_patch(
        Rectangle(
            (1 + low, 1 + low), high - low, high - low, fill=False, edgecolor=SECOND, linestyle="--", linewidth=1.8
        )
    )
    reach.text(1.5, 1.5, "cell", ha="center", va="center")
    reach.set_title("where the centre may lie")
    return figure


def draw_cells(numbers: dict[str, Any]) -> Figure:
    """Three centres with the cells that answer, and the number of cells for every centre."""
    figure, axes = panels(4, height=2.9, width_ratios=[1, 1, 1, 1.2])
    size = numbers["grid"]
    for panel, (name, example) in zip(axes[:3], numbers["examples"].items(), strict=True):
        grid(panel, size, size)
        (x, y), (width, height) = example["centre"], example["sides"]
        for column, row in example["cells"]:
            home = (column, row) == (int(x), int(y))
            panel.add_patch(Rectangle((column, row), 1, 1, facecolor=THIRD if home else ACCENT, alpha=0.35))
        panel.plot([int(x) + 0.5] * 2, [int(y), int(y) + 1], color=INK, linewidth=0.8, linestyle=":")
        panel.plot([int(x), int(x) + 1], [int(y) + 0.5] * 2, color=INK, linewidth=0.8, linestyle=":")
        panel.add_patch(
            Rectangle((x - width / 2, y - height / 2), width, height, fill=False, edgecolor=SECOND, linewidth=1.6)
        )
        panel.plot([x], [y], "o", color=SECOND, markersize=5)
        panel.set_title(name)
        panel.set_xlim(-0.5, size + 0.1)
    colours = ListedColormap([FAINT, ACCENT, THIRD])
    image = axes[3].imshow(
        numbers["counts"],
        extent=(0, size, size, 0),
        cmap=colours,
        norm=BoundaryNorm([0.5, 1.5, 2.5, 3.5], 3),
        alpha=0.8,
    )
    grid(axes[3], size, size)
    axes[3].set_title("how many cells, by centre")
    figure.colorbar(image, ax=axes[3], ticks=[1, 2, 3], shrink=0.7)
    return figure


def draw_unknown(numbers: dict[str, Any]) -> Figure:
    """An object and two regions: what is ignored by which rule, what every cell counts, and what a cell costs."""
    figure, (ignored, counts, losses) = panels(3, height=3.5, width_ratios=[1, 1, 1.1])
    size, half = numbers["grid"], numbers["grid"] / 2
    of_object = {tuple(cell) for cell in numbers["candidates"]}
    by_half = {tuple(cell) for cell in numbers["by_half"]} - of_object
    by_shape = {tuple(cell) for cell in numbers["by_shape"]} - of_object - by_half
    grid(ignored, size, size)
    for cells, hatch, colour in ((by_half, "////", "none"), (by_shape, "\\\\\\\\", "none"), (of_object, "", ACCENT)):
        for cell in cells:
            ignored.add_patch(
                Rectangle(cell, 1, 1, facecolor=colour, edgecolor=INK, hatch=hatch, alpha=0.6, linewidth=0)
            )
    grid(counts, size, size)
    for row, of_row in enumerate(numbers["weights"]):
        for column, weight in enumerate(of_row):
            colour = ACCENT if (column, row) in of_object else THIRD
            counts.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=0.45 * weight, linewidth=0))
            counts.text(column + 0.5, row + 0.5, f"{weight:.1g}", ha="center", va="center", fontsize=8)
    for panel in (ignored, counts):
        for name, (x, y, width, height) in {"object": numbers["object"], **numbers["regions"]}.items():
            line = {"edgecolor": SECOND, "linewidth": 1.8, "linestyle": "-" if name == "object" else ":"}
            panel.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fill=False, **line))
    ignored.set_title("ignored: / by half, \\ by shape")
    counts.plot([half, half], [0, size], color=INK, linewidth=1.2)
    counts.set_title("what a cell counts")
    for (weight, values), colour in zip(numbers["losses"].items(), (THIRD, SECOND, INK), strict=True):
        losses.plot(numbers["answer"], values, color=colour, label=f"counts {float(weight):g}")
    losses.set_xlabel("predicted objectness of a cell without an object")
    losses.set_title("what a false detection costs")
    losses.grid(linewidth=0.5)
    losses.legend(loc="upper left")
    return figure
