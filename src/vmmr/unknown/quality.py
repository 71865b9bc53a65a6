"""Two numbers that tell a bad picture from a good one, whatever it shows.

Images are float [B, 3, H, W] in [-1, 1], or pixels uint8 [B, H, W, 3], which give the same numbers in a fraction of the
time: pictures are answered by these, and every one of them is looked at.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["contrast", "contrast_and_detail", "detail"]

_LEAST = 1e-4
_THIRDS = np.full(3, 1 / (3 * 255), np.float32)


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the brightness of each image: [B] in [0, 0.5]. Fog, darkness and washed out colours lower
    it.

    >>> import torch
    >>> contrast(torch.zeros(1, 3, 4, 4))
    tensor([0.])
    """
    return contrast_and_detail(images)[0]


def detail(images: Tensor) -> Tensor:
    """Logarithm of the standard deviation of the Laplacian over the contrast, [B].

    Blur lowers it, noise raises it, contrast and brightness leave it. It depends on the size in pixels: compare images
    as the network sees them, of one size.
    """
    return contrast_and_detail(images)[1]


def contrast_and_detail(images: Tensor) -> tuple[Tensor, Tensor]:
    """Both, float32 [B] each. Brightness is computed once, and image by image, which the cache of a processor holds."""
    both = torch.tensor([_both(_brightness(one)) for one in images]).view(-1, 2)
    light, edges = both.unbind(dim=1)
    return light, (edges.clamp(min=_LEAST) / light.clamp(min=_LEAST)).log()


def _both(x: NDArray[np.float32]) -> tuple[float, float]:
    """Standard deviations of a brightness [H, W] and of its Laplacian, inside of the border."""
    around = x[:-2, 1:-1] + x[2:, 1:-1]
    around += x[1:-1, :-2]
    around += x[1:-1, 2:]
    around -= 4 * x[1:-1, 1:-1]
    return float(x.std()), float(around.std())


def _brightness(image: Tensor) -> NDArray[np.float32]:
    """[H, W] in [0, 1]: the mean of the colours."""
    bright: NDArray[np.float32]
    if image.dtype == torch.uint8:
        pixels = image.numpy()
        bright = (pixels.astype(np.float32).reshape(-1, 3) @ _THIRDS).reshape(pixels.shape[:2])
    else:
        bright = (image.float() * 0.5 + 0.5).clamp(0, 1).mean(dim=0).numpy()
    return bright
