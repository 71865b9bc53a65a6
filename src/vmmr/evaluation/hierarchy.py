"""What a hierarchy is worth: accuracy at every level, how well levels agree, how bad mistakes are, and the gain over
networks trained for one level each. Here beta and the thresholds of the back-off are fitted too, on validation images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from vmmr.errors import DataError
from vmmr.evaluation.calibration import fit_temperature
from vmmr.evaluation.classify import accuracy, macro_accuracy
from vmmr.levels import NUMBERS, HierarchySpec, Levels
from vmmr.models.decoding import NEVER, confidences_by_level, joint_scores

__all__ = ["delta_m", "fit_beta", "fit_decoding", "fit_thresholds", "hierarchy_scores", "level_scores"]

_MOST_BETA = 4.0


def level_scores(logits: Mapping[str, Tensor], labels: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, float]]:
    """{"top1", "top3", "top5", "macro", "images"} of each level, over the images labelled there; a number has
    {"mean_error", "images"}, in years. logits: [N, width] by level; labels: int64 [N] by level, -1 for unknown. A level
    without any label has no entry."""
    found: dict[str, dict[str, float]] = {}
    for level, answered in logits.items():
        known = labels[level] >= 0
        if not known.any():
            continue
        told, truth = answered[torch.from_numpy(known)], labels[level][known]
        if level in NUMBERS:
            years = 2000 + 10 * told[:, 0].double().numpy()
            scores = {"mean_error": float(np.abs(years - truth).mean())}
        else:
            scores = accuracy(told, truth, (1, 3, 5))
            scores["macro"] = macro_accuracy(told.argmax(dim=1).numpy(), truth)
        found[level] = {**scores, "images": int(known.sum())}
    return found


def hierarchy_scores(
    answers: Mapping[str, NDArray[np.int64]], labels: Mapping[str, NDArray[np.int64]], levels: Levels
) -> dict[str, float | None]:
    """How make and the finest level of the tree go together; both int64 [N] by level, labels -1 for unknown.

    joint: share of images with both right; consistency: share whose make is that of the model answered; severity:
    share of the wrong models that come with the right make. Images with both labels count. None where there is nothing
    to count, as the severity of no mistake.
    """
    coarse, fine = levels.tree[0], levels.finest
    known = (labels[coarse] >= 0) & (labels[fine] >= 0)
    right = {level: (answers[level] == labels[level])[known] for level in (coarse, fine)}
    agree = (levels.parents(fine, coarse)[answers[fine]] == answers[coarse])[known]
    return {
        "joint": _mean(right[coarse] & right[fine]),
        "consistency": _mean(agree),
        "severity": _mean(right[coarse][~right[fine]]),
    }


def delta_m(multi: Mapping[str, float], single: Mapping[str, float], lower_is_better: tuple[str, ...] = ()) -> float:
    """The mean relative gain of one multi-task network over single-task ones, as a share: mean of (m - s) / s over the
    tasks of `single`, with the sign turned where lower is better (Maninis et al., CVPR 2019, arXiv 1904.08918).

    >>> round(delta_m({"make": 0.9, "model": 0.44}, {"make": 0.8, "model": 0.4}), 4)
    0.1125
    """
    signs = {task: -1.0 if task in lower_is_better else 1.0 for task in single}
    return float(np.mean([signs[task] * (multi[task] - base) / base for task, base in single.items()]))


def fit_beta(logits: Mapping[str, Tensor], labels: NDArray[np.int64], levels: Levels) -> float:
    """The beta in [0, 4] under which the labels [N] of the finest level are likeliest, fitted together with a
    temperature, so that more confidence alone gains nothing. Images with label -1 do not count.

    Fit it on validation images, never on those that are judged. Raises DataError where none is labelled.
    """
    known = torch.from_numpy(labels >= 0)
    if not known.any():
        raise DataError("beta needs labelled validation images", got=f"{len(labels)} images")
    if len(levels.tree) == 1:
        return 0.0
    told = {level: logits[level][known].double() for level in levels.tree}
    truth = torch.from_numpy(labels)[known]

    def likelihood(beta: float) -> float:
        scores = joint_scores(told, levels, beta)
        cooled = minimize_scalar(
            lambda power: functional.cross_entropy(scores / float(np.exp(power)), truth).item(),
            bounds=(-3.0, 3.0),
            method="bounded",
        )
        return float(cooled.fun)

    found = minimize_scalar(likelihood, bounds=(0.0, _MOST_BETA), method="bounded", options={"xatol": 1e-3})
    return float(found.x) if float(found.fun) < likelihood(0.0) else 0.0


def fit_decoding(
    logits: Mapping[str, Tensor],
    labels: Mapping[str, NDArray[np.int64]],
    levels: Levels,
    spec: HierarchySpec,
    precision: float,
) -> tuple[HierarchySpec, float]:
    """The spec with beta and, for a precision above 0, thresholds fitted on validation images; and the temperature that
    goes with them. logits: [N, width] by level; labels: int64 [N] by level, -1 for unknown."""
    known = labels[levels.finest] >= 0
    told = {level: found[torch.from_numpy(known)] for level, found in logits.items()}
    truth = labels[levels.finest][known]
    beta = round(fit_beta(told, truth, levels), 4)
    scores = joint_scores(told, levels, beta)
    temperature = round(fit_temperature(scores, truth), 4)
    thresholds = {}
    if precision:
        said, sure = confidences_by_level(scores / temperature, levels)
        right = {
            level: said[level].cpu() == torch.from_numpy(levels.parents(levels.finest, level)[truth])
            for level in levels.tree
        }
        thresholds = fit_thresholds(sure, right, levels, precision)
    return replace(spec, beta=beta, thresholds=thresholds), temperature


def fit_thresholds(
    confidences: Mapping[str, Tensor], right: Mapping[str, Tensor], levels: Levels, precision: float
) -> dict[str, float]:
    """Thresholds for `back_off`, by level of the tree: the lowest at which what is said there is right in at least this
    share of validation images. Levels are fitted from fine to coarse, each on the images that no finer one answers.

    confidences: [N] in [0, 1] by level; right: bool [N] by level. A level that reaches the precision nowhere gets
    `NEVER`.

    >>> from vmmr.taxonomy import Taxonomy
    >>> cars = Levels(Taxonomy.from_rows(["Audi"], ["A4"]), ("make", "model"))
    >>> sure = {"make": torch.tensor([0.9, 0.8, 0.7]), "model": torch.tensor([0.9, 0.5, 0.4])}
    >>> right = {"make": torch.tensor([True, True, False]), "model": torch.tensor([True, False, False])}
    >>> {level: round(t, 2) for level, t in fit_thresholds(sure, right, cars, 1.0).items()}
    {'make': 0.8, 'model': 0.9}
    """
    open_still = torch.ones(len(right[levels.finest]), dtype=torch.bool)
    found: dict[str, float] = {}
    for level in reversed(levels.tree):
        confidence = confidences[level][open_still].double()
        order = confidence.argsort(descending=True)
        hits = right[level][open_still][order].double().cumsum(0) / torch.arange(1, len(order) + 1)
        ranked = confidence[order]
        # Equal confidences stand or fall together: only the last of a run is a place to cut.
        last = torch.ones(len(order), dtype=torch.bool)
        last[:-1] = ranked[:-1] != ranked[1:]
        cuts = torch.nonzero(last & (hits >= precision)).flatten()
        found[level] = float(ranked[cuts[-1]]) if len(cuts) else NEVER
        open_still = open_still & (confidences[level].double() < found[level])
    return {level: found[level] for level in levels.tree}


def _mean(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if len(hits) else None
