"""Which vehicles are taken for which: the pairs that look alike to the network, and the classes it knows worst."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmmr.taxonomy import Taxonomy

__all__ = ["confusions", "mistakes", "worst_classes"]


def confusions(
    answers: NDArray[np.int64], labels: NDArray[np.int64], taxonomy: Taxonomy, *, most: int = 20
) -> list[dict[str, Any]]:
    """The most frequent pairs of a class and a wrong answer, of answers [N] and labels [N].

    Each is {"truth", "answer", "count", "share", "same_make"}; share is that of the true class's images. Pairs of equal
    count stand in order of share, then of label.

    >>> cars = Taxonomy.from_rows(["Audi", "Audi", "VW"], ["A4", "A6", "Golf"])
    >>> confusions(np.array([1, 1, 2]), np.array([0, 0, 2]), cars)
    [{'truth': 'Audi A4', 'answer': 'Audi A6', 'count': 2, 'share': 1.0, 'same_make': True}]
    """
    wrong = answers != labels
    pairs, counts = np.unique(np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True)
    shares = counts / np.bincount(labels, minlength=len(taxonomy))[pairs[:, 0]]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -shares, -counts))[:most]
    return [
        {
            "truth": taxonomy.names[pairs[k, 0]],
            "answer": taxonomy.names[pairs[k, 1]],
            "count": int(counts[k]),
            "share": float(shares[k]),
            "same_make": bool(taxonomy.make_of[pairs[k, 0]] == taxonomy.make_of[pairs[k, 1]]),
        }
        for k in order
    ]


def mistakes(answers: NDArray[np.int64], labels: NDArray[np.int64], taxonomy: Taxonomy) -> dict[str, Any]:
    """{"count", "same_make", "same_model", "lookalike"}: how many answers are wrong, and which share of them has the
    right make, the right make and model (of another year), the right look-alike group. None where there is no mistake,
    and for look-alikes where the taxonomy names none.
    """
    wrong = answers != labels
    kinship = {
        "same_make": taxonomy.make_of,
        "same_model": taxonomy.model_of,
        "lookalike": taxonomy.lookalike_of if taxonomy.equivalent else None,
    }
    found: dict[str, Any] = {"count": int(wrong.sum())}
    for name, of in kinship.items():
        known = of is not None and wrong.any()
        found[name] = float((of[answers] == of[labels])[wrong].mean()) if known and of is not None else None
    return found


def worst_classes(
    answers: NDArray[np.int64], labels: NDArray[np.int64], taxonomy: Taxonomy, *, most: int = 12
) -> list[dict[str, Any]]:
    """The classes with the lowest accuracy, worst first, of answers [N] and labels [N]; those without a mistake stay
    out.

    Each is {"name", "top1", "images", "mistaken_for", "row"}: the most frequent wrong answer, and the first image that
    got it. Classes of equal accuracy stand in order of size, then of label.
    """
    images = np.bincount(labels, minlength=len(taxonomy))
    right = np.bincount(labels[answers == labels], minlength=len(taxonomy))
    top1 = right / np.maximum(images, 1)
    order = np.lexsort((-images, top1))
    found = []
    for label in order[(right < images)[order]][:most]:
        rows = np.flatnonzero((labels == label) & (answers != label))
        said = int(np.bincount(answers[rows]).argmax())
        found.append(
            {
                "name": taxonomy.names[label],
                "top1": float(top1[label]),
                "images": int(images[label]),
                "mistaken_for": taxonomy.names[said],
                "row": int(rows[answers[rows] == said][0]),
            }
        )
    return found
