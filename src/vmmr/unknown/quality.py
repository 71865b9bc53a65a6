"""Two numbers that tell a bad picture from a good one, whatever it shows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["contrast", "detail"]

_LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_LEAST = 1e-4


def contrast(image: Tensor) -> Tensor:
    """Standard deviation of the brightness of images [B, 3, H, W] in [-1, 1]: [B] in [0, 0.5]. Fog, darkness and washed
    out colours lower it.

    >>> contrast(torch.zeros(1, 3, 4, 4))
    tensor([0.])
    """
    return _brightness(image).flatten(1).std(dim=1, correction=0)


def detail(image: Tensor) -> Tensor:
    """Logarithm of the standard deviation of the Laplacian over the contrast, [B], of images [B, 3, H, W] in [-1, 1].

    Blur lowers it, noise raises it, contrast and brightness leave it. It depends on the size in pixels: compare images
    as the network sees them, of one size.
    """
    brightness = _brightness(image)
    kernel = torch.tensor(_LAPLACE, dtype=image.dtype, device=image.device)[None, None]
    edges = functional.conv2d(brightness[:, None], kernel).flatten(1).std(dim=1, correction=0)
    return (edges.clamp(min=_LEAST) / contrast(image).clamp(min=_LEAST)).log()


def _brightness(image: Tensor) -> Tensor:
    """[B, H, W] in [0, 1]: the mean of the colours."""
    return (image * 0.5 + 0.5).clamp(0, 1).mean(dim=1)
