"""Rewrite the tables of docs/results.md from the records in docs/results/: `python benchmarks/results.py [--check]`.

A record is what a run wrote: results.json of recipes.py, fast_and_published.py, openset.py, incremental.py, domains.py,
extend.py and triage.py, the --json of training_step.py, evaluate.py, inference.py and serving.py, demo.json of `vmmr
demo`, and study.json of `vmmr study`, which `--study FILE NAME` puts there as NAME.json without the courses of its
gradients. --check writes nothing and fails where the page and the records disagree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import domains
import evaluate
import extend
import fast_and_published
import incremental
import inference
import openset
import recipes
import serving
import training_step
import triage
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.markdown import replace_part
from vmmr.evaluation.seeds import with_spread
from vmmr.evaluation.study_page import differences_table, study_table
from vmmr.files import write_json

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


def without_courses(study: dict[str, Any]) -> dict[str, Any]:
    """study.json without what was logged step by step."""
    runs = {key: {k: v for k, v in run.items() if k != "course"} for key, run in study["runs"].items()}
    analysis = study["analysis"]
    lines = [{k: v for k, v in line.items() if k != "course"} for line in analysis["settings"]]
    return {**study, "runs": runs, "analysis": {**analysis, "settings": lines}}


def study_tables(study: dict[str, Any]) -> str:
    """Markdown: every setting on clean images; and against one network a level."""
    return f"{study_table(study, 'clean')}\n\n{differences_table(study, 'clean')}"


def recommended_table(
    levels: dict[str, dict[str, float]], recipes_real: list[dict[str, Any]], robust_val: dict[str, dict[str, float]]
) -> str:
    """Markdown: top-1 of `robust` and of the same with a head for the make, a condition a row, on the same images.

    levels: top-1 by condition of the splits val and test; recipes_real: records with the row robust; robust_val: by
    condition {"torch"}, of its bundle on the validation images.
    """
    flat = next(record for record in recipes_real if record["row"] == "robust")["test"]["conditions"]
    before = {
        "test": {name: scores["top1"] for name, scores in flat.items()},
        "val": {name: scores["torch"] for name, scores in robust_val.items()},
    }
    lines = ["| images | condition | `robust` | `levels` |", "|---|---|---|---|"]
    for split, title in (("test", "4,064 test"), ("val", "813 validation")):
        for name, top1 in levels[split].items():
            cells = [title, condition_title(name), f"{100 * before[split][name]:.1f}", f"{100 * top1:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine_line(record: dict[str, Any]) -> str:
    """What was measured on what, in a line."""
    about = record["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in about["runtimes"].items())
    given = {k: " ".join(v) if isinstance(v, list) else v for k, v in record["settings"].items() if v is not None}
    settings = ", ".join(f"{name} {value}" for name, value in given.items())
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
        "open sets without label smoothing": openset.clean_table(_read("openset_hard_labels.json")["records"]),
        "new cars": incremental.tables(new_cars, new_cars[0]["times"]),
        "capture domains": domains.table(_read("domains.json")["records"]),
        "capture domains of real cars": domains.table(_read("domains_real.json")["records"]),
        "extended": extend.tables(_read("extend.json")["records"]),
        "triage": triage.tables(_read("triage.json")["records"]),
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
    found["levels under noise"] = recommended_table(
        _read("levels_noise.json"), _read("recipes_real.json")["records"], _read("robust_val.json")
    )
    for name in ("levels_real", "levels_rendered"):
        if (RECORDS / f"{name}.json").exists():
            found[name.replace("_", " ")] = study_tables(_read(f"{name}.json"))
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
    parser.add_argument("--study", nargs=2, metavar=("FILE", "NAME"))
    args = parser.parse_args()
    if args.study is not None:
        study = without_courses(json.loads(Path(args.study[0]).read_text(encoding="utf-8")))
        write_json(RECORDS / f"{args.study[1]}.json", study)
    text = PAGE.read_text(encoding="utf-8")
    if args.check:
        if with_tables(text) != text:
            raise SystemExit("docs/results.md and docs/results/ disagree: run `python benchmarks/results.py`")
    else:
        PAGE.write_text(with_tables(text), encoding="utf-8")


if __name__ == "__main__":
    main()
