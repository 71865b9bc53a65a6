"""What all figures share: colours that a page fills in, sizes, and the way from axes to an <svg> in a page."""

from __future__ import annotations

import io
import re
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "HALF",
    "INK",
    "LINE",
    "MARKERS",
    "MOST_SERIES",
    "MUTED",
    "SERIES",
    "SMALL",
    "STYLE",
    "THIRD",
    "WIDE",
    "panel",
    "percent_axis",
    "svg",
]

# Figures are drawn in colours that stand for names, which the page's light or dark style then fills in.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#04040{i}" for i in range(6))
MARKERS = "os^DvP"
MOST_SERIES = len(SERIES)
"""No more models than this on one page: that many colours and marks can be told apart."""

_NAMED = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
STYLE: Any = {
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "vmmr",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
}
WIDE, HALF, THIRD, SMALL = 9.4, 4.6, 3.7, 2.3
"""Widths of figures in inches."""


def svg(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> element to stand in a page, in the page's colours and font."""
    file = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, name in _NAMED.items():
        text = text.replace(colour, name)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # group names repeat from figure to figure; nothing refers to them
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit-family", text).replace(
        "inherit-family", "system-ui, sans-serif"
    )
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))


def panel(
    height: float, *, width: float = WIDE, left: float = 0.7, right: float = 1.0, below: float = 0.6
) -> tuple[Figure, Axes]:
    """A figure of this size in inches, with margins in inches around the axes."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - 0.15 / height)
    return figure, figure.add_subplot()


def percent_axis(axes: Axes, step: int = 25) -> None:
    """The vertical axis from 0 to 100 %."""
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, step), [f"{tick} %" for tick in range(0, 101, step)])
