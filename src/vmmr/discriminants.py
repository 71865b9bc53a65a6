"""Linear discriminants of unit features: what a Gaussian of each class, under one covariance, says of an image.

    f = features / |features|,   S = pooled covariance of f around the means m_c of all classes, shrunk
    d_c = w_c f + b_c,           w_c = S^-1 m_c,   b_c = -m_c S^-1 m_c / 2

Sources: Fisher 1936; shrinkage, Chen et al. 2010 (OAS, arXiv 0907.4698).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.errors import DataError

__all__ = ["Moments", "discriminants", "moments", "oas_shrinkage"]


@dataclass(frozen=True)
class Moments:
    """What discriminants are made of: count [C], sums [C, D] and the sum of f f^T [D, D], of unit features. float64."""

    count: Tensor
    sums: Tensor
    second: Tensor

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.sums - other.sums, self.second - other.second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sums + other.sums, self.second + other.second)


def moments(features: Tensor, labels: Tensor, classes: int) -> Moments:
    """Those of features [N, D], of any length above 0, with labels int64 [N] in [0, classes)."""
    unit = functional.normalize(features.double(), dim=1)
    count = torch.bincount(labels, minlength=classes).double()
    sums = torch.zeros(classes, unit.shape[1], dtype=torch.float64).index_add_(0, labels, unit)
    return Moments(count, sums, unit.T @ unit)


def oas_shrinkage(covariance: Tensor, images: float) -> float:
    """How far a covariance [D, D] of so many images is to be moved to the mean of its diagonal: in [0, 1].

    ((1 - 2/D) tr(S^2) + tr(S)^2) / ((N + 1 - 2/D) (tr(S^2) - tr(S)^2 / D)), at most 1: best for Gaussians in the mean
    square. Source: Chen et al. 2010 (arXiv 0907.4698).
    """
    width = len(covariance)
    trace, square = covariance.trace().item(), covariance.square().sum().item()
    below = (images + 1 - 2 / width) * (square - trace**2 / width)
    return min(1.0, ((1 - 2 / width) * square + trace**2) / below) if below > 0 else 1.0


def discriminants(known: Moments, shrinkage: float | None = None) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of linear discriminants of unit features, float64; a class without images never wins.

    shrinkage: of the covariance, in (0, 1]; None for `oas_shrinkage`. At 1 the nearest class mean wins. Raises
    DataError where all images of each class are alike, so that there is no covariance.

    >>> found = moments(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), torch.tensor([0, 0, 1, 1]), 2)
    >>> weight, bias = discriminants(found)
    >>> (torch.tensor([[0.9, 0.4]], dtype=torch.float64) @ weight.T + bias).argmax().item()
    0
    """
    there = known.count > 0
    mean = known.sums / known.count.clamp(min=1)[:, None]
    images = known.count.sum().item()
    within = (known.second - (mean * known.count[:, None]).T @ mean) / max(images, 1)
    level = within.trace().item() / len(within)
    if not level > 1e-12:
        raise DataError("the images of a class are all alike", got=f"{images:g} images", do="add different ones")
    part = oas_shrinkage(within, max(images - there.sum().item(), 1)) if shrinkage is None else shrinkage
    shrunk = (1 - part) * within + part * level * torch.eye(len(within), dtype=torch.float64)
    shrunk = shrunk + 1e-6 * level * torch.eye(len(within), dtype=torch.float64)  # for rounding
    weight = torch.cholesky_solve(mean.T, torch.linalg.cholesky(shrunk)).T
    bias = -0.5 * (weight * mean).sum(dim=1)
    return weight, bias.where(there, -torch.inf)
