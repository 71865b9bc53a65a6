"""Tasks that differ in their statistics: patterns of stripes, each task through another light."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vmmr.models import Backbone

SIDE = 32


def _tiny(classes: int = 3, *, seed: int = 0, name: str = "test_resnet") -> Backbone:
    """A small network, untrained, whose running statistics are not the default ones."""
    torch.manual_seed(seed)
    network = Backbone(name, classes)
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.named_buffers():
        if key.endswith("running_var"):
            value.mul_(0.5 + torch.rand(value.shape, generator=generator))
        elif key.endswith("running_mean"):
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return network.eval()


def _images(labels: Tensor, task: int, *, seed: int = 0, noise: float = 0.3) -> Tensor:
    """[N, 3, 32, 32] in [-1, 1]: stripes whose direction and width say the class within the task, in noise, through a
    gain and an offset of each colour that say the task."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    waves = torch.stack([torch.sin(x * 0.9), torch.sin(y * 0.9), torch.sin((x + y) * 0.6)])
    shape = waves[labels % 3][:, None].repeat(1, 3, 1, 1)
    gain = torch.tensor([[0.3, 0.9, 0.5], [0.8, 0.3, 0.3], [0.4, 0.4, 0.9], [0.9, 0.7, 0.3]])[task]
    offset = torch.tensor([[-0.4, 0.0, 0.3], [0.4, -0.3, 0.0], [0.0, 0.4, -0.4], [-0.2, 0.3, 0.3]])[task]
    grain = noise * torch.randn(len(labels), 3, SIDE, SIDE, generator=generator)
    found: Tensor = ((shape + grain) * gain[:, None, None] + offset[:, None, None]).clamp(-1, 1)
    return found


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Backbone]:
    return _tiny


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    return _images
