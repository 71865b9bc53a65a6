"""Known against unknown: how well a score tells them apart, exactly, ties and all.

A score is higher for what is stranger. Known images are the positives of everything named "in" and of TPR, as in most
of the literature. All functions take float arrays, known [N] and unknown [M], and raise DataError where one is empty
or holds what is no finite number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import Tensor

from vmmr.errors import DataError
from vmmr.evaluation.intervals import interval, resampled_means
from vmmr.unknown import Statistics, accept_threshold, hidden_scores
from vmmr.unknown.himplos import HIMPLoSFitted, fit_himplos, himplos

__all__ = [
    "CLIPS",
    "PERCENTILES",
    "aupr_in",
    "aupr_out",
    "auroc",
    "choose_mask",
    "fpr_at_tpr",
    "openset_scores",
    "oscr",
    "taken_for_unknown",
]

PERCENTILES = (0.0, 30.0, 60.0, 90.0)
CLIPS = (90.0, 95.0, 99.0, None)
"""What `choose_mask` tries."""


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """The chance that an unknown image is stranger than a known one, a tie counting half: in [0, 1].

    >>> auroc([1.0, 2.0], [2.0, 3.0])
    0.875
    """
    low, high = _pair(known, unknown)
    return float(_beaten(low, high).mean())


def aupr_in(known: ArrayLike, unknown: ArrayLike) -> float:
    """Average precision of finding the known among both: its share in [0, 1] of known images by chance."""
    low, high = _pair(known, unknown)
    return _average_precision(-low, -high)


def aupr_out(known: ArrayLike, unknown: ArrayLike) -> float:
    """Average precision of finding the unknown among both: its share in [0, 1] of unknown images by chance."""
    low, high = _pair(known, unknown)
    return _average_precision(high, low)


def fpr_at_tpr(known: ArrayLike, unknown: ArrayLike, rate: float = 0.95) -> float:
    """The share of unknown images that pass as known, at the strictest threshold that accepts `rate` of the known.

    >>> fpr_at_tpr([1.0, 2.0, 3.0, 4.0], [2.5, 5.0], rate=0.75)
    0.5
    """
    low, high = _pair(known, unknown)
    return float((high <= accept_threshold(torch.from_numpy(low), rate)).mean())


def oscr(known: ArrayLike, right: ArrayLike, unknown: ArrayLike) -> float:
    """The area under the open-set classification rate: the share of known images that are accepted and answered right,
    over the share of unknown images accepted, as the threshold moves. In [0, 1], at most the accuracy.

    right: bool [N], whether the answer to a known image is. That area, by trapezoids, is the chance that a known image
    is right and less strange than an unknown one, a tie counting half. Source: Dhamija, Günther and Boult, NeurIPS 2018
    (arXiv 1811.04110); as one number in Vaze et al., ICLR 2022 (arXiv 2110.06207).

    >>> oscr([1.0, 2.0], [True, False], [2.0, 3.0])
    0.5
    """
    low, high = _pair(known, unknown)
    return float((_beaten(low, high) * np.asarray(right, dtype=np.bool_)).mean())


def taken_for_unknown(known: ArrayLike, threshold: float) -> float:
    """The share of known images that are stranger than the threshold: what noise makes unknown.

    >>> taken_for_unknown([1.0, 2.0, 3.0], 2.0)
    0.3333333333333333
    """
    return float((np.asarray(known, dtype=np.float64) > threshold).mean())


def openset_scores(
    known: ArrayLike, right: ArrayLike, unknown: ArrayLike, *, seed: int = 0, draws: int = 1000
) -> dict[str, float | list[float]]:
    """All of it: auroc, aupr_in, aupr_out, fpr95, oscr, and auroc_interval and oscr_interval, [low, high] of 95 %.

    Intervals are of a bootstrap over known and over unknown images, each drawn by itself. Both numbers are means over
    pairs; a resample's is taken as the sum of what changes over known images and over unknown ones, which leaves out
    only what changes over both at once (Hoeffding; of order 1/N and 1/M). Cut to [0, 1].
    """
    low, high = _pair(known, unknown)
    hits = np.asarray(right, dtype=np.bool_).astype(np.float64)
    by_known = _beaten(low, high)
    found: dict[str, float | list[float]] = {
        "auroc": auroc(low, high),
        "aupr_in": aupr_in(low, high),
        "aupr_out": aupr_out(low, high),
        "fpr95": fpr_at_tpr(low, high),
        "oscr": oscr(low, hits, high),
    }
    over_known = resampled_means(np.stack([by_known, by_known * hits], axis=1), seed=seed, draws=draws)
    rows = hits > 0
    by_unknown = np.stack([_beating(low, high), _beating(low[rows], high) * hits.mean()], axis=1)
    over_unknown = resampled_means(by_unknown, seed=seed + 1, draws=draws)
    for place, name in enumerate(("auroc", "oscr")):
        value = found[name]
        both = over_known[:, place] + over_unknown[:, place] - value
        found[f"{name}_interval"] = interval(both.clip(0, 1))
    return found


def choose_mask(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    statistics: Statistics,
    *,
    score: Callable[[Tensor, Tensor, HIMPLoSFitted], Tensor] = himplos,
    percentiles: Sequence[float] = PERCENTILES,
    clips: Sequence[float | None] = CLIPS,
) -> tuple[float, float | None]:
    """HIMPLoS's percentile and clip_percentile, see `fit_himplos`, that tell validation images best, by AUROC, from the
    same images with their own class hidden (`hidden_scores`); among equals the first.

    features [N, D], logits [N, C], labels int64 [N]: of validation images of known classes, on the CPU. score: HIMPLoS
    or a variant. No unknown image is needed and none may be used. The rule is ours: the authors name values by data
    set.
    """
    best, most = (percentiles[0], clips[0]), -1.0
    for percentile, clip in product(percentiles, clips):
        fitted = fit_himplos(statistics, percentile, clip)
        known = score(features, logits, fitted)
        value = auroc(known.numpy(), hidden_scores(score, features, logits, labels, fitted).numpy())
        if value > most:
            best, most = (percentile, clip), value
    return best


def _pair(known: ArrayLike, unknown: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    both = np.asarray(known, dtype=np.float64), np.asarray(unknown, dtype=np.float64)
    for name, scores in zip(("known", "unknown"), both, strict=True):
        if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
            raise DataError(f"scores of {name} images are finite numbers [N]", got=list(scores.shape))
    return both


def _beaten(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] the share of `high` above each of `low`, ties half."""
    ranked = np.sort(high)
    below = np.searchsorted(ranked, low, side="left") + np.searchsorted(ranked, low, side="right")
    return 1 - below / (2 * len(ranked))


def _beating(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M] the share of `low` below each of `high`, ties half; 0 where there is none."""
    return _beaten(-high, -low) if len(low) else np.zeros(len(high))


def _average_precision(found: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """sum of (recall - recall before) * precision over falling thresholds, equal scores taken at once."""
    among = rankdata(-np.concatenate([found, other]), method="max")[: len(found)]  # at or above, in both
    own = rankdata(-found, method="max")
    return float((own / among).mean())
