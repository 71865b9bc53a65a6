"""Results documents as Markdown: the card of a bundle, and the table of a page of results."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from vmmr.evaluation.compare import (
    FAMILY_TITLES,
    SUMMARY_TITLES,
    Documents,
    between,
    family_curves,
    mean_over,
    require_comparable,
    sigma_curves,
)
from vmmr.evaluation.conditions import condition_title, families
from vmmr.evaluation.markdown import table, with_part

__all__ = ["comparison_table", "evaluation_part", "with_evaluation"]


def _plain(text: object) -> str:
    """A name as text that Markdown shows as it is, on one line and in one cell."""
    words = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", words)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def comparison_table(documents: Documents) -> str:
    """Rows of conditions, a column a model, top-1 in percent with its 95 % interval; the best of a row in bold.

    Raises ConfigError for results that cannot be compared.
    """
    require_comparable(documents)
    rows = []
    for key, title in {**SUMMARY_TITLES, "relative_drop": "Lost, of clean"}.items():
        entries = [document.get("summary", {}).get(key) for document in documents.values()]
        if all(entries):
            values = [entry["value"] for entry in entries]
            best = min(values) if key == "relative_drop" else max(values)
            bold = ["**" if len(values) > 1 and value == best else "" for value in values]
            cells = [
                f"{b}{_percent(e['value'])}{b} ({between(e['interval'])})" for b, e in zip(bold, entries, strict=True)
            ]
            rows.append([title, *cells])
    return table(["top-1 (95 % interval)", *map(_plain, documents)], rows)


def _curves(document: Mapping[str, Any]) -> list[str]:
    """Accuracy by severity and by sigma, as two tables."""
    parts = []
    groups = families(document["conditions"])
    found = {
        title: family_curves({"": document}, groups[key])[0] for key, title in FAMILY_TITLES.items() if key in groups
    }
    if found:
        levels = next(iter(found.values())).levels
        rows = [[title, *map(_percent, curve.values)] for title, curve in found.items() if curve.levels == levels]
        parts.append(table(["severity", *(f"{level:g}" for level in levels)], rows))
    sigmas = sigma_curves({"": document})
    if sigmas:
        rows = [["Gaussian noise", *map(_percent, sigmas[0].values)]]
        parts.append(table(["σ on [-1, 1]", *(f"{level:g}" for level in sigmas[0].levels)], rows))
    return parts


def _limits(document: Mapping[str, Any]) -> list[str]:
    kinds = [names for group in families(document["conditions"]).values() for names in group.values()]
    weak = sorted((mean_over(document, names) or 0.0, condition_title(names[0])) for names in kinds)[:3]
    classes = document.get("worst_classes", [])[:5]
    pairs = document.get("confusions", [])[:3]
    found = [
        "Every answer names one of these classes; a vehicle outside of them is told as unknown by a score that can err."
        if document.get("unknown")
        else "Every answer is one of these classes: a vehicle outside of them gets one of them as well.",
        "Intervals say how far other images like these would move a number, not how far another training run would.",
    ]
    if weak:
        found.append("Weakest under " + ", ".join(f"{title} ({_percent(value)})" for value, title in weak) + ".")
    if classes:
        named = ", ".join(f"{_plain(row['name'])} ({_percent(row['top1'])} of {row['images']})" for row in classes)
        found.append(f"Recognised least: {named}.")
    if pairs:
        named = ", ".join(f"{_plain(r['truth'])} as {_plain(r['answer'])} ({_percent(r['share'])})" for r in pairs)
        found.append(f"Taken for another most often: {named}.")
    return found


def evaluation_part(document: Mapping[str, Any], *, licence: str = "") -> str:
    """What a card says about a results document: data, intervals, noise curve, calibration, cost, limits."""
    data, cost, calibration = (document.get(key, {}) for key in ("data", "cost", "calibration"))
    clean = document["conditions"]["clean"]
    lines = ["## Evaluation"]
    if data:
        lines.append(
            f"{data['images']:,} images of the split {_plain(data['split'])}, {data['classes']} classes of "
            f"{data['makes']} makes; vmmr {_plain(document['vmmr'])}, seed of the noise {document['seed']}. "
            f"Licence of the data: {_plain(licence) if licence else 'not stated; look at where the images are from'}."
        )
    lines.append(comparison_table({"this bundle": document}))
    lines += ["### Noise curve", *curves] if (curves := _curves(document)) else []
    if "ece" in clean:
        corrupted = [name for name in document["conditions"] if "@" in name]
        told = [f"Expected calibration error: {_percent(clean['ece'])} on clean images"]
        told += [f"{_percent(ece)} under corruption"] if (ece := mean_over(document, corrupted, "ece")) else []
        told += [f"{_percent(clean['ece_calibrated'])} after temperature"] if clean.get("ece_calibrated") else []
        warmth = calibration.get("temperature")
        also = f" Temperature {warmth:.2f}, fitted on {calibration['fitted_on']}." if warmth else ""
        lines += ["### Calibration", ", ".join(told) + "." + also]
    if (gate := document.get("unknown")) and "unknown" in clean:
        words = f"{_percent(clean['unknown']['taken_for_unknown'])} of clean images"
        corrupted = [found["unknown"] for name, found in document["conditions"].items() if "@" in name]
        if corrupted:
            mean = sum(found["taken_for_unknown"] for found in corrupted) / len(corrupted)
            words += f", {_percent(mean)} under corruption"
        reasons = ", ".join(f"{reason} {_percent(share)}" for reason, share in clean["unknown"]["reasons"].items())
        lines += [
            "### Known vehicles taken for unknown",
            f"By {gate['score']}: {words}. Reasons on clean images: {reasons}.",
        ]
    if cost:
        told = [f"{cost['parameters']:,} parameters", f"{cost['macs'] / 1e6:,.1f} million MACs an image"]
        if "latency_ms" in cost:
            told.append(f"{cost['latency_ms']:.1f} ms an image")
            told.append(
                f"{cost['images_per_s']:,.0f} images a second in batches of {cost['batch']} "
                f"({_plain(cost['device'])}, {cost['threads']} thread{'s' if cost['threads'] != 1 else ''})"
            )
        lines += ["### Cost", ", ".join(told) + "."]
    lines += ["### Limits", "\n".join(f"- {line}" for line in _limits(document))]
    return "\n\n".join(lines)


def with_evaluation(card: str, document: Mapping[str, Any], *, licence: str = "") -> str:
    """The card with the evaluation at its end, or in the place of an earlier one. licence: of the judged images."""
    return with_part(card, "evaluation", evaluation_part(document, licence=licence))
