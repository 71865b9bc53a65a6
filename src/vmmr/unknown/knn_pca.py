"""The nearest prototype of known images, in the directions that they fill.

What an image of the bank has outside of its principal directions is its own, and no sign of its class. Left out, it
hides no likeness; what a picture has outside of them counts against it as before. And what is left of a class's images
says less each than a few centres of them all: k-means (`scipy.cluster.vq.kmeans`), class by class. Compared are some
hundredths of the bank's numbers.

Neighbours as in `vmmr.unknown.knn`; what the bank is reduced to is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from scipy.cluster.vq import kmeans
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError
from vmmr.unknown.fitted import Shape
from vmmr.unknown.knn import KNNFitted, fit_knn, grown_knn
from vmmr.unknown.statistics import Statistics

__all__ = ["ReducedKNNFitted", "fit_knn_pca", "grown_knn_pca", "knn_pca", "nearest_cosine"]

_STARTS = 5  # of k-means; the tightest is taken
_PROTOTYPES = 6  # of a class


@dataclass(frozen=True)
class ReducedKNNFitted(KNNFitted):
    """A bank with basis: its principal directions, orthonormal, the strongest first; prototype: the centres of each
    class's images in that basis, of length 1; prototype_label: their classes."""

    basis: Annotated[Tensor, Shape("D", "R")]
    prototype: Annotated[Tensor, Shape("P", "R")]
    prototype_label: Annotated[Tensor, Shape("P", dtype=torch.int64)]


def fit_knn_pca(statistics: Statistics, dimension: int = 128, prototypes: int = _PROTOTYPES) -> ReducedKNNFitted:
    """The bank of `fit_knn`, the `dimension` principal directions of its images, around 0, and so many prototypes of
    each class; of fewer features or images, all.

    Raises ConfigError for numbers below 1.
    """
    if min(dimension, prototypes) < 1:
        raise ConfigError("a bank is reduced to one direction and prototype at least", got=(dimension, prototypes))
    plain = fit_knn(statistics)
    rows = plain.bank.double()
    _, directions = torch.linalg.eigh(rows.T @ rows)  # weakest first
    basis = directions.flip(1)[:, :dimension].float().contiguous()
    return ReducedKNNFitted(plain.bank, plain.label, basis, *_prototypes(plain.bank, plain.label, basis, prototypes))


def grown_knn_pca(fitted: ReducedKNNFitted, features: Tensor, labels: Tensor, pull: float) -> ReducedKNNFitted:
    """As `grown_knn`, with prototypes of the new classes beside those of the old; the basis stays."""
    grown, old = grown_knn(fitted, features, labels, pull), len(fitted.bank)
    prototype, label = _prototypes(grown.bank[old:], grown.label[old:], fitted.basis, _PROTOTYPES)
    return replace(
        grown,
        prototype=torch.cat([fitted.prototype, prototype]),
        prototype_label=torch.cat([fitted.prototype_label, label]),
    )


def _prototypes(bank: Tensor, label: Tensor, basis: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many centres of each class's directions in the basis, [P, R] of length 1, and their classes."""
    inside = functional.normalize(bank @ basis, dim=1).double().numpy()
    centres, names = [], []
    for name in torch.unique(label).tolist():
        own = np.unique(inside[label.numpy() == name], axis=0)
        found, _ = kmeans(own, min(count, len(own)), iter=_STARTS, rng=0)
        centres.append(functional.normalize(torch.from_numpy(found), dim=1).float())
        names.append(torch.full((len(found),), name))
    return torch.cat(centres), torch.cat(names)


def nearest_cosine(features: Tensor, fitted: ReducedKNNFitted) -> Tensor:
    """The cosine of features [N, D] to the nearest prototype: [N], at most 1."""
    product = (features @ fitted.basis @ fitted.prototype.T).amax(dim=1)
    # The length last: one number an image, not D.
    return product.div(torch.linalg.vector_norm(features, dim=1).clamp(min=1e-12))


def knn_pca(features: Tensor, logits: Tensor, fitted: ReducedKNNFitted) -> Tensor:
    """Distance of features [N, D] to the nearest prototype, all of length 1: [N] in [0, 2]."""
    return (2 - 2 * nearest_cosine(features, fitted)).clamp(min=0).sqrt()
