"""A small known world: features in clusters, as a ReLU leaves them, and a linear classifier."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from vmmr.unknown import Statistics, gather

CLASSES, WIDTH, IMAGES = 5, 12, 200


class World(NamedTuple):
    """Training features [N, D] with labels, the classifier, what one pass tells; and other images, some strange."""

    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor
    statistics: Statistics
    shown: Tensor

    @property
    def logits(self) -> Tensor:
        """[N, C] of the shown images."""
        return torch.nn.functional.linear(self.shown, self.weight, self.bias)


@pytest.fixture(scope="session")
def world() -> World:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    means = 2 * torch.rand(CLASSES, WIDTH, generator=random)
    features = (means[labels] + 0.5 * torch.randn(IMAGES, WIDTH, generator=random)).relu()
    weight, bias = torch.randn(CLASSES, WIDTH, generator=random), torch.randn(CLASSES, generator=random)
    shown = torch.cat([features[:20], 3 * torch.rand(20, WIDTH, generator=random)])
    statistics = gather([(features, labels, torch.arange(IMAGES))], weight, bias)
    return World(features, labels, weight, bias, statistics, shown)
