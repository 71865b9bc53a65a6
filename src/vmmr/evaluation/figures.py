"""How results are drawn: every figure is an <svg> in the colours of the page that it stands in, light or dark.

`sigma_figure`, `corruption_figure` and `history_figure` take the models of a comparison as `vmmr.evaluation.report`
describes them; the others take plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vmmr.evaluation.conditions import condition_title, parse_condition
from vmmr.evaluation.drawing import (
    HALF,
    INK,
    LINE,
    MARKERS,
    MUTED,
    SERIES,
    SMALL,
    STYLE,
    THIRD,
    panel,
    percent_axis,
    svg,
)
from vmmr.noise import HELD_OUT_OPS, OPS

__all__ = [
    "Curve",
    "Models",
    "corruption_figure",
    "curve_figure",
    "history_figure",
    "reliability_figure",
    "sigma_figure",
]

Models = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """Accuracies in [0, 1] at rising levels, with the bounds of their intervals where those are known."""

    title: str
    levels: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


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
            color=SERIES[i],
            weight="bold",
            annotation_clip=False,
        )


def sigma_figure(models: Models) -> Markup:
    """Accuracy against the standard deviation of Gaussian noise, one line a model; 0 is the clean image."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(3.8)
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
            axes.plot(sigmas, values, "o-", color=SERIES[i], linewidth=2.4, markersize=5, clip_on=False)
            ends.append(values[-1])
        percent_axis(axes)
        axes.set_xticks(sigmas, ["clean", *(f"{sigma:g}" for sigma in sigmas[1:])])
        axes.set_xlabel("standard deviation of the noise, on images in [-1, 1]")
        _label_ends(axes, sigmas[-1], ends, [m["title"] for m in models.values()], gap=8)
        return svg(figure, "Accuracy falls as Gaussian noise grows")


def corruption_figure(models: Models) -> Markup:
    """Accuracy under each corruption, one dot a model; those that training never drew from stand apart, below."""
    names = [name for name in next(iter(models.values()))["conditions"] if name.partition("@")[0] in OPS]
    first, last = next(iter(models)), list(models)[-1]

    def gain(name: str) -> float:
        return float(models[last]["conditions"][name]["top1"] - models[first]["conditions"][name]["top1"])

    held = sorted((n for n in names if n.partition("@")[0] in HELD_OUT_OPS), key=gain)
    seen = sorted((n for n in names if n not in held), key=gain)
    rows = {name: y for y, name in enumerate(held)} | {name: len(held) + 0.8 + y for y, name in enumerate(seen)}
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure, axes = panel(0.33 * len(rows) + 1.0, left=1.4, right=2.0)
        for name, y in rows.items():
            values = [100 * model["conditions"][name]["top1"] for model in models.values()]
            axes.plot([min(values), max(values)], [y, y], color=LINE, linewidth=3, zorder=1, solid_capstyle="round")
            for i, value in enumerate(values):
                axes.plot(value, y, "o", color=SERIES[i], markersize=8, zorder=2 + i, clip_on=False)
        if rows:
            axes.set_yticks(list(rows.values()), [condition_title(name) for name in rows], color=INK)
            axes.set_ylim(-0.6, max(rows.values()) + 0.6)
        for group, title in ((seen, "seen in training"), (held, "never seen in training")):
            if group:
                place = rows[group[-1]]
                axes.text(103, place, title, color=MUTED, style="italic", va="center")
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.spines["bottom"].set_visible(False)
        return svg(figure, "Accuracy under each corruption")


def history_figure(models: Models) -> Markup:
    """Validation accuracy after each epoch, one line a model; the ring is the epoch that was kept."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(3.4)
        ends = []
        longest = 1
        for i, model in enumerate(models.values()):
            values = [100 * row["val_top1"] for row in model["history"]]
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, color=SERIES[i], linewidth=2.2)
            best = int(np.argmax(values))
            axes.plot(best + 1, values[best], "o", color=SERIES[i], markersize=8, fillstyle="none", markeredgewidth=2)
            ends.append(values[-1])
            longest = max(longest, len(values))
        percent_axis(axes)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label_ends(axes, longest, ends, [m["title"] for m in models.values()], gap=9)
        return svg(figure, "Validation accuracy by epoch")


def _told(curve: Curve) -> str:
    return f"{curve.title} from {100 * curve.values[0]:.1f} % to {100 * curve.values[-1]:.1f} %"


def curve_figure(curves: Sequence[Curve], title: str, *, level: str = "", small: bool = False) -> Markup:
    """Accuracy against level, one line a model in its own colour and mark, its interval as a shade around it.

    level: what the horizontal axis says. small: one of many beside one another; axes are then marked sparsely. The
    text alternative tells where each line starts and ends.
    """
    with matplotlib.rc_context(STYLE):
        if small:
            figure, axes = panel(1.45, width=SMALL, left=0.55, right=0.1, below=0.3)
        else:
            figure, axes = panel(2.9, width=HALF, left=0.65, right=0.15)
        levels = sorted({level for curve in curves for level in curve.levels})
        for i, curve in enumerate(curves):
            values = [100 * value for value in curve.values]
            if curve.low:
                low, high = [100 * value for value in curve.low], [100 * value for value in curve.high]
                axes.fill_between(curve.levels, low, high, color=SERIES[i], alpha=0.18, linewidth=0)
            axes.plot(
                curve.levels,
                values,
                f"{MARKERS[i]}-",
                color=SERIES[i],
                linewidth=1.6 if small else 2.2,
                markersize=3 if small else 5,
                clip_on=False,
            )
        percent_axis(axes, 50 if small else 25)
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_xlim(levels[0], levels[-1])
        axes.set_xlabel(level)
        return svg(figure, f"{title}: {'; '.join(map(_told, curves))}" if curves else title)


def reliability_figure(bins: Mapping[str, Sequence[Mapping[str, float]]], title: str, series: int = 0) -> Markup:
    """Accuracy against confidence in bins {"confidence", "accuracy", "share"}; on the diagonal, confidence is what it
    says. A mark's area is the share of images in its bin, empty bins are left out.

    bins: those of clean, corrupted and calibrated, in this order; a list without bins is not drawn. series: the place
    of the model, whose colour the clean line has.
    """
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = panel(3.4, width=THIRD, left=0.95, right=0.3)
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, dashes=(2, 3), zorder=1)
        looks = ((SERIES[series], "-", "o"), (MUTED, "--", "s"), (INK, ":", "^"))
        for rows, (colour, line, mark) in zip(bins.values(), looks, strict=False):
            held = [row for row in rows if row["share"] > 0]
            x, y = [100 * row["confidence"] for row in held], [100 * row["accuracy"] for row in held]
            axes.plot(x, y, color=colour, linestyle=line, linewidth=1.3, alpha=0.6, zorder=2)
            sizes = [4 + 400 * row["share"] for row in held]
            axes.scatter(x, y, sizes, color=colour, marker=mark, linewidth=0, alpha=0.85, zorder=3, clip_on=False)
        percent_axis(axes)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel("how sure it says it is")
        axes.set_ylabel("how often it is right")
        return svg(figure, title)
