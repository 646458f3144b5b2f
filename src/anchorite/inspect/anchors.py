"""Boxes against anchors: which no anchor matches, by how much they miss, what would match them, and tables compared.

The ratio test is the loss's own (`anchorite.loss.assign`); sides are in pixels of the letterboxed network input.
Legend: N boxes, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anchorite.anchors import AnchorSet, best_possible_recall, fit_anchors, mean_agreement
from anchorite.boxes import Targets
from anchorite.data import DatasetIndex, Split
from anchorite.errors import InputError
from anchorite.files import StrPath, write_atomically
from anchorite.inspect.findings import AnchorFit, Finding, box_finding
from anchorite.loss import assign

RATIO_LIMIT = 4.0
_LARGEST_SIZE = 4096  # px; nobody can be advised to use a larger network input
_BLOCK = 20_000
_SMALL_PX = 2.0
_LEVEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True, slots=True)
class AnchorTable:
    """Anchors and how they fit. recall: share of boxes that an anchor matches, as the loss assigns; level_recalls: of
    each level; agreement: mean of the best anchor's min(r, 1/r) in 0..1, 0 where none matches."""

    name: str
    anchors: AnchorSet
    recall: float
    level_recalls: tuple[float, ...]
    agreement: float


def anchor_table(name: str, anchors: AnchorSet, wh_px: NDArray[np.float64], image_size: int) -> AnchorTable:
    """How anchors fit boxes (N, 2) in pixels of a network input of `image_size`."""
    recalls = tuple(map(_share, levels_that_match(wh_px, anchors, image_size)))
    return AnchorTable(name, anchors, best_possible_recall(wh_px, anchors), recalls, mean_agreement(wh_px, anchors))


def levels_that_match(wh_px: NDArray[np.float64], anchors: AnchorSet, image_size: int) -> NDArray[np.bool_]:
    """(L, N) bool: on which levels an anchor matches each of N boxes (N, 2), as the loss assigns them."""
    matched = np.zeros((anchors.num_levels, len(wh_px)), np.bool_)
    grid_sizes = [(image_size // stride, image_size // stride) for stride in anchors.strides]
    for start in range(0, len(wh_px), _BLOCK):
        sides = torch.from_numpy(wh_px[start : start + _BLOCK] / image_size)
        rows = torch.cat([torch.zeros(len(sides), 2), torch.full((len(sides), 2), 0.5), sides], dim=1).double()
        for level, candidates in enumerate(assign(Targets.from_rows(rows), anchors, grid_sizes, RATIO_LIMIT)):
            matched[level, start + candidates.target.unique().numpy()] = True
    return matched


def anchor_fit(records: Split, anchors: AnchorSet, image_size: int) -> AnchorFit:
    """The fit of anchors to all training boxes of some records."""
    wh_px = records.table().box_sides(image_size)
    matched = levels_that_match(wh_px, anchors, image_size)
    quantiles = map(tuple, np.quantile(wh_px, (0.05, 0.5, 0.95), axis=0).T.tolist()) if len(wh_px) else (None, None)
    recall = _share(np.logical_or.reduce(matched))
    fitted_recall: float | None = recall
    if recall < 1:
        drawn = wh_px[np.random.default_rng(0).permutation(len(wh_px))[:_BLOCK]]
        try:
            fitted = fit_anchors(drawn, anchors.strides, anchors.num_anchors, RATIO_LIMIT)
            fitted_recall = best_possible_recall(wh_px, fitted, RATIO_LIMIT)
        except InputError:  # too few distinct boxes
            fitted_recall = None
    level_recalls = tuple(map(_share, matched))
    return AnchorFit(image_size, len(wh_px), recall, anchors.strides, level_recalls, fitted_recall, *quantiles)


def _share(matched: NDArray[np.bool_]) -> float:
    return float(matched.mean()) if len(matched) else 1.0


def anchor_findings(dataset: DatasetIndex, anchors: AnchorSet, image_size: int) -> Iterator[Finding]:
    """Boxes that no anchor matches, and those thinner than 2 px of the network input."""
    for split, records in dataset.splits.items():
        table = records.table()
        wh_px, is_ignored = table.sides_px(image_size), table.boxes["ignored"]
        matched = np.logical_or.reduce(levels_that_match(wh_px, anchors, image_size))
        images, starts = table.image_of_box(), table.ends - table.images["num_boxes"]
        for number in np.flatnonzero(~is_ignored & (~matched | (wh_px.min(axis=1) < _SMALL_PX))).tolist():
            image = int(images[number])
            box = box_finding(dataset, split, records[image], number - int(starts[image]))
            width, height = wh_px[number].tolist()
            size = f"{box.class_name} of {width:.3g} x {height:.3g} px at {image_size} px"
            if min(width, height) < _SMALL_PX:
                yield replace(box, kind="sub-pixel-box" if min(width, height) < 1 else "small-box", detail=size)
            if not matched[number]:
                advice = what_would_match(width, height, anchors, image_size)
                detail = f"{size} is {how_far_off(width, height, anchors)}; {advice}"
                yield replace(box, kind="unmatched-box", detail=detail)


def how_far_off(width: float, height: float, anchors: AnchorSet) -> str:
    """In words, how a box that no anchor matches differs from the nearest anchor."""
    sides, sides_px = np.array([width, height]), np.array(anchors.sizes_px).reshape(-1, 2)
    factors = np.maximum(sides / sides_px, sides_px / sides)
    nearest = factors.max(axis=1).argmin()
    axis = factors[nearest].argmax()
    word = (("narrower", "wider"), ("flatter", "taller"))[axis][int(sides[axis] > sides_px[nearest, axis])]
    near_width, near_height = sides_px[nearest]
    return f"{factors[nearest, axis]:.1f} x {word} than the nearest anchor, {near_width:g} x {near_height:g}"


def what_would_match(width: float, height: float, anchors: AnchorSet, image_size: int) -> str:
    """In words, the nearest image sizes at which an anchor matches a box of these sides at `image_size`."""
    stride = anchors.strides[-1]
    ratios = np.array(anchors.sizes_px).reshape(-1, 2) / (width, height)
    # Of each anchor, the smallest and largest multiples of the stride at which it matches the box.
    first = (np.floor(image_size * ratios.max(axis=1) / RATIO_LIMIT / stride).astype(int) + 1) * stride
    last = (np.ceil(image_size * ratios.min(axis=1) * RATIO_LIMIT / stride).astype(int) - 1) * stride
    larger = first[(image_size < first) & (first <= np.minimum(last, _LARGEST_SIZE))]
    smaller = last[(np.maximum(first, stride) <= last) & (last < image_size)]
    sizes = [f"{larger.min()} or more"] if len(larger) else []
    sizes += [f"{smaller.max()} or less"] if len(smaller) else []
    if not sizes:
        return "only anchors fitted to the data can match it"
    return f"an image size of {' or '.join(sizes)}, or anchors fitted to the data, would match it"


def save_anchor_plot(path: StrPath, wh_px: NDArray[np.float64], tables: Sequence[AnchorTable], image_size: int) -> None:
    """Write a PNG, a panel a table: boxes (N, 2) by width and height, which of them none matches, anchors by level."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(6.5 * len(tables), 6.5), layout="constrained")
    points = wh_px[np.random.default_rng(0).permutation(len(wh_px))[:_BLOCK]]
    panels = figure.subplots(1, len(tables), squeeze=False, sharex=True, sharey=True)[0]
    for axes, table in zip(panels, tables, strict=True):
        matched = np.logical_or.reduce(levels_that_match(points, table.anchors, image_size))
        axes.scatter(*points[matched].T, s=5, color="#999999", alpha=0.5, linewidths=0, label="boxes")
        lone = {"color": "black", "marker": "x", "linewidths": 0.8, "label": "boxes that none matches"}
        axes.scatter(*points[~matched].T, s=12, **lone)
        for stride, level, colour in zip(table.anchors.strides, table.anchors.sizes_px, _LEVEL_COLOURS, strict=False):
            label = f"anchors of stride {stride}"
            axes.scatter(*np.array(level).T, s=70, color=colour, edgecolors="white", label=label, zorder=3)
        title = f"{table.name}: {table.recall:.2%} of boxes matched, agreement {table.agreement:.3f}"
        axes.set(xlabel=f"width in pixels at {image_size} px", ylabel="height in pixels", title=title)
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.set_aspect("equal", adjustable="box")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize="small", markerscale=1.3)
    write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=110))
