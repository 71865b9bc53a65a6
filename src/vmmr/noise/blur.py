"""Corruptions of optics and motion."""

from __future__ import annotations

import math

import torch
from kornia.filters import filter2d
from torch import Tensor

from vmmr.noise.axes import along_axes, between, smoothing
from vmmr.noise.corruption import Draws, corruption, level, normal, offsets, scale, uniform

__all__ = ["defocus", "gaussian_blur", "glass_blur", "line", "motion_blur", "travel_blur", "zoom_blur"]


@corruption
def defocus(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """A lens out of focus: a disc of radius 3, 4, 6, 8, 10 px at 224 px (ImageNet-C), with a soft rim."""
    radius = level(severity, 0.0, 3.0, 4.0, 6.0, 8.0, 10.0).view(-1, 1, 1) * scale(x)
    columns, rows = offsets(x, radius)
    kernel = (radius + 0.5 - torch.hypot(columns, rows)).clamp(0, 1)
    return filter2d(x, kernel, normalized=True)


@corruption
def motion_blur(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """A straight path of 6.5, 10.7, 17, 23.8, 30.2 px at 224 px during exposure, in a direction drawn per image.

    ImageNet-C smears to one side with Gaussian weights, within 45 degrees of the horizontal, which moves the picture.
    Training wants it where its target is: these are the lengths of centred uniform paths of the published spread.
    kornia's motion kernel has one whole length for the batch, this one a length for each image.
    """
    angle = uniform(x, 1, 1, generator=generator) * math.pi
    length = level(severity, 0.0, 6.5, 10.7, 17.0, 23.8, 30.2).view(-1, 1, 1) * scale(x)
    return filter2d(x, line(x, length, angle), normalized=True)


def line(x: Tensor, length: Tensor, angle: Tensor) -> Tensor:
    """Antialiased line segments through the centre as kernels [B, k, k]; length and angle [B, 1, 1]."""
    columns, rows = offsets(x, length / 2 + 0.5)
    along = (columns * angle.cos() + rows * angle.sin()).abs()
    across = (rows * angle.cos() - columns * angle.sin()).abs()
    return (length / 2 + 0.5 - along).clamp(0, 1) * (1 - across).clamp(min=0)


@corruption
def travel_blur(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """A vehicle that drives by: a path of 8, 14, 22, 32, 44 px at 224 px within 15 degrees of the horizontal; ours."""
    angle = math.radians(15) * (2 * uniform(x, 1, 1, generator=generator) - 1)
    length = level(severity, 0.0, 8.0, 14.0, 22.0, 32.0, 44.0).view(-1, 1, 1) * scale(x)
    return filter2d(x, line(x, length, angle), normalized=True)


@corruption
def gaussian_blur(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Gaussian blur of sigma 1, 2, 3, 4, 6 px at 224 px; the edge repeats (ImageNet-C)."""
    return _smooth(x, level(severity, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0).flatten() * scale(x))


def _smooth(x: Tensor, sigma: Tensor) -> Tensor:
    rows, columns = (smoothing(side, sigma) for side in x.shape[-2:])
    return along_axes(x, rows, columns)


@corruption
def glass_blur(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Frosted glass: every pixel read from near by, between two Gaussian blurs of .7, .9, 1, 1.1, 1.5 px at 224 px.

    ImageNet-C swaps pixels one after the other, up to 1, 2, 2, 3, 4 px far, 2, 1, 3, 2, 2 times; as its swaps in fact
    copy, the picture drifts. Here all read at once, at normal distances of the drift and spread measured there.
    """
    sigma = level(severity, 0.0, 0.7, 0.9, 1.0, 1.1, 1.5).flatten() * scale(x)
    drift, spread = level(severity, 0.0, 1.0, 0.7, 2.2, 1.6, 1.8), level(severity, 0.0, 0.7, 1.2, 2.1, 2.8, 4.0)
    height, width = x.shape[-2:]
    down, right = (
        ((normal(x, 2, height, width, generator=generator) * spread - drift) * scale(x)).round().long().unbind(1)
    )
    rows = (torch.arange(height, device=x.device)[:, None] + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + right).clamp(0, width - 1)
    source = (rows * width + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    shuffled = _smooth(x, sigma).flatten(2).gather(2, source).view_as(x)
    return _smooth(shuffled, sigma)


@corruption
def zoom_blur(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """A mean over zooms about the centre from 1 to 1.11, 1.15, 1.2, 1.24, 1.3 (ImageNet-C).

    Sixteen zooms z^0 .. z^15 as four steps, since their mean is the product of the means of (1, z), (1, z^2),
    (1, z^4) and (1, z^8); ImageNet-C adds up 12, 16, 11, 13 and 11 evenly spaced ones, and the image once more.
    """
    farthest = level(severity, 1.0, 1.11, 1.15, 1.2, 1.24, 1.3).flatten()
    count = level(severity, 12.0, 12.0, 16.0, 11.0, 13.0, 11.0)
    out = x
    for power in (1, 2, 4, 8):
        rows, columns = (_zoom(side, farthest ** (power / 15)) for side in x.shape[-2:])
        out = (out + along_axes(out, rows, columns)) / 2
    return out.lerp(x, 1 / (count + 1))


def _zoom(side: int, factor: Tensor) -> Tensor:
    centre = (side - 1) / 2
    pixel = torch.arange(side, device=factor.device, dtype=factor.dtype)
    return between(centre + (pixel - centre) / factor[:, None], side)
