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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vmmr.errors import ConfigError
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.drawing import MOST_SERIES
from vmmr.evaluation.examples import Example, picture_uri
from vmmr.evaluation.figures import Models, corruption_figure, history_figure, sigma_figure
from vmmr.files import whole_file
from vmmr.noise import HELD_OUT_OPS, OPS

__all__ = ["render", "under_noise", "write_report", "write_text"]


def under_noise(conditions: Mapping[str, Mapping[str, float]]) -> float:
    """Mean top-1 over all conditions but the clean one.

    >>> under_noise({"clean": {"top1": 1.0}, "fog@3": {"top1": 0.25}, "gaussian_0.1": {"top1": 0.75}})
    0.5
    """
    found = [score["top1"] for name, score in conditions.items() if name != "clean"]
    return sum(found) / len(found)


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


def render(template: str, **values: object) -> str:
    """A page from a template of this folder; whatever is put into it is escaped, unless it is Markup."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["title"] = condition_title
    environment.filters["uri"] = picture_uri
    return environment.get_template(template).render(values)


def write_text(path: Path, text: str) -> Path:
    """Write a text file; nothing half-written is ever at `path`."""
    with whole_file(path) as file:
        file.write(text.encode())
    return path


def write_report(path: Path, results: Mapping[str, Any], examples: Sequence[Example] = ()) -> Path:
    """Write the page. results: see the module. Raises ConfigError where there is nothing to compare."""
    models: Models = results["models"]
    if not 1 <= len(models) <= MOST_SERIES:
        raise ConfigError("a report compares a few models", got=len(models), do=f"pass 1 to {MOST_SERIES}")
    page = render(
        "page.html.jinja",
        **results,
        noisy={name: under_noise(model["conditions"]) for name, model in models.items()},
        conditions=_rows(models),
        figures={
            "sigma": sigma_figure(models),
            "corruptions": corruption_figure(models),
            "history": history_figure(models),
        },
        titles={name: model["title"] for name, model in models.items()},
        examples=examples,
    )
    return write_text(path, page)
