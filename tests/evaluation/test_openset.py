"""Open-set measures against scikit-learn, ties and all; their limits, and intervals against a plain bootstrap."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from vmmr.errors import DataError
from vmmr.evaluation.openset import (
    CLIPS,
    PERCENTILES,
    aupr_in,
    aupr_out,
    auroc,
    choose_mask,
    fpr_at_tpr,
    openset_scores,
    oscr,
    taken_for_unknown,
)
from vmmr.unknown import gather, hidden_scores
from vmmr.unknown.himplos import fit_himplos, himplos
from vmmr.unknown.msp import msp

# Few values, so that ties within and between the two are the rule.
scores = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=30)


def both(known: list[float], unknown: list[float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return np.r_[np.zeros(len(known)), np.ones(len(unknown))].astype(np.int64), np.r_[known, unknown]


@settings(deadline=None)
@given(scores, scores)
def test_against_scikit_learn(known: list[float], unknown: list[float]) -> None:
    truth, values = both(known, unknown)
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, values))
    assert aupr_out(known, unknown) == pytest.approx(average_precision_score(truth, values))
    assert aupr_in(known, unknown) == pytest.approx(average_precision_score(1 - truth, -values))
    false, true, _ = roc_curve(1 - truth, -values, drop_intermediate=False)
    for rate in (0.5, 0.95, 1.0):
        assert fpr_at_tpr(known, unknown, rate) == pytest.approx(false[true >= rate - 1e-9].min())


@settings(deadline=None)
@given(scores, scores, st.integers(0, 2**30 - 1))
def test_oscr_is_the_area_under_its_curve(known: list[float], unknown: list[float], bits: int) -> None:
    right = np.array([bits >> i & 1 for i in range(len(known))], dtype=bool)
    low, high = np.array(known), np.array(unknown)
    thresholds = [-np.inf, *sorted({*known, *unknown})]
    accepted = [float((high <= t).mean()) for t in thresholds]
    rate = [float(((low <= t) & right).mean()) for t in thresholds]
    assert oscr(known, right, unknown) == pytest.approx(np.trapezoid(rate, accepted))
    assert oscr(known, right, unknown) <= right.mean() + 1e-12
    assert oscr(known, np.ones(len(known)), unknown) == pytest.approx(auroc(known, unknown))


@settings(deadline=None)
@given(scores, scores)
def test_only_the_order_counts_and_sides_can_be_swapped(known: list[float], unknown: list[float]) -> None:
    def bent(values: list[float]) -> list[float]:
        return [float(np.exp(v) + v) for v in values]

    for measure in (auroc, aupr_in, aupr_out, fpr_at_tpr):
        assert measure(bent(known), bent(unknown)) == pytest.approx(measure(known, unknown))
    assert auroc(unknown, known) == pytest.approx(1 - auroc(known, unknown))
    negative = [[-v for v in values] for values in (unknown, known)]
    assert aupr_in(*negative) == pytest.approx(aupr_out(known, unknown))


def test_the_best_the_worst_and_chance() -> None:
    low, high = [0.0, 1.0], [2.0, 3.0, 4.0]
    assert (auroc(low, high), aupr_in(low, high), aupr_out(low, high), fpr_at_tpr(low, high)) == (1, 1, 1, 0)
    assert (auroc(high, low), fpr_at_tpr(high, low)) == (0, 1)
    same = [1.0] * 4
    assert (auroc(same, same), aupr_in(same, same * 3), aupr_out(same, same * 3)) == (0.5, 0.25, 0.75)
    assert oscr(low, [True, False], high) == 0.5
    assert taken_for_unknown([0.0, 1.0, 2.0, 3.0], 1.0) == 0.5


@pytest.mark.parametrize(("known", "unknown"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])])
def test_nothing_to_compare_is_refused(known: list[float], unknown: list[float]) -> None:
    for measure in (auroc, aupr_in, aupr_out, fpr_at_tpr):
        with pytest.raises(DataError, match="finite numbers"):
            measure(known, unknown)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    random = np.random.default_rng(0)
    known, unknown = random.normal(0, 1, 300), random.normal(1, 1.5, 120)
    right = random.random(300) < 0.8
    found = openset_scores(known, right, unknown, seed=1, draws=2000)
    resampled = []
    for _ in range(1000):
        i, j = random.integers(300, size=300), random.integers(120, size=120)
        resampled.append([auroc(known[i], unknown[j]), oscr(known[i], right[i], unknown[j])])
    for place, name in enumerate(("auroc", "oscr")):
        expected = np.quantile(np.array(resampled)[:, place], [0.025, 0.975])
        np.testing.assert_allclose(found[f"{name}_interval"], expected, atol=0.01)
        assert found[f"{name}_interval"][0] < found[name] < found[f"{name}_interval"][1]  # type: ignore[index, operator]
    assert found["fpr95"] == fpr_at_tpr(known, unknown)
    assert openset_scores(known, right, unknown, seed=1, draws=2000) == found


def test_a_certain_difference_has_a_certain_interval() -> None:
    found = openset_scores([0.0, 1.0], [True, True], [2.0, 3.0])
    assert (found["auroc"], found["auroc_interval"], found["oscr_interval"]) == (1.0, [1.0, 1.0], [1.0, 1.0])
    nobody = openset_scores([0.0, 1.0], [False, False], [2.0, 3.0])
    assert (nobody["oscr"], nobody["oscr_interval"]) == (0.0, [0.0, 0.0])


def test_the_mask_is_chosen_by_known_images_alone() -> None:
    """What wins is what tells images from themselves with their class hidden, and the first of equals."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    means = torch.rand(4, 16, generator=random) * 2
    features = (means[labels] + 0.6 * torch.randn(120, 16, generator=random)).relu()
    weight, bias = means, -0.5 * means.square().sum(dim=1)
    statistics = gather([(features, labels, torch.arange(120))], weight, bias)
    logits = features @ weight.T + bias
    for score in (himplos, partial(himplos, end=msp)):
        values = {}
        for percentile, clip in product(PERCENTILES, CLIPS):
            fitted = fit_himplos(statistics, percentile, clip)
            hidden = hidden_scores(score, features, logits, labels, fitted)
            values[percentile, clip] = auroc(score(features, logits, fitted), hidden)
        chosen = choose_mask(features, logits, labels, statistics, score=score)
        assert values[chosen] == max(values.values()) > min(values.values())
    # Of 16 weights these keep the same.
    assert choose_mask(features, logits, labels, statistics, percentiles=(63.0, 62.0, 61.0), clips=[None]) == (63, None)
