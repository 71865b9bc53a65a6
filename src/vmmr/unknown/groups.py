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


def merge_distance(bank: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """How far apart two groups may be and still be one: the distance at which images of known classes, grouped as
    `group_alike` groups them, come out most like their classes.

    bank [M, D]: directions of images of the classes `labels`, int64 [M]; of more than `MOST` so many, at even places.
    Likeness is the adjusted Rand index (Hubert and Arabie 1985), at a hundred even steps up to the last merge; where
    several are within 0.01 of the best, their mean. DataError where fewer than two classes have an image.

    >>> round(merge_distance(np.eye(2, dtype=np.float32)[[0, 0, 1]], np.array([4, 4, 7])), 3)
    0.495
    """
    some = _even(len(bank), MOST)
    there, truth = np.unique(labels[some], return_inverse=True)
    if len(there) < 2:
        raise DataError("the distance between classes takes two", got=f"{len(there)} classes")
    tree = linkage(_pairs(bank[some]), "average")
    distances = np.linspace(0, tree[-1, 2], 101)
    alike = np.array(
        [_rand_index(fcluster(tree, distance, "distance").astype(np.int64), truth) for distance in distances]
    )
    return float(distances[alike >= alike.max() - 0.01].mean())


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
    some = _even(count, most)
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


def _rand_index(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The adjusted Rand index of two groupings [N] of whole numbers: pairs together in both, 0 by chance, 1 at most."""
    both, first, second = (
        sum(int(count) * (int(count) - 1) / 2 for count in np.unique(groups, return_counts=True)[1])
        for groups in (one * (int(other.max()) + 1) + other, one, other)
    )
    chance = first * second / (len(one) * (len(one) - 1) / 2)
    most = (first + second) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def _even(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` places, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


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
