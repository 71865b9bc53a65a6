"""What a study tells: single-task against multi-task by level, gain, cost, and how gradients went. `vmmr study`.

Plain documents in, as study.json holds them, and out: docs/study.md says what is in them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, spearmanr

from vmmr.evaluation.hierarchy import delta_m
from vmmr.evaluation.seeds import mean_interval, student_half_width
from vmmr.levels import NUMBERS
from vmmr.taxonomy import TREE

__all__ = ["Document", "analysed", "chosen", "gain", "imbalance", "measured", "read_course", "succeeded"]

Document = Mapping[str, Any]
"""What JSON holds."""


def measured(document: Document, levels: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """The measures of a results document by condition, each {"value", "images"} with the images that count there.

    Every level by itself, by its name: top-1, or the mean error in years of a number. Of networks that go below the
    make: marginal, the make as the finest level tells it; answered, top-1 of the one consistent answer; severity, the
    share of its mistakes with the right make. Of networks with two levels of the tree: joint and consistency of levels
    by themselves, see `hierarchy_scores`. What cannot be told has no entry.
    """
    images = document["data"]["images"]
    tree = [level for level in TREE if level in levels]
    found = {}
    for name, scores in document["conditions"].items():
        cell = {
            level: {"value": said["mean_error" if level in NUMBERS else "top1"], "images": said["images"]}
            for level, said in scores["levels"].items()
        }
        if tree != ["make"]:
            mistakes = (document.get("mistakes") or {}) if name == "clean" else {}
            severity = scores["consistent"]["severity"] if len(tree) > 1 else mistakes.get("same_make")
            wrong = round((1 - scores["top1"]) * images)
            said = {"marginal": scores["marginal"]["make"], "answered": scores["top1"]}
            cell |= {measure: {"value": value, "images": images} for measure, value in said.items()}
            cell |= {"severity": {"value": severity, "images": wrong}} if severity is not None else {}
        if len(tree) > 1:
            for measure in ("joint", "consistency"):
                cell[measure] = {"value": scores["independent"][measure], "images": images}
        found[name] = cell
    return found


def read_course(path: Path) -> dict[str, Any]:
    """Lengths, cosines and weights of gradients over time, from the log.csv of a run: {"steps": [...], "norms":
    {"make": [...]}, "cosines": {"make~class": [...]}, "weights": {...}}, None where a value was not measured. Empty
    where nothing was. What a resumed run logged twice counts once, the later time."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            (int(row["step"]), *row["name"].partition("/")[::2], float(row["value"])) for row in csv.DictReader(file)
        ]
    values: dict[str, dict[str, dict[int, float]]] = {"norms": {}, "cosines": {}, "weights": {}}
    for step, kind, name, value in rows:
        if kind in values and math.isfinite(value):
            values[kind].setdefault(name, {})[step] = value
    steps = sorted({step for found in values["norms"].values() for step in found})
    if not steps:
        return {}
    told = {
        kind: {name: [at.get(step) for step in steps] for name, at in found.items()} for kind, found in values.items()
    }
    return {"steps": steps, **told}


def imbalance(course: Document) -> float | None:
    """How much longer the longest weighted gradient is than the shortest: the geometric mean over time of the ratio of
    weight times length. 1 is balanced; None where fewer than two were measured together.

    >>> imbalance({"steps": [10, 20], "norms": {"make": [1.0, 2.0], "class": [4.0, 2.0]}, "weights": {}})
    2.0
    """
    ratios = []
    for k in range(len(course.get("steps", []))):
        lengths = []
        for name, norms in course["norms"].items():
            weight = course["weights"][name][k] if name in course["weights"] else 1.0
            if norms[k] is not None and weight is not None:
                lengths.append(abs(weight) * norms[k])
        if len(lengths) > 1 and min(lengths) > 0:
            ratios.append(math.log(max(lengths) / min(lengths)))
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def succeeded(runs: Mapping[str, Document], keys: Iterable[str], split: str) -> list[Document]:
    """Those of these runs that ended well and were judged on the split."""
    return [runs[key] for key in keys if runs[key]["error"] is None and split in runs[key]]


def _score(run: Document, levels: Sequence[str], condition: str) -> float:
    """What selects: the mean top-1 on validation images over the levels of the tree, each by itself."""
    return float(np.mean([run["val"][condition][level]["value"] for level in levels if level in TREE]))


def _val_score(candidate: Document, setting: Document, runs: Mapping[str, Document], condition: str) -> float | None:
    found = [_score(run, setting["levels"], condition) for run in succeeded(runs, candidate["runs"], "val")]
    return float(np.mean(found)) if found else None


def chosen(setting: Document, runs: Mapping[str, Document], condition: str) -> int | None:
    """The place of the candidate with the best validation score, the mean over its trainings; a candidate of which a
    training failed comes after whole ones. None where all failed. Test images have no say."""
    ranked = []
    for place, candidate in enumerate(setting["candidates"]):
        score = _val_score(candidate, setting, runs, condition)
        if score is not None:
            ranked.append((len(succeeded(runs, candidate["runs"], "val")), score, -place))
    return -max(ranked)[2] if ranked else None


def _over(values: Sequence[float], images: Sequence[int] | None = None) -> dict[str, Any]:
    """Mean, spread and 95 % interval over trainings; of shares of images also over the images, by Wilson's interval."""
    mean, count = float(np.mean(values)), len(values)
    spread = float(np.std(values, ddof=1)) if count > 1 else None
    interval = None
    if images is not None:
        inside = [
            binomtest(round(value * n), n).proportion_ci(method="wilson")
            for value, n in zip(values, images, strict=True)
        ]
        interval = mean_interval(values, [[found.low, found.high] for found in inside])
    elif spread is not None:
        half = student_half_width(values)
        interval = [mean - half, mean + half]
    return {"mean": mean, "spread": spread, "interval": interval, "trainings": count}


def analysed(document: Document) -> dict[str, Any]:
    """The document with its "analysis": a line a setting, in the order of its settings, and the rank correlation
    between imbalance and performance over the settings of several levels, where at least five have both."""
    runs, split, first = document["runs"], document["split"], document["conditions"][0]
    places = [chosen(setting, runs, first) for setting in document["settings"]]
    lines = [
        _line(setting, place, document, list(zip(document["settings"], places, strict=True)))
        for setting, place in zip(document["settings"], places, strict=True)
    ]
    for line, setting in zip(lines, document["settings"], strict=True):
        base = next(
            found
            for found, other in zip(lines, document["settings"], strict=True)
            if (other["row"], other["shared"]) == (setting["row"], setting["shared"])
        )
        line["relative_seconds"] = None
        if line["seconds"] is not None and base["seconds"] is not None and base["seconds"]["mean"] > 0:
            line["relative_seconds"] = line["seconds"]["mean"] / base["seconds"]["mean"]
    points = [
        (line["imbalance"]["mean"], worth)
        for line in lines
        if line["imbalance"] is not None and (worth := gain(line, first)) is not None
    ]
    unlike, gains = [x for x, _ in points], [y for _, y in points]
    known = None
    if len(points) >= 5 and len(set(unlike)) > 1 and len(set(gains)) > 1:
        known = {"spearman": float(spearmanr(unlike, gains).statistic), "settings": len(points)}
    return {**document, "analysis": {"split": split, "settings": lines, "correlation": known}}


def gain(line: Document, condition: str) -> float | None:
    """Delta_m of a line of the analysis: performance in one number, where there are single tasks to compare with."""
    found = line["conditions"].get(condition, {}).get("delta_m")
    return None if found is None else float(found["mean"])


def _line(
    setting: Document, place: int | None, document: Document, every: Sequence[tuple[Document, int | None]]
) -> dict[str, Any]:
    runs, split = document["runs"], document["split"]
    tried = setting["candidates"]
    all_done = [run for candidate in tried for run in succeeded(runs, candidate["runs"], "val")]
    found = succeeded(runs, tried[place]["runs"], split) if place is not None else []
    scores = [_val_score(candidate, setting, runs, document["conditions"][0]) for candidate in tried]
    # What candidates are compared by: those that lost have no run of another seed.
    first = [_val_score({"runs": c["runs"][:1]}, setting, runs, document["conditions"][0]) for c in tried]
    conditions, differences = {}, {}
    for condition in document["conditions"]:
        measures = [run[split][condition] for run in found]
        cell = {}
        for measure in dict.fromkeys(name for told in measures for name in told):
            held = [told[measure] for told in measures if measure in told]
            images = None if measure in NUMBERS else [said["images"] for said in held]
            cell[measure] = _over([said["value"] for said in held], images)
        gains = _gains(setting, found, every, runs, split, condition)
        conditions[condition] = cell | ({"delta_m": _over(gains)} if gains else {})
        differences[condition] = _differences(setting, found, every, runs, split, condition)
    courses = [run["course"] for run in found if run["course"]]
    ratios = [ratio for course in courses if (ratio := imbalance(course)) is not None]
    return {
        "name": setting["name"],
        "chosen": place,
        "candidates": len(tried),
        "scores": scores,
        "tuning": first,
        "runs": len({key for candidate in tried for key in candidate["runs"]}),
        "conditions": conditions,
        "differences": differences,
        "seconds": _over([run["seconds"] for run in found]) if found else None,
        "seconds_of_all": sum(run["seconds"] for run in all_done),
        "imbalance": _over(ratios) if ratios else None,
        "course": _mean_course(courses),
        "errors": sorted({runs[key]["error"] for c in tried for key in c["runs"] if runs[key]["error"] is not None}),
    }


def _gains(
    setting: Document,
    found: Sequence[Document],
    every: Sequence[tuple[Document, int | None]],
    runs: Mapping[str, Document],
    split: str,
    condition: str,
) -> list[float]:
    """Delta_m by training, over the levels of the tree, against the networks of one level and the same seed; of the
    seeds for which all of them are there."""
    if len(setting["levels"]) == 1:
        return []
    alone = {
        level: _alone(level, level, setting, every, runs, split, condition)
        for level in setting["levels"]
        if level in TREE
    }
    gains = []
    for run in found:
        single = {level: by_seed.get(run["seed"], 0.0) for level, by_seed in alone.items()}
        if all(single.values()):  # nothing is relative to a network that is missing, or never right
            gains.append(delta_m({level: run[split][condition][level]["value"] for level in single}, single))
    return gains


def _differences(
    setting: Document,
    found: Sequence[Document],
    every: Sequence[tuple[Document, int | None]],
    runs: Mapping[str, Document],
    split: str,
    condition: str,
) -> dict[str, Any]:
    """By level of the tree, how much more of the images is named right than by the network of that level alone, seed by
    seed; `marginal`: how much more makes than by the network of the finest level alone, asked for the make; and
    `marginals`: the same where both are asked so."""
    tree = [level for level in TREE if level in setting["levels"]]
    if len(setting["levels"]) == 1 or not tree:
        return {}
    rivals = {level: (level, level, level) for level in tree}  # its measure, the network beside it, and that one's
    if tree[0] == "make" and len(tree) > 1:
        rivals["marginal"] = ("make", tree[-1], "marginal")
        rivals["marginals"] = ("marginal", tree[-1], "marginal")
    told = {}
    for name, (own, level, measure) in rivals.items():
        single = _alone(level, measure, setting, every, runs, split, condition)
        values = [run[split][condition][own]["value"] - single[run["seed"]] for run in found if run["seed"] in single]
        if values:
            told[name] = _over(values)
    return told


def _alone(
    level: str,
    measure: str,
    setting: Document,
    every: Sequence[tuple[Document, int | None]],
    runs: Mapping[str, Document],
    split: str,
    condition: str,
) -> dict[int, float]:
    """A measure of the network of this level alone with the same choices, by seed; empty where there is none."""
    for other, place in every:
        if other["levels"] == [level] and other["shared"] == setting["shared"] and place is not None:
            kept = succeeded(runs, other["candidates"][place]["runs"], split)
            return {run["seed"]: run[split][condition][measure]["value"] for run in kept}
    return {}


def _mean_course(courses: Sequence[Document]) -> dict[str, Any]:
    """The mean over trainings at every step that all of them measured."""
    if not courses:
        return {}
    steps = sorted(set.intersection(*(set(course["steps"]) for course in courses)))
    mean: dict[str, Any] = {"steps": steps}
    for kind in ("norms", "cosines"):
        mean[kind] = {}
        for name in courses[0][kind]:
            told = [dict(zip(course["steps"], course[kind].get(name, []), strict=False)) for course in courses]
            held = [[at[step] for at in told if at.get(step) is not None] for step in steps]
            mean[kind][name] = [float(np.mean(values)) if values else None for values in held]
    return mean
