"""Corruptions of a sensor: photons, gain, broken pixels, too little light. Noise is per pixel at every size."""

from __future__ import annotations

import torch
from torch import Tensor

from vmmr.noise.corruption import Draws, corruption, level, normal, poisson, uniform

__all__ = ["gaussian", "impulse", "low_light", "shot", "speckle"]


@corruption
def gaussian(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Normal noise, independent in every pixel and channel; sigma .08, .12, .18, .26, .38 (ImageNet-C).

    >>> x = torch.full((1, 3, 64, 64), 0.5)
    >>> round(gaussian(x, 1.0, generator=torch.Generator().manual_seed(0)).std().item(), 3)
    0.08
    """
    return x + level(severity, 0.0, 0.08, 0.12, 0.18, 0.26, 0.38) * normal(x, *x.shape[1:], generator=generator)


@corruption
def shot(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Photon counting: Poisson counts with 60, 25, 12, 5, 3 photons at white (ImageNet-C).

    Keeps the mean; the variance is intensity / photons. Interpolated in 1 / photons.
    """
    gain = level(severity, 0.0, 1 / 60, 1 / 25, 1 / 12, 1 / 5, 1 / 3).clamp(min=1e-6)
    return poisson(x / gain, generator=generator) * gain


@corruption
def speckle(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Noise in proportion to the intensity; relative sigma .15, .2, .35, .45, .6 (ImageNet-C)."""
    return x + x * level(severity, 0.0, 0.15, 0.2, 0.35, 0.45, 0.6) * normal(x, *x.shape[1:], generator=generator)


@corruption
def impulse(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Salt and pepper in equal parts on 3, 6, 9, 17, 27 % of the values (ImageNet-C).

    >>> x = torch.full((1, 3, 64, 64), 0.5)
    >>> round((impulse(x, 5.0, generator=torch.Generator().manual_seed(0)) != 0.5).float().mean().item(), 2)
    0.27
    """
    amount = level(severity, 0.0, 0.03, 0.06, 0.09, 0.17, 0.27)
    draw = uniform(x, *x.shape[1:], generator=generator)
    return torch.where(draw < amount, (draw < amount / 2).to(x.dtype), x)


@corruption
def low_light(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Too little light: exposure of 50, 30, 18, 10, 6 % in linear light (gamma 2.2), with the sensor's noise.

    Noise is normal with variance ``shot * light + read^2``, the usual model of a raw sensor (Foi et al. 2008,
    doi 10.1109/TIP.2008.2001399); less light comes with more gain, so both grow with severity.
    """
    light = x**2.2 * level(severity, 1.0, 0.5, 0.3, 0.18, 0.1, 0.06)
    gain = level(severity, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    sigma = (light * 0.002 * gain + (0.006 * gain) ** 2).sqrt()
    light = light + sigma * normal(x, *x.shape[1:], generator=generator)
    return light.clamp(min=0) ** (1 / 2.2)
