"""Strangers that look alike: pictures of no known class, grouped into what may be new ones.

All distances are averages of 1 - cosine over pairs, in [0, 2]. Of directions, rows of length 1, such an average is 1
less the product of two means, so that groups, known classes and single pictures are compared in one measure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from vmmr.errors import ConfigError, DataError

__all__ = ["MOST", "average_distance", "group_alike", "group_means", "merge_distance"]

MOST = 10_000
"""How many pictures are compared with one another, in memory of 16 bytes a pair; others join the groups of those."""


def group_means(directions: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """The mean of directions [N, D] of each label below `count`: [count, D], shorter than 1 the wider a group is; rows
    with label -1 count nowhere. DataError where a label has no row."""
    sizes = np.bincount(labels[labels >= 0], minlength=count)
    if not sizes.all():
        raise DataError("a group has no picture", got=f"{int((sizes == 0).sum())} of {count}")
    sums = np.zeros((count, directions.shape[1]))
    np.add.at(sums, labels[labels >= 0], directions[labels >= 0])
    means: NDArray[np.float32] = (sums / sizes[:, None]).astype(np.float32)
    return means


def average_distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, M] the average distance between each of one and each of the other, [N, D] and [M, D]: directions of pictures,
    or means of groups.

    >>> average_distance(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1], [0.5, 0.5]])).tolist()
    [[0.0, 1.0, 0.5]]
    """
    found: NDArray[np.float32] = np.maximum(1 - one @ other.T, 0)
    return found


def merge_distance(bank: NDArray[np.float32], labels: NDArray[np.int64], share: float = 0.5) -> float:
    """How far apart two groups may be and still be one, from images of known classes.

    Of every class the average distance to the nearest other class; of those the quantile `share`, in [0, 1]: at this
    distance average linkage would join so many of the known classes to another. Low keeps siblings apart and splits
    models; high joins both. bank [M, D]: directions of images of the classes `labels`, int64 [M]; a class of which the
    bank has no image is left out. DataError where fewer than two have one.

    >>> merge_distance(np.eye(2, dtype=np.float32)[[0, 0, 1]], np.array([4, 4, 7]))
    1.0
    """
    if not 0 <= share <= 1:
        raise ConfigError("a share lies in [0, 1]", got=share)
    there, labels = np.unique(labels, return_inverse=True)
    if len(there) < 2:
        raise DataError("the distance between classes takes two", got=f"{len(there)} classes")
    means = group_means(bank, labels, len(there))
    apart = average_distance(means, means)
    np.fill_diagonal(apart, np.inf)
    return float(np.quantile(apart.min(axis=1), share))


def group_alike(
    directions: NDArray[np.float32], distance: float, *, least: int = 3, most: int = MOST
) -> NDArray[np.int64]:
    """int64 [N], the group of each of directions [N, D], the largest group 0; -1 for what is in none.

    Average linkage (UPGMA; Sokal and Michener 1958): the two groups nearest on average become one, as long as that
    average is at most `distance`. Groups of fewer than `least` are none. Of more than `most` pictures so many, at even
    places, are grouped, and each of the others joins the group nearest to it on average, within the same distance.

    >>> rows = np.float32([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [-1, 0]])
    >>> group_alike(rows, 0.5, least=2).tolist()
    [0, 1, 0, 1, 0, -1]
    """
    if not 0 <= distance <= 2 or least < 1 or most < 2:
        raise ConfigError("distance lies in [0, 2], and a group has a picture or more", got=f"{distance}, {least}")
    if not np.isfinite(directions).all():
        raise DataError("directions hold what is no finite number")
    count = len(directions)
    some = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
    found = np.full(count, -1, dtype=np.int64)
    if len(some) > 1:
        found[some] = fcluster(linkage(_pairs(directions[some]), "average"), distance, "distance") - 1
    else:
        found[some] = 0
    rest = np.setdiff1d(np.arange(count), some)
    if len(rest):
        means = group_means(directions, found, int(found.max()) + 1)
        for rows in np.array_split(rest, -(-len(rest) // 1024)):
            apart = average_distance(directions[rows], means)
            found[rows] = np.where(apart.min(axis=1) <= distance, apart.argmin(axis=1), -1)
    sizes = np.bincount(found[found >= 0], minlength=1)
    order = np.argsort(-sizes, kind="stable")
    place = np.full(len(sizes), -1, dtype=np.int64)
    kept = order[sizes[order] >= least]
    place[kept] = np.arange(len(kept))
    return np.where(found >= 0, place[found], -1)


def _pairs(directions: NDArray[np.float32]) -> NDArray[np.float64]:
    """The distances of all pairs in the order that `linkage` takes, some rows at a time."""
    count, start = len(directions), 0
    found = np.empty(count * (count - 1) // 2)
    for first in range(0, count, 256):
        apart = average_distance(directions[first : first + 256], directions)
        for place, row in enumerate(apart, first):
            found[start : start + count - place - 1] = row[place + 1 :]
            start += count - place - 1
    return found
