"""The bootstrap: against scipy's, against known distributions, and joint over conditions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vmmr.errors import ConfigError, DataError
from vmmr.evaluation.intervals import interval, resampled_means


def test_it_covers_a_known_share_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        right = (random.random(200) < 0.7).astype(float)
        low, high = interval(resampled_means(right[:, None], seed=trial, draws=300)[:, 0])
        covered += low <= 0.7 <= high
    # 95 % less a little for a percentile interval of 300 draws; the standard error over 300 trials is 1.3 %.
    assert 0.90 <= covered / 300 <= 0.98


def test_it_is_as_wide_as_the_binomial_and_as_scipy_says() -> None:
    right = np.repeat([1.0, 0.0], [300, 100])
    low, high = interval(resampled_means(right[:, None], seed=1, draws=4000)[:, 0])
    assert [low, high] == pytest.approx(stats.binom(400, 0.75).ppf([0.025, 0.975]) / 400, abs=0.004)
    other = stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    assert [low, high] == pytest.approx(list(other.confidence_interval), abs=0.004)


def test_resamples_are_means_over_images_drawn_with_replacement() -> None:
    scores = np.array([[1.0, 1.0], [0.0, 10.0], [0.0, 100.0]])
    means = 3 * resampled_means(scores, seed=0, draws=500)
    assert set(means[:, 0].round(9).tolist()) == {0.0, 1.0, 2.0, 3.0}
    # Digits of the second column count how often each image was drawn: three draws in all, the same in both columns.
    counts = np.array([[int(v) % 10, int(v) // 10 % 10, int(v) // 100] for v in means[:, 1].round(6)])
    assert (counts.sum(axis=1) == 3).all()
    np.testing.assert_allclose(means[:, 0], counts[:, 0])
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)


def test_conditions_are_resampled_together() -> None:
    random = np.random.default_rng(3)
    hard = (random.random(400) < 0.5).astype(float)
    same = np.stack([hard] * 4, axis=1)
    unlike = (random.random((400, 4)) < 0.5).astype(float)
    one = resampled_means(same, seed=0)
    assert (one == one[:, :1]).all()
    # The mean over four conditions that agree on every image is as uncertain as one of them ...
    assert one.mean(axis=1).std() == pytest.approx(0.5 / 20, rel=0.1)
    # ... that over four that share nothing half as much.
    assert resampled_means(unlike, seed=0).mean(axis=1).std() == pytest.approx(0.5 / 40, rel=0.15)
    # A difference of two conditions that agree on every image is certain.
    assert interval(one[:, 0] - one[:, 1]) == [0.0, 0.0]


def test_a_condition_has_its_interval_whatever_else_is_evaluated() -> None:
    scores = np.random.default_rng(4).random((50, 3))
    np.testing.assert_allclose(resampled_means(scores, seed=5)[:, :1], resampled_means(scores[:, :1], seed=5))
    assert not np.array_equal(resampled_means(scores, seed=5), resampled_means(scores, seed=6))
    assert resampled_means(scores, seed=5, draws=130).shape == (130, 3)


def test_limits_and_mistakes() -> None:
    assert interval(resampled_means(np.ones((9, 1)), seed=0)[:, 0]) == [1.0, 1.0]
    assert interval(resampled_means(np.zeros((1, 1)), seed=0)[:, 0]) == [0.0, 0.0]
    with pytest.raises(DataError, match="no image"):
        resampled_means(np.ones((0, 1)), seed=0)
    with pytest.raises(ConfigError, match="negative"):
        resampled_means(np.ones((1, 1)), seed=-1)
