"""How studies are drawn: means with their intervals, courses of a training, gain against imbalance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vmmr.evaluation.drawing import INK, MARKERS, MOST_SERIES, MUTED, SERIES, SMALL, STYLE, WIDE, panel, svg

__all__ = ["Dots", "course_figure", "dots_figure", "scatter_figure"]


@dataclass(frozen=True)
class Dots:
    """A line of `dots_figure`: the group that it belongs to, its name there, the group's colour, and by measure
    {"mean", "interval"} as shares; None where a measure is missing."""

    group: str
    name: str
    series: int
    measures: Mapping[str, Mapping[str, Any] | None]


def dots_figure(
    lines: Sequence[Dots], titles: Mapping[str, str], marks: Mapping[str, Sequence[float]], title: str
) -> Markup:
    """Means with their intervals, a line each, groups under their names; one panel a measure.

    titles: of the measures, in order. marks: by measure, the values to beat, the first dotted, the second dashed.
    """
    heights: list[float] = []
    heads: dict[str, float] = {}
    place = 0.0
    for line in lines:
        if line.group not in heads:
            place += (1.1 if line.name else 0.5) if heads else 0.0
            heads[line.group] = place
            place += 1.0 if line.name else 0.0
        heights.append(place)
        place += 1.0
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        height = 0.27 * place + 1.0
        left = min(3.8, 0.6 + 0.075 * max(len(name) for line in lines for name in (line.name, line.group)))
        figure = Figure(figsize=(WIDE, height))
        figure.subplots_adjust(left / WIDE, 0.4 / height, 0.985, 1 - 0.45 / height, wspace=0.16)
        panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, (measure, told) in zip(panels, titles.items(), strict=True):
            for mark, dashes in zip(marks.get(measure, ()), ((1, 2), (5, 3)), strict=False):
                axes.axvline(100 * mark, color=MUTED, linewidth=1.2, dashes=dashes, zorder=1)
            for line, y in zip(lines, heights, strict=True):
                found = line.measures.get(measure)
                if found is None:
                    continue
                colour = SERIES[line.series]
                if found["interval"] is not None:
                    ends = [100 * end for end in found["interval"]]
                    axes.plot(ends, [y, y], color=colour, alpha=0.4, linewidth=4, solid_capstyle="round", zorder=2)
                axes.plot(100 * found["mean"], y, "o", color=colour, markersize=7, zorder=3)
            axes.set_title(told, color=INK, fontsize=12, weight="bold", loc="left", pad=8)
            axes.margins(x=0.06)
            axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
            sign = "+" if measure == "delta_m" else ""
            axes.xaxis.set_major_formatter(lambda x, _, sign=sign: f"{x:{sign if x else ''}g} %")
            axes.spines["bottom"].set_visible(False)
        panels[0].set_ylim(place - 0.4, -0.6)
        panels[0].set_yticks([])
        for line, y in zip(lines, heights, strict=True):
            if line.name:
                _beside(panels[0], line.name, y)
        for group, y in heads.items():
            series = next(line.series for line in lines if line.group == group)
            _beside(panels[0], group, y, start=4 - 72 * left, color=SERIES[series], weight="bold")
        return svg(figure, title)


def _beside(axes: Axes, text: str, y: float, *, start: float | None = None, **look: Any) -> None:
    """A name to the left of the axes, ending there, or starting at this offset in points."""
    axes.annotate(
        text,
        (0, y),
        xycoords=("axes fraction", "data"),
        xytext=(-10 if start is None else start, 0),
        textcoords="offset points",
        ha="right" if start is None else "left",
        va="center",
        annotation_clip=False,
        **look,
    )


def course_figure(
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float | None]],
    order: Sequence[str],
    title: str,
    *,
    within: tuple[float, float] | None = None,
) -> Markup:
    """A small figure of values over steps: lengths on a logarithmic axis with these ends, or cosines from -1 to 1.

    order: names whose places give colours and marks, the same in every figure beside this one. None leaves a gap.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(1.6, width=SMALL, left=0.55, right=0.12, below=0.32)
        for name, values in curves.items():
            place = order.index(name) % MOST_SERIES
            held = [math.nan if value is None else value for value in values]
            every = max(1, len(held) // 6)
            look = f"{MARKERS[place]}-"
            axes.plot(steps, held, look, color=SERIES[place], linewidth=1.6, markersize=3, markevery=every)
        if within is None:
            axes.set_ylim(-1, 1)
            axes.set_yticks([-1, 0, 1])
            axes.axhline(0, color=MUTED, linewidth=1)
        else:
            axes.set_yscale("log")
            powers = [10.0**k for k in range(math.floor(math.log10(within[0])), math.ceil(math.log10(within[1])) + 1)]
            steps_of = (1,) if within[1] > 100 * within[0] else (1, 3) if within[1] > 6 * within[0] else (1, 2, 5)
            axes.set_yticks([step * power for power in powers for step in steps_of])
            axes.set_ylim(within[0] / 1.2, within[1] * 1.2)
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            axes.minorticks_off()
        axes.set_xlim(0, 1.02 * max(steps))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        return svg(figure, title)


def scatter_figure(points: Sequence[tuple[float, float, int, str]], title: str) -> Markup:
    """Gain, a share, against imbalance, a ratio of 1 or more on a logarithmic axis: (imbalance, gain, series, name) of
    each setting. The text alternative names them all."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = panel(3.6, left=0.9, right=0.3)
        axes.axhline(0, color=MUTED, linewidth=1.2, dashes=(2, 3), zorder=1)
        for x, y, series, _ in points:
            axes.plot(x, 100 * y, MARKERS[series], color=SERIES[series], markersize=9, alpha=0.85, zorder=2)
        axes.set_xscale("log")
        axes.set_xlim(left=min(0.97, *(x for x, *_ in points)))
        low, high = axes.get_xlim()
        ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:{'+' if y else ''}g} %")
        axes.set_xlabel("longest weighted gradient over the shortest, mean over time")
        axes.set_ylabel("gain over single tasks")
        told = "; ".join(f"{name} {x:.2f} times, {100 * y:+.1f} %" for x, y, _, name in points)
        return svg(figure, f"{title}: {told}")
