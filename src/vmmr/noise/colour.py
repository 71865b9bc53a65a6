"""Corruptions of brightness and colour, as ImageNet-C has them.

Hue, saturation and value need not be computed: with the value ``v = max(r, g, b)`` a colour is ``v - s v k`` where
s is the saturation and k in [0, 1] depends on the hue alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vmmr.noise.corruption import Draws, corruption, level

__all__ = ["brightness", "contrast", "saturate"]


@corruption
def brightness(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """The value of every colour raised by .1, .2, .3, .4, .5, hue and saturation kept (ImageNet-C).

    >>> brightness(torch.tensor([0.4, 0.2, 0.0]).view(1, 3, 1, 1), 4).flatten().tolist()
    [0.800000011920929, 0.4000000059604645, 0.0]
    """
    value = x.amax(1, keepdim=True)
    raised = (value + level(severity, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5)).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-6)), raised)


@corruption
def contrast(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """The distance to each channel's mean shrunk to 40, 30, 20, 10, 5 % (ImageNet-C).

    >>> contrast(torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2), 3)[0, 0].tolist()
    [[0.4000000059604645, 0.6000000238418579]]
    """
    return x.mean((2, 3), keepdim=True).lerp(x, level(severity, 1.0, 0.4, 0.3, 0.2, 0.1, 0.05))


@corruption
def saturate(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Saturation times .3, .1, 2, 5, 20, plus 0, 0, 0, .1, .2 (ImageNet-C): first pale, then garish.

    Between levels 2 and 3 it passes by the image itself. What is grey has the hue of red.
    """
    factor, extra = level(severity, 1.0, 0.3, 0.1, 2.0, 5.0, 20.0), level(severity, 0.0, 0.0, 0.0, 0.0, 0.1, 0.2)
    value = x.amax(1, keepdim=True)
    missing = value - x
    most = missing.amax(1, keepdim=True)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype, device=x.device)[:, None, None]
    hue = torch.where(most > 0, missing / most.clamp(min=1e-6), red)
    saturation = (most / value.clamp(min=1e-6) * factor + extra).clamp(max=1)
    return value - value * saturation * hue
