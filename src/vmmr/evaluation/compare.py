"""Results documents, one or several over one another, as one page of HTML: `vmmr evaluate --report`, `vmmr compare`.

A results document is the JSON of `vmmr.evaluation.evaluate`. The page shows what the documents hold: a part whose
numbers none of them has is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmmr.errors import ConfigError
from vmmr.evaluation.conditions import condition_title, families, parse_condition
from vmmr.evaluation.drawing import MOST_SERIES
from vmmr.evaluation.examples import Example
from vmmr.evaluation.figures import Curve, curve_figure, reliability_figure
from vmmr.evaluation.report import render, write_text

__all__ = [
    "FAMILY_TITLES",
    "SUMMARY_TITLES",
    "Documents",
    "between",
    "family_curves",
    "mean_over",
    "name_results",
    "read_results",
    "require_comparable",
    "sigma_curves",
    "write_comparison",
]

Documents = Mapping[str, Mapping[str, Any]]
"""Results documents by the name of the model."""

FAMILY_TITLES = {"common": "Common corruptions", "validation": "Held-out corruptions", "camera": "Camera and road"}
_ABOUT = {
    "common": "Those of ImageNet-C: noise, blur, weather, digital.",
    "validation": "Of ImageNet-C as well, never drawn in training.",
    "camera": "Darkness, rain, travel, transmission, distance.",
}
SUMMARY_TITLES = {
    "clean": "Clean images",
    "mean_corruption": "All corruptions",
    "common": "Common corruptions",
    "validation": "Held-out corruptions",
    "camera": "Camera and road",
    "gaussian": "Gaussian noise",
}
_MEASURES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "macro": "Mean over classes",
    "make": "Make",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "nll": "NLL",
}
_GENERIC = ("bundle", "report", "results.json")


def read_results(path: Path) -> dict[str, Any]:
    """A results document from its file, or from the folder that holds it as results.json.

    Raises ConfigError for a file that is none, naming it.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        do = "name a file of `vmmr evaluate --json`, or a folder of `vmmr evaluate --report`"
        raise ConfigError(f"cannot read results from {file.name}", got=error, do=do) from error
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != ("vmmr-evaluation", 1):
        raise ConfigError(f"{file.name} holds no results of a format we know", do="evaluate the bundle anew")
    conditions = document.get("conditions")
    if not isinstance(conditions, dict) or "clean" not in conditions:
        raise ConfigError(f"the results in {file.name} have no clean images to compare with", do="evaluate anew")
    for name, score in conditions.items():
        try:
            parse_condition(name)
            fine = 0 <= score["top1"] <= 1
        except (TypeError, KeyError, ValueError):
            fine = False
        if not fine:
            raise ConfigError(f"a condition in {file.name} has no accuracy", got=repr(name), do="evaluate anew")
    return document


def name_results(paths: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """The places of results by the names of their models: those given, else what the paths are called, less the words
    that say nothing ("bundle", "report", "results.json"). Places of one name are trainings of one model; only given
    names may repeat.

    >>> list(name_results([Path("/runs/plain/report/results.json"), Path("/runs/student"), Path("/runs/teacher.json")]))
    ['plain', 'student', 'teacher']
    """
    given = names is not None
    if names is None:
        names = []
        for path in paths:
            part = path.absolute()
            while part.name in _GENERIC:
                part = part.parent
            names.append(part.name.removesuffix(".json"))
    if len(names) != len(paths) or not (given or len(set(names)) == len(names)):
        do = "name each with --names; trainings of one model share theirs"
        raise ConfigError("every result needs the name of its model", got=", ".join(names), do=do)
    named: dict[str, list[Path]] = {name: [] for name in names}
    for name, path in zip(names, paths, strict=True):
        named[name].append(path)
    return named


def mean_over(document: Mapping[str, Any], names: Sequence[str], measure: str = "top1") -> float | None:
    """The mean of a measure over conditions; None where one of them lacks it."""
    found = [document["conditions"][name].get(measure) for name in names]
    return None if None in found or not found else float(np.mean(found))


def between(interval: Sequence[float]) -> str:
    """The bounds of an interval in percent.

    >>> between([0.25, 0.5])
    '25.0–50.0'
    """
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def _curve(title: str, document: Mapping[str, Any], steps: Mapping[float, Sequence[str]]) -> Curve:
    """Means over the conditions of each level. The bounds of an interval are means as well: whatever the correlation
    of the conditions, the interval of a mean is no wider than the mean of the intervals."""
    values = [mean_over(document, names) or 0.0 for names in steps.values()]
    conditions = document["conditions"]
    bounds: list[tuple[float, ...]] = [(), ()]
    if all("interval" in conditions[name] for names in steps.values() for name in names):
        for side in (0, 1):
            sides = [[conditions[name]["interval"][side] for name in names] for names in steps.values()]
            bounds[side] = tuple(float(np.mean(found)) for found in sides)
    return Curve(title, tuple(steps), tuple(values), bounds[0], bounds[1])


def family_curves(documents: Documents, kinds: Mapping[str, Sequence[str]]) -> list[Curve]:
    """Accuracy by severity, averaged over corruptions, from the clean image on; one curve a model.

    kinds: the conditions of each corruption. Only severities that all of them have are averaged.
    """
    levels = [{parse_condition(name).level: name for name in names} for names in kinds.values()]
    shared = sorted(set.intersection(*(set(found) for found in levels)) - {0.0})
    steps = {0.0: ["clean"]} | {level: [found[level] for found in levels] for level in shared}
    return [_curve(name, document, steps) for name, document in documents.items()]


def sigma_curves(documents: Documents) -> list[Curve]:
    """Accuracy by the standard deviation of Gaussian noise, from the clean image on; none where there was no such
    noise."""
    names = [name for name in next(iter(documents.values()))["conditions"] if parse_condition(name).kind == "sigma"]
    steps = {0.0: ["clean"]} | {level: [name] for level, name in sorted((parse_condition(n).level, n) for n in names)}
    return [_curve(name, document, steps) for name, document in documents.items()] if names else []


def _cards(documents: Documents) -> list[dict[str, Any]]:
    """The numbers in large: for one model three of them, for several one each."""
    cards = []
    for name, document in documents.items():
        summary = document.get("summary", {})
        clean = {"value": document["conditions"]["clean"]["top1"]} | summary.get("clean", {})
        noisy, lost = summary.get("mean_corruption"), summary.get("relative_drop")
        if len(documents) > 1:
            says = "right under corruption" if noisy else "right on clean images"
            also = f"{100 * clean['value']:.1f} % on clean images" if noisy else ""
            also += f", of which {100 * lost['value']:.1f} % are lost" if lost else ""
            cards.append({"title": name, "says": says, "also": also} | (noisy or clean))
        else:
            cards.append({"title": "Clean", "says": "of the images named right", "also": ""} | clean)
            if noisy:
                also = "averaged over all corruptions and severities"
                cards.append({"title": "Corrupted", "says": "of the images named right", "also": also} | noisy)
            if lost:
                also = "of the accuracy on clean images"
                cards.append({"title": "Lost", "says": "lost to corruption", "also": also} | lost)
    return cards


def _measures(
    document: Mapping[str, Any], shown: Mapping[str, Sequence[str]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Titles of the measures that the document has, and rows of their means over conditions, as words."""
    held = [key for key in _MEASURES if any(mean_over(document, names, key) is not None for names in shown.values())]
    table = {}
    for title, names in shown.items():
        interval = document["conditions"][names[0]].get("interval") if len(names) == 1 else None
        values = [(key, mean_over(document, names, key)) for key in held]
        cells = ["–" if v is None else f"{v:.2f}" if key == "nll" else f"{100 * v:.1f} %" for key, v in values]
        table[title] = [*cells, "–" if interval is None else between(interval)]
    return [*(_MEASURES[key] for key in held), "95 % interval of top-1"], table


def _reliability(documents: Documents) -> list[dict[str, Any]]:
    titles = {"bins": "clean", "bins_corrupted": "corrupted", "bins_calibrated": "calibrated"}
    found = []
    for k, (name, document) in enumerate(documents.items()):
        bins = {title: document.get("calibration", {}).get(key) or [] for key, title in titles.items()}
        if any(bins.values()):
            errors = {
                title: sum(r["share"] * abs(r["confidence"] - r["accuracy"]) for r in rows if r["share"] > 0)
                for title, rows in bins.items()
                if rows
            }
            told = ", ".join(f"{title} {100 * error:.1f} %" for title, error in errors.items())
            figure = reliability_figure(bins, f"Confidence against accuracy of {name}; ECE: {told}", k)
            found.append({"name": name, "errors": errors, "figure": figure} | document["calibration"])
    return found


def _refused(document: Mapping[str, Any], shown: Mapping[str, Sequence[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """Reasons that known images are given, and rows of shares, means over conditions, as words: taken for unknown, then
    each reason."""
    found = {
        title: [document["conditions"][name]["unknown"] for name in names if "unknown" in document["conditions"][name]]
        for title, names in shown.items()
    }
    reasons = list(dict.fromkeys(key for told in found.values() for one in told for key in one["reasons"]))
    table = {
        title: [
            f"{100 * float(np.mean(values)):.1f} %"
            for values in (
                [one["taken_for_unknown"] for one in told],
                *([one["reasons"].get(reason, 0.0) for one in told] for reason in reasons),
            )
        ]
        for title, told in found.items()
        if told
    }
    return [reason.replace("_", " ") for reason in reasons], table


def _restored(document: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """PSNR and SSIM, noisy and restored, of each corruption: means over its severities."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for name, row in document.get("restoration", {}).items():
        found.setdefault(condition_title(name), []).append(row)
    keys = ("psnr_noisy", "psnr_restored", "ssim_noisy", "ssim_restored")
    return [(title, [float(np.mean([row[key] for row in rows])) for key in keys]) for title, rows in found.items()]


def _facts(documents: Documents) -> dict[str, str]:
    facts = {}
    for name, document in documents.items():
        bundle = document.get("bundle", {})
        facts[name if len(documents) > 1 else "Model"] = ", ".join(
            [
                f"{bundle['kind']} {bundle['backbone']} at {bundle['size']} px" if bundle else "unnamed bundle",
                *([f"mean over {document['trainings']} trainings"] if "trainings" in document else []),
                *([f"digest {bundle['digest'][:16]}"] if bundle.get("digest") and "trainings" not in document else []),
                *([f"vmmr {document['vmmr']}"] if "vmmr" in document else []),
            ]
        )
    first = next(iter(documents.values()))
    return facts | ({"Seed of the noise": str(first["seed"])} if "seed" in first else {})


def require_comparable(documents: Documents) -> None:
    """Raises ConfigError unless there are a few documents, of the same images, seed and conditions.

    Documents know how many images and classes they are of, not which: that is the caller's care.
    """
    if not 1 <= len(documents) <= MOST_SERIES:
        raise ConfigError("a page compares a few models", got=len(documents), do=f"name 1 to {MOST_SERIES} results")
    first = next(iter(documents.values()))
    for name, document in documents.items():
        if any(document.get(key) != first.get(key) for key in ("data", "seed")):
            raise ConfigError(
                "these results are of different images or seeds",
                got=name,
                do="evaluate all bundles on one split of one table, with one seed",
            )
        if set(document["conditions"]) != set(first["conditions"]):
            raise ConfigError(
                "these results are of different conditions", got=name, do="evaluate with one list of severities"
            )


def write_comparison(
    path: Path,
    documents: Documents,
    *,
    examples: Sequence[Example] = (),
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Path:
    """Write the page of these results; nothing half-written is ever at `path`.

    examples: strips with replies by the same names. pictures: uint8 [H, W, 3] by the path that a worst class has as
    its example. Raises ConfigError for results that cannot be compared, because images or conditions differ.
    """
    require_comparable(documents)
    first = next(iter(documents.values()))
    names = list(first["conditions"])
    groups = families(names)
    sigmas = sorted((n for n in names if parse_condition(n).kind == "sigma"), key=lambda n: parse_condition(n).level)
    severities = sorted({parse_condition(n).level for kinds in groups.values() for k in kinds.values() for n in k})
    panels = [
        (title, _ABOUT[family], curve_figure(family_curves(documents, groups[family]), title, level="severity"))
        for family, title in FAMILY_TITLES.items()
        if family in groups
    ]
    if sigmas:
        about = "Of known size, on images in [-1, 1]."
        figure = curve_figure(sigma_curves(documents), "Gaussian noise", level="standard deviation")
        panels.append(("Gaussian noise", about, figure))
    small = {
        FAMILY_TITLES[family]: [
            (title, curve_figure(family_curves(documents, {kind: found}), title, small=True))
            for kind, found in kinds.items()
            for title in [condition_title(found[0])]
        ]
        for family, kinds in groups.items()
    }
    rows = {"clean": ["clean"]} | {condition_title(name): [name] for name in sigmas}
    corrupted = [n for kinds in groups.values() for found in kinds.values() for n in found]
    for level in severities:
        rows[f"corruptions, severity {level:g}"] = [n for n in corrupted if parse_condition(n).level == level]
    page = render(
        "compare.html.jinja",
        title=" and ".join(filter(None, [", ".join([*documents][:-1]), [*documents][-1]])),
        documents=documents,
        data=first.get("data"),
        cards=_cards(documents),
        summary={
            title: [(k, document["summary"][key]) for k, document in enumerate(documents.values())]
            for key, title in SUMMARY_TITLES.items()
            if all(key in document.get("summary", {}) for document in documents.values())
        },
        panels=panels,
        small=small,
        severities=severities,
        sigmas=sigmas,
        kinds=sum(map(len, groups.values())),
        groups={FAMILY_TITLES[family]: kinds for family, kinds in groups.items()},
        mean=mean_over,
        between=between,
        measures={name: _measures(document, rows) for name, document in documents.items()},
        refused={
            name: _refused(
                document, rows | {condition_title(n[0]): n for kinds in groups.values() for n in kinds.values()}
            )
            for name, document in documents.items()
            if document.get("unknown")
        },
        reliability=_reliability(documents),
        restored={name: found for name, document in documents.items() if (found := _restored(document))},
        facts=_facts(documents),
        examples=examples,
        pictures=pictures or {},
    )
    return write_text(path, page)
