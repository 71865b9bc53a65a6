"""Two numbers that tell a bad picture from a good one, whatever it shows.

Images are float [B, 3, H, W] in [-1, 1], or pixels uint8 [B, H, W, 3], which give the same numbers in a fraction of the
time: pictures are answered by these, and every one of them is looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["contrast", "contrast_and_detail", "detail"]

_LEAST = 1e-4
_WHITE = 3 * 255


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
    light, edges = torch.tensor([_both(one) for one in images]).view(-1, 2).unbind(dim=1)
    return light, edges


def _both(image: Tensor) -> tuple[float, float]:
    """The contrast and the detail of an image; its Laplacian is taken inside of the border."""
    x, white = _brightness(image)
    around = x[:-2, 1:-1] + x[2:, 1:-1]
    around += x[1:-1, :-2]
    around += x[1:-1, 2:]
    around -= 4 * x[1:-1, 1:-1]
    light, edges = _deviation(x) / white, _deviation(around) / white
    return light, math.log(max(edges, _LEAST) / max(light, _LEAST))


def _brightness(image: Tensor) -> tuple[NDArray[Any], int]:
    """[H, W] and what white is: the mean of the colours in [0, 1], or, of pixels, their sum, int16. Its Laplacian is at
    most four times as large, and a processor adds twice as many int16 at once as float32."""
    if image.dtype != torch.uint8:
        return (image.float() * 0.5 + 0.5).clamp(0, 1).mean(dim=0).numpy(), 1
    pixels = image.numpy().astype(np.int16)
    bright = pixels[..., 0] + pixels[..., 1]
    bright += pixels[..., 2]
    return bright, _WHITE


def _deviation(values: NDArray[Any]) -> float:
    """Standard deviation; `numpy.std` would go through the memory once more."""
    flat = values.astype(np.float32).reshape(-1)
    flat -= flat.mean()
    return math.sqrt(float(flat @ flat) / flat.size)
