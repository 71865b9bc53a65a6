"""How results are drawn: every figure is an <svg> in the colours of the page that it stands in, light or dark.

`sigma_figure`, `corruption_figure` and `history_figure` take the models of a comparison as `vmmr.evaluation.report`
describes them; the others take plain numbers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vmmr.evaluation.conditions import condition_title, parse_condition
from vmmr.noise import HELD_OUT_OPS, OPS

__all__ = [
    "MOST_SERIES",
    "Curve",
    "Dots",
    "Models",
    "corruption_figure",
    "course_figure",
    "curve_figure",
    "dots_figure",
    "history_figure",
    "reliability_figure",
    "scatter_figure",
    "sigma_figure",
]

Models = Mapping[str, Mapping[str, Any]]

# Figures are drawn in colours that stand for names, which the page's light or dark style then fills in.
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#04040{i}" for i in range(6))
_MARKERS = "os^DvP"
MOST_SERIES = len(_SERIES)
"""No more models than this on one page: that many colours and marks can be told apart."""

_NAMED = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES)
}
_STYLE: Any = {
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "vmmr",
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
}
_WIDE, _HALF, _THIRD, _SMALL = 9.4, 4.6, 3.7, 2.3


@dataclass(frozen=True)
class Curve:
    """Accuracies in [0, 1] at rising levels, with the bounds of their intervals where those are known."""

    title: str
    levels: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dots:
    """A line of `dots_figure`: the group that it belongs to, its name there, the group's colour, and by measure
    {"mean", "interval"} as shares; None where a measure is missing."""

    group: str
    name: str
    series: int
    measures: Mapping[str, Mapping[str, Any] | None]


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> element to stand in a page, in the page's colours and font."""
    file = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, name in _NAMED.items():
        svg = svg.replace(colour, name)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # group names repeat from figure to figure; nothing refers to them
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r' height="[^"]*pt"', "", svg, count=1), count=1)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit-family", svg).replace(
        "inherit-family", "system-ui, sans-serif"
    )
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))


def _axes(
    height: float, *, width: float = _WIDE, left: float = 0.7, right: float = 1.0, below: float = 0.6
) -> tuple[Figure, Axes]:
    """A figure of this size in inches, with margins in inches around the axes."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - 0.15 / height)
    return figure, figure.add_subplot()


def _percent_axis(axes: Axes, step: int = 25) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, step), [f"{tick} %" for tick in range(0, 101, step)])


def _label_ends(axes: Axes, x: float, ends: Sequence[float], titles: Sequence[str], gap: float) -> None:
    """Name each line at its end, the names at least `gap` apart and as near to their lines as that allows."""
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    places: list[float] = []
    for i in order:
        places.append(max(ends[i], places[-1] + gap) if places else ends[i])
    shift = sum(places) / len(places) - sum(ends) / len(ends)
    for place, i in zip(places, order, strict=True):
        axes.annotate(
            titles[i],
            (x, place - shift),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=_SERIES[i],
            weight="bold",
            annotation_clip=False,
        )


def sigma_figure(models: Models) -> Markup:
    """Accuracy against the standard deviation of Gaussian noise, one line a model; 0 is the clean image."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(3.8)
        ends = []
        sigmas: list[float] = []
        for i, model in enumerate(models.values()):
            scores = {0.0: model["conditions"]["clean"]["top1"]} | {
                parse_condition(name).level: score["top1"]
                for name, score in model["conditions"].items()
                if parse_condition(name).kind == "sigma"
            }
            sigmas = sorted(scores)
            values = [100 * scores[sigma] for sigma in sigmas]
            axes.plot(sigmas, values, "o-", color=_SERIES[i], linewidth=2.4, markersize=5, clip_on=False)
            ends.append(values[-1])
        _percent_axis(axes)
        axes.set_xticks(sigmas, ["clean", *(f"{sigma:g}" for sigma in sigmas[1:])])
        axes.set_xlabel("standard deviation of the noise, on images in [-1, 1]")
        _label_ends(axes, sigmas[-1], ends, [m["title"] for m in models.values()], gap=8)
        return _svg(figure, "Accuracy falls as Gaussian noise grows")


def corruption_figure(models: Models) -> Markup:
    """Accuracy under each corruption, one dot a model; those that training never drew from stand apart, below."""
    names = [name for name in next(iter(models.values()))["conditions"] if name.partition("@")[0] in OPS]
    first, last = next(iter(models)), list(models)[-1]

    def gain(name: str) -> float:
        return float(models[last]["conditions"][name]["top1"] - models[first]["conditions"][name]["top1"])

    held = sorted((n for n in names if n.partition("@")[0] in HELD_OUT_OPS), key=gain)
    seen = sorted((n for n in names if n not in held), key=gain)
    rows = {name: y for y, name in enumerate(held)} | {name: len(held) + 0.8 + y for y, name in enumerate(seen)}
    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure, axes = _axes(0.33 * len(rows) + 1.0, left=1.4, right=2.0)
        for name, y in rows.items():
            values = [100 * model["conditions"][name]["top1"] for model in models.values()]
            axes.plot([min(values), max(values)], [y, y], color=_LINE, linewidth=3, zorder=1, solid_capstyle="round")
            for i, value in enumerate(values):
                axes.plot(value, y, "o", color=_SERIES[i], markersize=8, zorder=2 + i, clip_on=False)
        if rows:
            axes.set_yticks(list(rows.values()), [condition_title(name) for name in rows], color=_INK)
            axes.set_ylim(-0.6, max(rows.values()) + 0.6)
        for group, title in ((seen, "seen in training"), (held, "never seen in training")):
            if group:
                place = rows[group[-1]]
                axes.text(103, place, title, color=_MUTED, style="italic", va="center")
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.spines["bottom"].set_visible(False)
        return _svg(figure, "Accuracy under each corruption")


def history_figure(models: Models) -> Markup:
    """Validation accuracy after each epoch, one line a model; the ring is the epoch that was kept."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(3.4)
        ends = []
        longest = 1
        for i, model in enumerate(models.values()):
            values = [100 * row["val_top1"] for row in model["history"]]
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, color=_SERIES[i], linewidth=2.2)
            best = int(np.argmax(values))
            axes.plot(best + 1, values[best], "o", color=_SERIES[i], markersize=8, fillstyle="none", markeredgewidth=2)
            ends.append(values[-1])
            longest = max(longest, len(values))
        _percent_axis(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label_ends(axes, longest, ends, [m["title"] for m in models.values()], gap=9)
        return _svg(figure, "Validation accuracy by epoch")


def _told(curve: Curve) -> str:
    return f"{curve.title} from {100 * curve.values[0]:.1f} % to {100 * curve.values[-1]:.1f} %"


def curve_figure(curves: Sequence[Curve], title: str, *, level: str = "", small: bool = False) -> Markup:
    """Accuracy against level, one line a model in its own colour and mark, its interval as a shade around it.

    level: what the horizontal axis says. small: one of many beside one another; axes are then marked sparsely. The
    text alternative tells where each line starts and ends.
    """
    with matplotlib.rc_context(_STYLE):
        if small:
            figure, axes = _axes(1.45, width=_SMALL, left=0.55, right=0.1, below=0.3)
        else:
            figure, axes = _axes(2.9, width=_HALF, left=0.65, right=0.15)
        levels = sorted({level for curve in curves for level in curve.levels})
        for i, curve in enumerate(curves):
            values = [100 * value for value in curve.values]
            if curve.low:
                low, high = [100 * value for value in curve.low], [100 * value for value in curve.high]
                axes.fill_between(curve.levels, low, high, color=_SERIES[i], alpha=0.18, linewidth=0)
            axes.plot(
                curve.levels,
                values,
                f"{_MARKERS[i]}-",
                color=_SERIES[i],
                linewidth=1.6 if small else 2.2,
                markersize=3 if small else 5,
                clip_on=False,
            )
        _percent_axis(axes, 50 if small else 25)
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_xlim(levels[0], levels[-1])
        axes.set_xlabel(level)
        return _svg(figure, f"{title}: {'; '.join(map(_told, curves))}" if curves else title)


def reliability_figure(bins: Mapping[str, Sequence[Mapping[str, float]]], title: str, series: int = 0) -> Markup:
    """Accuracy against confidence in bins {"confidence", "accuracy", "share"}; on the diagonal, confidence is what it
    says. A mark's area is the share of images in its bin, empty bins are left out.

    bins: those of clean, corrupted and calibrated, in this order; a list without bins is not drawn. series: the place
    of the model, whose colour the clean line has.
    """
    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "both"}):
        figure, axes = _axes(3.4, width=_THIRD, left=0.95, right=0.3)
        axes.plot([0, 100], [0, 100], color=_MUTED, linewidth=1, dashes=(2, 3), zorder=1)
        looks = ((_SERIES[series], "-", "o"), (_MUTED, "--", "s"), (_INK, ":", "^"))
        for rows, (colour, line, mark) in zip(bins.values(), looks, strict=False):
            held = [row for row in rows if row["share"] > 0]
            x, y = [100 * row["confidence"] for row in held], [100 * row["accuracy"] for row in held]
            axes.plot(x, y, color=colour, linestyle=line, linewidth=1.3, alpha=0.6, zorder=2)
            sizes = [4 + 400 * row["share"] for row in held]
            axes.scatter(x, y, sizes, color=colour, marker=mark, linewidth=0, alpha=0.85, zorder=3, clip_on=False)
        _percent_axis(axes)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel("how sure it says it is")
        axes.set_ylabel("how often it is right")
        return _svg(figure, title)


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
    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        height = 0.27 * place + 1.0
        left = min(3.8, 0.6 + 0.075 * max(len(name) for line in lines for name in (line.name, line.group)))
        figure = Figure(figsize=(_WIDE, height))
        figure.subplots_adjust(left / _WIDE, 0.4 / height, 0.985, 1 - 0.45 / height, wspace=0.16)
        panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, (measure, told) in zip(panels, titles.items(), strict=True):
            for mark, dashes in zip(marks.get(measure, ()), ((1, 2), (5, 3)), strict=False):
                axes.axvline(100 * mark, color=_MUTED, linewidth=1.2, dashes=dashes, zorder=1)
            for line, y in zip(lines, heights, strict=True):
                found = line.measures.get(measure)
                if found is None:
                    continue
                colour = _SERIES[line.series]
                if found["interval"] is not None:
                    ends = [100 * end for end in found["interval"]]
                    axes.plot(ends, [y, y], color=colour, alpha=0.4, linewidth=4, solid_capstyle="round", zorder=2)
                axes.plot(100 * found["mean"], y, "o", color=colour, markersize=7, zorder=3)
            axes.set_title(told, color=_INK, fontsize=12, weight="bold", loc="left", pad=8)
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
            _beside(panels[0], group, y, start=4 - 72 * left, color=_SERIES[series], weight="bold")
        return _svg(figure, title)


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
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(1.6, width=_SMALL, left=0.55, right=0.12, below=0.32)
        for name, values in curves.items():
            place = order.index(name) % MOST_SERIES
            held = [math.nan if value is None else value for value in values]
            every = max(1, len(held) // 6)
            look = f"{_MARKERS[place]}-"
            axes.plot(steps, held, look, color=_SERIES[place], linewidth=1.6, markersize=3, markevery=every)
        if within is None:
            axes.set_ylim(-1, 1)
            axes.set_yticks([-1, 0, 1])
            axes.axhline(0, color=_MUTED, linewidth=1)
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
        return _svg(figure, title)


def scatter_figure(points: Sequence[tuple[float, float, int, str]], title: str) -> Markup:
    """Gain, a share, against imbalance, a ratio of 1 or more on a logarithmic axis: (imbalance, gain, series, name) of
    each setting. The text alternative names them all."""
    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "both"}):
        figure, axes = _axes(3.6, left=0.9, right=0.3)
        axes.axhline(0, color=_MUTED, linewidth=1.2, dashes=(2, 3), zorder=1)
        for x, y, series, _ in points:
            axes.plot(x, 100 * y, _MARKERS[series], color=_SERIES[series], markersize=9, alpha=0.85, zorder=2)
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
        return _svg(figure, f"{title}: {told}")
