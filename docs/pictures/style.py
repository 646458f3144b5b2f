"""How the pictures look: a card with ink of its own, which follows the reader's light or dark scheme."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholders: matplotlib writes them as they are, and the style sheet below puts colours in their place.
CARD, INK, FAINT = "#fefdfc", "#010203", "#a0a1a2"
LEVELS = {"P3": "#3b82c4", "P4": "#d9822b", "P5": "#2f9e6b"}
ACCENT, SECOND, THIRD = "#3b82c4", "#d9822b", "#2f9e6b"
_STYLE = (
    "<style>svg{--card:#ffffff;--ink:#24292f;--faint:#c3c9d0}"
    "@media (prefers-color-scheme:dark){svg{--card:#1a1d21;--ink:#d9dee3;--faint:#4a5058}}</style>"
)
_SETTINGS = {
    "svg.fonttype": "path",
    "svg.hashsalt": "anchorite",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "grid.color": FAINT,
    "lines.linewidth": 1.8,
}


def panels(columns: int, width: float = 9.6, height: float = 3.4, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels side by side."""
    matplotlib.rcParams.update(_SETTINGS)
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    return figure, list(axes[0])


def save(figure: Figure, path: Path, mark: str) -> None:
    """Write the figure as SVG that follows the colour scheme, with `mark` in its description."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Description": mark})
    plt.close(figure)
    text = buffer.getvalue()
    for placeholder, name in ((CARD, "card"), (INK, "ink"), (FAINT, "faint")):
        text = text.replace(placeholder, f"var(--{name})")
    start = text.index("<metadata>")
    text = text[:start] + _STYLE + text[start:]
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
