"""Two numbers that tell a bad picture from a good one, whatever it shows."""

from __future__ import annotations

from torch import Tensor

__all__ = ["contrast", "contrast_and_detail", "detail"]

_LEAST = 1e-4


def contrast(image: Tensor) -> Tensor:
    """Standard deviation of the brightness of images [B, 3, H, W] in [-1, 1]: [B] in [0, 0.5]. Fog, darkness and washed
    out colours lower it.

    >>> import torch
    >>> contrast(torch.zeros(1, 3, 4, 4))
    tensor([0.])
    """
    return _brightness(image).flatten(1).std(dim=1, correction=0)


def detail(image: Tensor) -> Tensor:
    """Logarithm of the standard deviation of the Laplacian over the contrast, [B], of images [B, 3, H, W] in [-1, 1].

    Blur lowers it, noise raises it, contrast and brightness leave it. It depends on the size in pixels: compare images
    as the network sees them, of one size.
    """
    return contrast_and_detail(image)[1]


def contrast_and_detail(image: Tensor) -> tuple[Tensor, Tensor]:
    """Both, [B] each. Brightness is computed once, and image by image, which the cache of a processor holds."""
    light, edges = image.new_empty(len(image)), image.new_empty(len(image))
    for place, one in enumerate(image):
        light[place], edges[place] = _both(_brightness(one[None])[0])
    return light, (edges.clamp(min=_LEAST) / light.clamp(min=_LEAST)).log()


def _both(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of a brightness [H, W] and of its Laplacian, inside of the border."""
    around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return x.std(correction=0), (around - 4 * x[1:-1, 1:-1]).std(correction=0)


def _brightness(image: Tensor) -> Tensor:
    """[B, H, W] in [0, 1]: the mean of the colours."""
    return (image * 0.5 + 0.5).clamp(0, 1).mean(dim=1)
