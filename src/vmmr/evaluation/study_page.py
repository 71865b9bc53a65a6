"""The numbers of a study as tables and as one page of HTML, see `vmmr.evaluation.study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmmr.evaluation.drawing import MOST_SERIES
from vmmr.evaluation.report import render, write_text
from vmmr.evaluation.study import Document, gain, succeeded
from vmmr.evaluation.study_figures import Dots, course_figure, dots_figure, scatter_figure
from vmmr.levels import LEVELS, NUMBERS
from vmmr.taxonomy import TREE

__all__ = ["TITLES", "differences_table", "study_table", "write_study"]

TITLES = {
    "marginal": "make by the finest",
    "joint": "both",
    "answered": "answered",
    "consistency": "consistent",
    "severity": "right make if wrong",
    "delta_m": "Δm",
}
"""What measures other than levels are called."""


def _measures(document: Document, condition: str) -> list[str]:
    """Measures that some setting has, in the order of a table."""
    held = {name for line in document["analysis"]["settings"] for name in line["conditions"][condition]}
    return [name for name in (*LEVELS, *TITLES) if name in held]


def _cell(measure: str, found: Document | None, key: str = "mean") -> str:
    """A number as a table has it: percent with one decimal, years for a level that answers a number."""
    if found is None or found[key] is None:
        return "–"
    value = found[key]
    if measure in NUMBERS:
        return f"{value:.1f} years"
    return f"{100 * value:{'+' if measure == 'delta_m' and key == 'mean' else ''}.1f}".replace("-", "−")


def study_table(document: Document, condition: str) -> str:
    """All settings under one condition as a Markdown table: percent, mean ± standard deviation over trainings."""
    measures = _measures(document, condition)
    lines = [
        f"| | {' | '.join(TITLES.get(measure, measure) for measure in measures)} |",
        f"|---|{'---:|' * len(measures)}",
    ]
    for line in document["analysis"]["settings"]:
        cells = []
        for measure in measures:
            found = line["conditions"][condition].get(measure)
            spread = "" if found is None or found["spread"] is None else f" ± {_cell(measure, found, 'spread')}"
            cells.append(_cell(measure, found) + spread)
        lines.append(f"| {_told(line)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences_table(document: Document, condition: str) -> str:
    """Settings of several levels against networks of one, seed by seed, as a Markdown table: percent points with their
    95 % interval over trainings."""
    lines = [line for line in document["analysis"]["settings"] if line["differences"].get(condition)]
    titles = {level: f"{level} − {level} alone" for level in TREE} | {
        "marginal": "make − by the finest alone",
        "marginals": "make by the finest − by the finest alone",
    }
    names = [name for name in titles if any(name in line["differences"][condition] for line in lines)]
    heads = [titles[name] for name in names]
    rows = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(names)}"]
    for line in lines:
        cells = [_points(line["differences"][condition].get(name)) for name in names]
        rows.append(f"| {_told(line)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _points(found: Document | None) -> str:
    if found is None:
        return "–"
    ends = [] if found["interval"] is None else [f"{100 * end:+.1f}" for end in found["interval"]]
    return (f"{100 * found['mean']:+.1f}" + (f" ({ends[0]} to {ends[1]})" if ends else "")).replace("-", "−")


def _told(line: Document) -> str:
    return str(line["name"]) + (f" (best of {line['candidates']})" if line["candidates"] > 1 else "")


def _cost_table(document: Document) -> str:
    lines = ["| | runs | seconds a run | relative | seconds, tuning included |", "|---|---:|---:|---:|---:|"]
    for line in document["analysis"]["settings"]:
        if line["seconds"] is not None:
            relative = "–" if line["relative_seconds"] is None else f"{line['relative_seconds']:.2f}"
            cells = [line["runs"], f"{line['seconds']['mean']:.0f}", relative, f"{line['seconds_of_all']:.0f}"]
            lines.append(f"| {line['name']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write_study(out: Path, document: Document) -> None:
    """Write study.json, study.md and study.html of an analysed document; nothing half-written is ever there."""
    write_text(out / "study.json", json.dumps(document, indent=1))
    parts = [f"# {document['title']}", f"Percent of {_images(document)}, mean ± standard deviation over trainings."]
    parts += [f"## {condition}\n\n{study_table(document, condition)}" for condition in document["conditions"]]
    parts += [
        f"## {condition}, against one network a level\n\n{differences_table(document, condition)}"
        for condition in document["conditions"]
        if any(line["differences"].get(condition) for line in document["analysis"]["settings"])
    ]
    parts += [f"## Cost\n\n{_cost_table(document)}"]
    write_text(out / "study.md", "\n\n".join(parts) + "\n")
    write_text(out / "study.html", _page(document))


def _images(document: Document) -> str:
    """The images that were judged, in words."""
    split = document["split"]
    counts = {
        told["images"]
        for run in succeeded(document["runs"], document["runs"], split)
        for condition in run[split].values()
        for measure, told in condition.items()
        if measure != "severity"
    }
    return f"{max(counts, default=0):,} {'validation' if split == 'val' else split} images"


def _page(document: Document) -> str:
    settings, lines = document["settings"], document["analysis"]["settings"]
    rows = list(dict.fromkeys(setting["row"] for setting in settings))
    series = {row: place % MOST_SERIES for place, row in enumerate(rows)}
    first = document["conditions"][0]
    drawn = [measure for measure in _measures(document, first) if measure in TREE or measure == "delta_m"]
    dots = [
        Dots(
            setting["row"],
            ", ".join(setting["choices"].values()),
            series[setting["row"]],
            {measure: line["conditions"][first].get(measure) for measure in drawn},
        )
        for setting, line in zip(settings, lines, strict=True)
    ]
    singles = {
        level: line["conditions"][first][level]["mean"]
        for setting, line in reversed(list(zip(settings, lines, strict=True)))
        for level in setting["levels"]
        if setting["levels"] == [level] and level in line["conditions"][first]
    }
    points = [
        (line["imbalance"]["mean"], worth, series[setting["row"]], setting["name"])
        for setting, line in zip(settings, lines, strict=True)
        if line["imbalance"] is not None and (worth := gain(line, first)) is not None
    ]
    courses = {
        row: [
            (", ".join(setting["choices"].values()) or row, line["course"])
            for setting, line in zip(settings, lines, strict=True)
            if setting["row"] == row and line["course"]
        ]
        for row in rows
    }
    every = [course for found in courses.values() for _, course in found]
    losses, pairs = (list(dict.fromkeys(n for course in every for n in course[kind])) for kind in ("norms", "cosines"))
    lengths = [v for course in every for values in course["norms"].values() for v in values if v]
    within = (min(lengths), max(lengths)) if lengths else (0.1, 1.0)
    best = _best(document)
    marks = {level: [value] for level, value in singles.items()} | {"delta_m": [0.0]}
    if best is not None and best["marginal"] is not None and "make" in marks:
        marks["make"].append(best["marginal"])
    return render(
        "study.html.jinja",
        document=document,
        lines=list(zip(settings, lines, strict=True)),
        rows=rows,
        series=series,
        first=first,
        measures={condition: _measures(document, condition) for condition in document["conditions"]},
        titles=TITLES,
        cell=_cell,
        images=_images(document),
        best=best,
        singles=singles,
        dots=dots_figure(dots, {m: TITLES.get(m, m) for m in drawn}, marks, "Every setting at every level")
        if drawn
        else None,
        losses=losses,
        pairs=pairs,
        courses={
            row: [
                (
                    title,
                    course_figure(course["steps"], course["norms"], losses, f"Lengths, {row}, {title}", within=within),
                    course_figure(course["steps"], course["cosines"], pairs, f"Cosines, {row}, {title}"),
                )
                for title, course in found
            ]
            for row, found in courses.items()
            if found
        },
        scatter=scatter_figure(points, "Imbalance against gain") if points else None,
        failed=[run | {"key": key} for key, run in document["runs"].items() if run["error"] is not None],
    )


def _best(document: Document) -> dict[str, Any] | None:
    """The setting of several levels that validation images like best, and the levels it stands for."""
    first = document["conditions"][0]
    ranked = [
        (line["scores"][line["chosen"]], -place, setting, line)
        for place, (setting, line) in enumerate(
            zip(document["settings"], document["analysis"]["settings"], strict=True)
        )
        if len(setting["levels"]) > 1 and line["chosen"] is not None
    ]
    if not ranked:
        return None
    _, _, setting, line = max(ranked, key=lambda entry: entry[:2])
    told = [
        other["conditions"][first]["marginal"]["mean"]
        for single, other in zip(document["settings"], document["analysis"]["settings"], strict=True)
        if len(single["levels"]) == 1
        and single["shared"] == setting["shared"]
        and "marginal" in other["conditions"].get(first, {})
    ]
    return {"setting": setting, "line": line, "marginal": told[0] if told else None}
