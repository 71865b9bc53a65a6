"""Rewrite the tables of docs/results.md from the records in docs/results/: `python benchmarks/results.py [--check]`.

A record is what a run wrote: results.json of recipes.py, fast_and_published.py, openset.py and incremental.py,
extend.json of extend.py, the --json of training_step.py, evaluate.py, inference.py and serving.py, demo.json of `vmmr
demo`. --check writes nothing and fails where the page and the records disagree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import evaluate
import extend
import fast_and_published
import incremental
import inference
import openset
import recipes
import serving
import training_step
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.markdown import replace_part
from vmmr.evaluation.seeds import with_spread

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
RECORDS = PAGE.with_suffix("")


def _read(name: str) -> Any:
    return json.loads((RECORDS / name).read_text(encoding="utf-8"))


def demo_table(runs: list[dict[str, Any]]) -> str:
    """Markdown: top-1 in percent of the three models of `vmmr demo`, mean over seeds and, where several, the spread."""
    models = list(runs[0]["models"])

    def cells(values: list[list[float]]) -> str:
        return " | ".join(map(with_spread, 100 * np.array(values).T))

    lines = ["| condition | " + " | ".join(runs[0]["models"][m]["title"] for m in models) + " |"]
    lines.append("|---|" + "---|" * len(models))
    for name in runs[0]["models"][models[0]]["conditions"]:
        scores = [[run["models"][m]["conditions"][name]["top1"] for m in models] for run in runs]
        lines.append(f"| {condition_title(name)} | {cells(scores)} |")
    lines.append(f"| mean under noise | {cells([[run['under_noise'][m] for m in models] for run in runs])} |")
    return "\n".join(lines)


def precision_table(artifacts: dict[str, Any]) -> str:
    """Markdown: a condition a row; top-1 of torch, then of each artifact and how often its first answer is torch's."""
    lines = [f"| condition | torch | {' | '.join(artifacts)} |", "|---|---|" + "---|" * len(artifacts)]
    costs = [artifact["cost"]["conditions"] for artifact in artifacts.values()]
    for name, first in costs[0].items():
        cells = [f"{100 * cost[name]['exported']:.1f} ({100 * cost[name]['agreement']:.1f})" for cost in costs]
        lines.append(f"| {condition_title(name)} | {100 * first['torch']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine_line(record: dict[str, Any]) -> str:
    """What was measured on what, in a line."""
    about = record["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in about["runtimes"].items())
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items() if value is not None)
    return f"{about['processor']}, {about['cores']} cores; {libraries}; {settings}"


def tables() -> dict[str, str]:
    """Every table of the page by the name that its markers carry."""
    steps = _read("training_step.json")
    new_cars = _read("incremental.json")["records"]
    found = {
        "fast and published": fast_and_published.table(_read("fast_and_published.json")),
        "whole benchmark": evaluate.table(_read("evaluate.json")),
        "recipes on test images": recipes.table(_read("recipes_rendered.json")["records"], "test"),
        "recipes on validation images": recipes.table(_read("recipes_rendered.json")["records"], "val"),
        "recipes on a quarter of the labels": recipes.table(_read("recipes_quarter.json")["records"], "test"),
        "recipes on real cars": recipes.table(_read("recipes_real.json")["records"], "test"),
        "open sets on real cars": openset.tables(_read("openset.json")["records"]),
        "new cars": incremental.tables(new_cars, new_cars[0]["times"]),
        "extended": extend.table(_read("extend.json")),
        "precision": precision_table(_read("precision.json")),
        "demo": demo_table([_read(path.name) for path in sorted(RECORDS.glob("demo-*.json"))]),
    }
    if (RECORDS / "inference.json").exists():
        record = _read("inference.json")
        for backbone, results in record["results"].items():
            found[f"speed {backbone}"] = f"{inference.table(results)}\n\n{machine_line(record)}"
    if (RECORDS / "serving.json").exists():
        record = _read("serving.json")
        found["serving"] = f"{serving.table(record['results'])}\n\n{machine_line(record)}"
    for backbone in ("resnet50", "mobilenetv2_100"):
        found[f"batch {backbone}"] = training_step.table(backbone, steps[backbone])
    return found


def with_tables(text: str) -> str:
    """The page with every marked table made anew."""
    for name, table in tables().items():
        text = replace_part(text, name, table)
    return text


def main() -> None:
    """Write the page, or say that it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if args.check:
        if with_tables(text) != text:
            raise SystemExit("docs/results.md and docs/results/ disagree: run `python benchmarks/results.py`")
    else:
        PAGE.write_text(with_tables(text), encoding="utf-8")


if __name__ == "__main__":
    main()
