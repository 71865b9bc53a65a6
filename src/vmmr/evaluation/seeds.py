"""Results of several trainings of one recipe as one: means, and intervals that know of images and of trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

__all__ = ["mean_interval", "over_trainings", "student_half_width", "with_spread"]

_MEASURES = ("top1", "top5", "macro", "make", "nll", "ece", "ece_calibrated")
_BINS = ("bins", "bins_calibrated", "bins_corrupted")


def with_spread(values: Sequence[float] | NDArray[np.floating]) -> str:
    """The mean of these numbers and, where there are several, their standard deviation, as a table has them.

    >>> with_spread([80.0, 82.0]), with_spread([80.0])
    ('81.0 ± 1.4', '80.0')
    """
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def student_half_width(values: Sequence[float], *, level: float = 0.95) -> float:
    """Half of Student's interval for the mean of at least two numbers: t s / sqrt(n).

    >>> round(student_half_width([0.0, 2.0]), 3)
    12.706
    """
    count = len(values)
    return float(student.ppf((1 + level) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)


def mean_interval(values: Sequence[float], intervals: Sequence[Sequence[float]], *, level: float = 0.95) -> list[float]:
    """An interval for the mean of a recipe's accuracy over trainings and images, at most 1.

    values: of each training, all on the same images; intervals: of each over images alone. The half width is
    sqrt(a^2 + b^2), a = t s / sqrt(n) Student's over n trainings with standard deviation s, b the mean half width over
    images: other trainings and other images are taken as independent reasons to differ. One training gives its own.

    >>> mean_interval([0.5, 0.5], [[0.4, 0.6], [0.4, 0.6]])
    [0.4, 0.6]
    """
    low, high = np.mean(intervals, axis=0).tolist()
    if len(values) == 1:
        return [low, high]
    mean, trainings = float(np.mean(values)), student_half_width(values, level=level)
    # A share stays one; the part of the accuracy that noise costs may be below 0.
    least = mean - math.hypot(trainings, mean - low)
    return [max(0.0, least) if mean >= 0 else least, min(1.0, mean + math.hypot(trainings, high - mean))]


def over_trainings(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results documents of trainings that differ by their seed, of the same images and conditions, as one document.

    Measures are means; intervals are those of `mean_interval`; each condition and each line of the summary gains
    "spread", the standard deviation of its accuracy over the trainings, and the document "trainings", how many there
    are. Bins of reliability are joined. What belongs to one training (confusions, worst classes, restored images) is
    left out. One document is returned as it is.
    """
    first = documents[0]
    if len(documents) == 1:
        return dict(first)
    conditions = {}
    for name in first["conditions"]:
        found = [document["conditions"][name] for document in documents]
        merged: dict[str, Any] = {
            key: float(np.mean([scores[key] for scores in found]))
            for key in _MEASURES
            if all(key in scores for scores in found)
        }
        top1 = [scores["top1"] for scores in found]
        merged["spread"] = float(np.std(top1, ddof=1))
        if all("interval" in scores for scores in found):
            merged["interval"] = mean_interval(top1, [scores["interval"] for scores in found])
        conditions[name] = merged
    summary = {}
    for name in first.get("summary", {}):
        lines = [document["summary"][name] for document in documents if name in document.get("summary", {})]
        if len(lines) == len(documents):
            values = [line["value"] for line in lines]
            summary[name] = {
                "value": float(np.mean(values)),
                "interval": mean_interval(values, [line["interval"] for line in lines]),
                "spread": float(np.std(values, ddof=1)),
            }
    temperatures = [document.get("calibration", {}).get("temperature") for document in documents]
    kept = {key: first[key] for key in ("format", "version", "vmmr", "bundle", "data", "seed") if key in first}
    return kept | {
        "trainings": len(documents),
        "conditions": conditions,
        "summary": summary,
        "calibration": {
            "temperature": None if None in temperatures else float(np.mean(temperatures)),
            "fitted_on": first.get("calibration", {}).get("fitted_on"),
            **{
                key: _joined([document.get("calibration", {}).get(key) or [] for document in documents])
                for key in _BINS
            },
        },
        "cost": first.get("cost", {})
        | {
            key: float(np.mean([document["cost"][key] for document in documents]))
            for key in ("latency_ms", "images_per_s")
            if all(key in document.get("cost", {}) for document in documents)
        },
    }


def _joined(parts: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The bins of all trainings' answers together; each training counts alike."""
    if not all(parts):
        return []
    joined = []
    for rows in zip(*parts, strict=True):
        shares = [row["share"] for row in rows]
        weight = sum(shares)
        means = {
            key: sum(share * row[key] for share, row in zip(shares, rows, strict=True)) / weight if weight else 0.0
            for key in ("confidence", "accuracy")
        }
        joined.append({"low": rows[0]["low"], "high": rows[0]["high"], "share": weight / len(rows), **means})
    return joined
