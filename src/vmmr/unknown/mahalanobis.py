"""Mahalanobis distance to the nearest class, and how much of it is more than that to all known images.

Sources: Lee et al., NeurIPS 2018 (arXiv 1807.03888), of the last features alone and without input noise; Ren et al.
2021 (arXiv 2106.09022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vmmr.unknown.fitted import Fitted, Shape
from vmmr.unknown.statistics import Statistics

__all__ = [
    "MahalanobisFitted",
    "RelativeMahalanobisFitted",
    "fit_mahalanobis",
    "fit_relative_mahalanobis",
    "mahalanobis",
    "relative_mahalanobis",
]


@dataclass(frozen=True)
class MahalanobisFitted(Fitted):
    """centre: of all known images. whiten: features around it, times this, have a variance of 1 within classes. mean:
    of each class, so whitened."""

    centre: Annotated[Tensor, Shape("D")]
    whiten: Annotated[Tensor, Shape("D", "D")]
    mean: Annotated[Tensor, Shape("C", "D")]


@dataclass(frozen=True)
class RelativeMahalanobisFitted(MahalanobisFitted):
    """whiten_all: features around the centre, times this, have a variance of 1 over all images."""

    whiten_all: Annotated[Tensor, Shape("D", "D")]


def _whitening(covariance: Tensor) -> Tensor:
    """V diag(1 / sqrt(lambda)), so that its square is the pseudo-inverse of a covariance [D, D].

    Directions below the rounding of float32 features count as none.
    """
    values, directions = torch.linalg.eigh(covariance)
    least = len(values) * torch.finfo(torch.float32).eps * values.amax()
    whiten: Tensor = directions * torch.where(values > least, values.clamp(min=1e-300).rsqrt(), 0.0)
    return whiten.contiguous()


def fit_mahalanobis(statistics: Statistics) -> MahalanobisFitted:
    """Class means, and the covariance that all classes share."""
    whiten = _whitening(statistics.within)
    mean = (statistics.mean - statistics.centre) @ whiten
    return MahalanobisFitted(statistics.centre.float(), whiten.float(), mean.float())


def fit_relative_mahalanobis(statistics: Statistics) -> RelativeMahalanobisFitted:
    """As `fit_mahalanobis`, and the mean and covariance of all images without their classes."""
    whiten_all = _whitening(statistics.total).float()
    return RelativeMahalanobisFitted(**fit_mahalanobis(statistics).tensors(), whiten_all=whiten_all)


def mahalanobis(features: Tensor, logits: Tensor, fitted: MahalanobisFitted) -> Tensor:
    """min_c (f - mean_c)^T S^+ (f - mean_c), [N] >= 0, of features [N, D]; S: covariance within classes."""
    whitened = (features - fitted.centre) @ fitted.whiten
    # By differences, not by squares that cancel where means are near.
    distances: Tensor = torch.cdist(whitened, fitted.mean, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(dim=1).square()


def relative_mahalanobis(features: Tensor, logits: Tensor, fitted: RelativeMahalanobisFitted) -> Tensor:
    """`mahalanobis` less the squared distance (f - centre)^T S_all^+ (f - centre) to all images: [N]."""
    whole = ((features - fitted.centre) @ fitted.whiten_all).square().sum(dim=1)
    return mahalanobis(features, logits, fitted) - whole
