"""The nearest known image, once known images are reduced to the directions that they fill.

What an image of the bank has outside of its principal directions is its own, and no sign of its class. Left out, it
hides no likeness; what a picture has outside of them counts against it as before. A bank of a tenth of the size is
compared, in a tenth of the time.

Neighbours as in `vmmr.unknown.knn`; reducing the bank is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError
from vmmr.unknown.fitted import Shape
from vmmr.unknown.knn import KNNFitted, fit_knn
from vmmr.unknown.statistics import Statistics

__all__ = ["ReducedKNNFitted", "fit_knn_pca", "knn_pca", "nearest_cosine"]


@dataclass(frozen=True)
class ReducedKNNFitted(KNNFitted):
    """A bank with basis: its principal directions, orthonormal, the strongest first."""

    basis: Annotated[Tensor, Shape("D", "R")]

    @cached_property
    def reduced(self) -> Tensor:
        """[M, R], the direction of each image of the bank in the basis."""
        return functional.normalize(self.bank @ self.basis, dim=1)


def fit_knn_pca(statistics: Statistics, dimension: int = 128) -> ReducedKNNFitted:
    """The bank of `fit_knn`, and the `dimension` principal directions of its images, around 0; of fewer features, all.

    Raises ConfigError for a dimension below 1.
    """
    if dimension < 1:
        raise ConfigError("a bank is reduced to one direction at least", got=dimension)
    plain = fit_knn(statistics)
    rows = plain.bank.double()
    _, directions = torch.linalg.eigh(rows.T @ rows)  # weakest first
    basis = directions.flip(1)[:, :dimension]
    return ReducedKNNFitted(plain.bank, plain.label, basis.float().contiguous())


def nearest_cosine(features: Tensor, fitted: ReducedKNNFitted) -> Tensor:
    """The cosine of features [N, D] to the nearest image of the reduced bank: [N], at most 1."""
    return (functional.normalize(features, dim=1) @ fitted.basis @ fitted.reduced.T).amax(dim=1)


def knn_pca(features: Tensor, logits: Tensor, fitted: ReducedKNNFitted) -> Tensor:
    """Distance of features [N, D] to the nearest image of the reduced bank, all of length 1: [N] in [0, 2]."""
    return (2 - 2 * nearest_cosine(features, fitted)).clamp(min=0).sqrt()
