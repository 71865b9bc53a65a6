from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from vmmr.errors import ConfigError, DataError
from vmmr.unknown.groups import average_distance, group_alike, group_means, merge_distance


def blobs(
    sizes: list[int], width: float, seed: int = 0, dims: int = 6
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Directions around the axes, so many around each, in an order of chance; and whose they are."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = np.eye(dims)[labels] + width * random.standard_normal((len(labels), dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def test_the_average_distance_is_the_mean_over_pairs() -> None:
    rows, labels = blobs([4, 3, 5], 0.3)
    means = group_means(rows, labels, 3)
    found = average_distance(means, means)
    for one in range(3):
        for other in range(3):
            pairs = [1 - float(a @ b) for a in rows[labels == one] for b in rows[labels == other]]
            assert found[one, other] == pytest.approx(np.mean(pairs), abs=1e-6)
    alone = average_distance(rows[:1], means)[0]
    assert alone[2] == pytest.approx(np.mean([1 - rows[0] @ row for row in rows[labels == 2]]), abs=1e-6)


def test_the_distance_is_where_known_images_group_into_their_classes() -> None:
    rows, labels = blobs([6, 7, 8, 5], 0.45, dims=5)
    tree = linkage(rows.astype(np.float64), "average", metric="cosine")
    steps = np.linspace(0, tree[-1, 2], 101)
    index = np.array([adjusted_rand_score(labels, fcluster(tree, step, "distance")) for step in steps])
    assert 0.1 < index.max() < 1  # else there is nothing to choose
    assert merge_distance(rows, labels) == pytest.approx(steps[index >= index.max() - 0.01].mean(), abs=1e-3)
    # Only what the bank holds counts: labels may have gaps.
    assert merge_distance(rows, labels * 10 + 3) == merge_distance(rows, labels)


def test_of_classes_far_apart_it_is_the_middle_between_within_and_between() -> None:
    rows, labels = blobs([9, 9, 9], 0.02)
    heights = linkage(rows.astype(np.float64), "average", metric="cosine")[:, 2]
    assert heights[-3] < 0.01 < 0.9 < heights[-2]
    assert merge_distance(rows, labels) == pytest.approx((heights[-3] + heights[-2]) / 2, abs=0.02)
    assert (group_alike(rows, merge_distance(rows, labels)) >= 0).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95), st.integers(1, 4))
def test_groups_are_those_of_average_linkage(seed: int, distance: float, least: int) -> None:
    rows, _ = blobs([7, 5, 4, 3, 1], 0.35, seed)
    reference = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=distance
    ).fit_predict(rows)
    found = group_alike(rows, distance, least=least)
    sizes = np.bincount(reference)
    kept = sizes[reference] >= least
    np.testing.assert_array_equal(found >= 0, kept)
    if kept.any():
        assert adjusted_rand_score(reference[kept], found[kept]) == 1
        counts = np.bincount(found[kept])
        assert (counts[:-1] >= counts[1:]).all()  # the largest first
        assert counts.min() >= least


def test_beyond_the_limit_the_others_join_what_the_first_found() -> None:
    rows, labels = blobs([40, 30, 20], 0.05)
    rows = np.concatenate([rows, -rows[:1]])  # near to none
    found = group_alike(rows, 0.5, least=3, most=15)
    assert found[-1] == -1
    np.testing.assert_array_equal(found[:-1], labels)  # also ranked by size
    np.testing.assert_array_equal(group_alike(rows, 0.5), found)


def test_nothing_one_and_the_same() -> None:
    assert group_alike(np.zeros((0, 4), np.float32), 0.5).tolist() == []
    one = np.float32([[1, 0]])
    assert group_alike(one, 0.5, least=1).tolist() == [0]
    assert group_alike(one, 0.5, least=2).tolist() == [-1]
    assert group_alike(np.repeat(one, 4, axis=0), 0.0).tolist() == [0, 0, 0, 0]


def test_what_makes_no_sense_is_refused() -> None:
    rows, labels = blobs([3, 3], 0.1)
    for distance, least in ((-0.1, 3), (2.1, 3), (0.5, 0)):
        with pytest.raises(ConfigError, match="distance lies"):
            group_alike(rows, distance, least=least)
    with pytest.raises(DataError, match="finite"):
        group_alike(np.full((3, 2), np.nan, np.float32), 0.5)
    with pytest.raises(DataError, match="takes two"):
        merge_distance(rows, labels * 0)
    with pytest.raises(DataError, match="no picture"):
        group_means(rows, labels, 3)
