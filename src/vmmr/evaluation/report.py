"""Results as one page of HTML that needs nothing else: figures and pictures are inside, there are no scripts.

`write_report` takes plain dicts, as JSON gives them back, so that a page can be made again from a results file:

    {"title": "...", "lead": "what was compared, in a sentence or two",
     "models": {"plain": {"title": "Plain", "about": "...", "parameters": 1, "macs": 1, "train_seconds": 1.0,
                          "history": [{"epoch": 0, "val_top1": 0.5}, ...],
                          "conditions": {"clean": {"top1": 0.9, "top5": 1.0}, "gaussian_0.1": ..., "fog@3": ...}}, ...},
     "parts": [{"name": "...", "seconds": 1.0, "cpu_seconds": 1.0, "peak_gib": 1.0}, ...],
     "facts": {"seed": 0, ...}, "notes": ["...", ...]}

The first model is the one that the others are compared with.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from vmmr.errors import ConfigError
from vmmr.noise import HELD_OUT_OPS, OPS

__all__ = [
    "Example",
    "Reply",
    "condition_title",
    "corruption_figure",
    "history_figure",
    "picture_uri",
    "sigma_figure",
    "under_noise",
    "write_report",
]

Models = Mapping[str, Mapping[str, Any]]

_TITLES = {
    "gaussian": "Gaussian noise",
    "impulse": "impulse noise",
    "jpeg": "JPEG",
    "shot": "shot noise",
    "speckle": "speckle noise",
}


@dataclass(frozen=True)
class Reply:
    """What a model said: a class name, its probability, and whether it is the right one."""

    name: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A picture through a condition: uint8 [H, W, 3] clean, noisy and restored, and each model's reply to the noisy."""

    condition: str
    truth: str
    clean: NDArray[np.uint8]
    noisy: NDArray[np.uint8]
    restored: NDArray[np.uint8]
    replies: Mapping[str, Reply]


def condition_title(name: str) -> str:
    """A condition's name in words.

    >>> condition_title("gaussian_0.4"), condition_title("gaussian_blur@3"), condition_title("clean")
    ('Gaussian noise, σ 0.4', 'gaussian blur', 'clean')
    """
    if name.startswith("gaussian_") and "@" not in name:
        return f"Gaussian noise, σ {name.removeprefix('gaussian_')}"
    kind = name.partition("@")[0]
    return _TITLES.get(kind, kind.replace("_", " "))


def under_noise(conditions: Mapping[str, Mapping[str, float]]) -> float:
    """Mean top-1 over all conditions but the clean one.

    >>> under_noise({"clean": {"top1": 1.0}, "fog@3": {"top1": 0.25}, "gaussian_0.1": {"top1": 0.75}})
    0.5
    """
    found = [score["top1"] for name, score in conditions.items() if name != "clean"]
    return sum(found) / len(found)


def picture_uri(image: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] as a PNG data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# Figures are drawn in colours that stand for names, which the page's light or dark style then fills in.
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#04040{i}" for i in range(6))
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
}


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


def _axes(height: float, *, left: float = 0.7, right: float = 1.0) -> tuple[Figure, Axes]:
    """A figure as wide as the page, `height` inches high, with margins in inches beside the axes."""
    width, below, above = 9.4, 0.6, 0.15
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - above / height)
    return figure, figure.add_subplot()


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])


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
                float(name.removeprefix("gaussian_")): score["top1"]
                for name, score in model["conditions"].items()
                if name.startswith("gaussian_") and "@" not in name
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


def _rows(models: Models) -> dict[str, list[tuple[str, list[float]]]]:
    """Groups of conditions; each condition with the top-1 of every model."""
    groups: dict[str, list[str]] = {"": [], "Gaussian noise": [], "Seen in training": [], "Never seen in training": []}
    for name in next(iter(models.values()))["conditions"]:
        kind = name.partition("@")[0]
        if kind in OPS:
            groups["Never seen in training" if kind in HELD_OUT_OPS else "Seen in training"].append(name)
        else:
            groups["" if name == "clean" else "Gaussian noise"].append(name)
    return {
        title: [(name, [model["conditions"][name]["top1"] for model in models.values()]) for name in names]
        for title, names in groups.items()
        if names
    }


def write_report(path: Path, results: Mapping[str, Any], examples: Sequence[Example] = ()) -> Path:
    """Write the page; nothing half-written is ever at `path`. results: see the module.

    Raises ConfigError where there is nothing to compare.
    """
    models: Models = results["models"]
    if not 1 <= len(models) <= len(_SERIES):
        raise ConfigError("a report compares a few models", got=len(models), do=f"pass 1 to {len(_SERIES)}")
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda share: f"{100 * share:.1f} %", "title": condition_title}
    page = environment.get_template("page.html.jinja").render(
        results,
        noisy={name: under_noise(model["conditions"]) for name, model in models.items()},
        conditions=_rows(models),
        figures={
            "sigma": sigma_figure(models),
            "corruptions": corruption_figure(models),
            "history": history_figure(models),
        },
        examples=[(e, [picture_uri(p) for p in (e.clean, e.noisy, e.restored)]) for e in examples],
    )
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
