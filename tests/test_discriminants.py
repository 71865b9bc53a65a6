"""Linear discriminants against naive re-computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vmmr.discriminants import discriminants, moments, oas_shrinkage
from vmmr.errors import DataError

CLASSES, WIDTH = 4, 6


def naive(features: Tensor, labels: Tensor, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Image by image, with an inverse."""
    unit = [row / math.sqrt(sum(row * row)) for row in features.double().numpy()]
    means = [np.mean([u for u, y in zip(unit, labels.tolist(), strict=True) if y == c], axis=0) for c in range(CLASSES)]
    within = sum(np.outer(u - means[y], u - means[y]) for u, y in zip(unit, labels.tolist(), strict=True)) / len(unit)
    level = np.trace(within) / WIDTH
    inverse = np.linalg.inv((1 - shrinkage) * within + (shrinkage + 1e-6) * level * np.eye(WIDTH))
    weight = np.stack([inverse @ mean for mean in means])
    return weight, np.array([-mean @ inverse @ mean / 2 for mean in means])


@pytest.mark.parametrize("shrinkage", [0.1, 0.7])
def test_discriminants_are_those_of_one_covariance(cloud: tuple[Tensor, Tensor], shrinkage: float) -> None:
    weight, bias = discriminants(moments(*cloud, CLASSES), shrinkage)
    wanted = naive(*cloud, shrinkage)
    np.testing.assert_allclose(weight.numpy(), wanted[0], rtol=1e-8)
    np.testing.assert_allclose(bias.numpy(), wanted[1], rtol=1e-8)


def test_shrunk_to_the_end_the_nearest_mean_wins(cloud: tuple[Tensor, Tensor]) -> None:
    features, labels = cloud
    weight, bias = discriminants(moments(features, labels, CLASSES), 1.0)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    means = torch.stack([unit[labels == c].mean(dim=0) for c in range(CLASSES)])
    nearest = torch.cdist(unit, means).argmin(dim=1)
    assert torch.equal((unit @ weight.T + bias).argmax(dim=1), nearest)


def test_oas_is_the_published_formula() -> None:
    covariance = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    trace, square = 3.0, 4 + 1 + 2 * 0.09  # tr(S), tr(S^2)
    # rho = ((1 - 2/p) tr(S^2) + tr^2(S)) / ((n + 1 - 2/p) (tr(S^2) - tr^2(S) / p)), p = 2, n = 50
    assert oas_shrinkage(covariance, 50) == pytest.approx(trace**2 / (50 * (square - trace**2 / 2)))
    assert oas_shrinkage(torch.eye(3, dtype=torch.float64), 50) == 1


def test_a_class_without_images_never_wins(cloud: tuple[Tensor, Tensor]) -> None:
    weight, bias = discriminants(moments(*cloud, CLASSES + 1))
    assert bias[-1] == -torch.inf
    assert bias[:-1].isfinite().all()
    assert weight.isfinite().all()


def test_images_that_are_all_alike_are_refused() -> None:
    with pytest.raises(DataError, match="alike"):
        discriminants(moments(torch.eye(3), torch.arange(3), 3))
