"""Corruptions that move or merge pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vmmr.noise.axes import along_axes, area, between, smoothing
from vmmr.noise.corruption import Draws, corruption, level, scale, uniform

__all__ = ["downscale", "elastic", "interlace", "pixelate"]


@corruption
def downscale(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """A vehicle far away: area-averaged to 60, 45, 33, 25, 18 % of the size, bilinear back.

    ImageNet-C's pixelate ends at 25 % and shows the cells; cameras above a road see less and interpolate. Below
    level 1 the 60 % are mixed with the image, as a size just below the full one would blur in beats.
    """
    factor = level(severity, 0.6, 0.6, 0.45, 0.33, 0.25, 0.18).flatten()
    mix = severity.clamp(max=1)
    rows, columns = (_there_and_back(side, factor, mix) for side in x.shape[-2:])
    return along_axes(x, rows, columns)


def _there_and_back(side: int, factor: Tensor, mix: Tensor) -> Tensor:
    """[B, side, side]: averages over round(side * factor) cells, interpolated back at the pixel centres."""
    cells = (side * factor).round().clamp(min=1)
    pixel = torch.arange(side, device=factor.device, dtype=factor.dtype)
    at = ((pixel + 0.5) * cells[:, None] / side - 0.5).clamp(min=0).minimum(cells[:, None] - 1)
    return _mixed(between(at, side) @ area(side, cells), mix)


def _mixed(matrix: Tensor, share: Tensor) -> Tensor:
    eye = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    return eye.lerp(matrix, share[:, None, None])


@corruption
def pixelate(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Averages over cells that stay visible, 60, 50, 40, 30, 25 % of the size (ImageNet-C), as Pillow resizes.

    Below level 1 the 60 % are mixed with the image, as in `downscale`.
    """
    factor = level(severity, 0.6, 0.6, 0.5, 0.4, 0.3, 0.25).flatten()
    mix = severity.clamp(max=1)
    rows, columns = (_mixed(_cells(side, factor), mix) for side in x.shape[-2:])
    return along_axes(x, rows, columns)


def _cells(side: int, factor: Tensor) -> Tensor:
    """[B, side, side]: means over the pixels whose centres share one of floor(side * factor) cells."""
    cells = (side * factor + 1e-3).floor().clamp(min=1)
    pixel = torch.arange(side, device=factor.device, dtype=factor.dtype)
    cell = ((pixel + 0.5) * cells[:, None] / side).floor()
    same = (cell[:, :, None] == cell[:, None, :]).to(factor.dtype)
    return same / same.sum(2, keepdim=True)


@corruption
def elastic(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Smooth random displacements, mirrored at the edge (ImageNet-C).

    U(-1.12, 1.12) px at 224 px, smoothed with a sigma of 1 % of the size, times 12.5, 16.25, 21.25, 25, 30.
    """
    height, width = x.shape[-2:]
    strength = level(severity, 0.0, 12.5, 16.25, 21.25, 25.0, 30.0) * 1.12 * scale(x)
    # Of white noise, smoothing leaves a part in inverse proportion to sigma in pixels: the second scale keeps it.
    field = (2 * uniform(x, 2, height, width, generator=generator) - 1) * scale(x)
    one = torch.ones(1, device=x.device, dtype=x.dtype)
    field = along_axes(field, *(smoothing(side, 0.01 * side * one, truncate=3) for side in (height, width)))
    right, down = (field * strength).unbind(1)
    columns = torch.arange(width, device=x.device, dtype=x.dtype) + right
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + down
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@corruption
def interlace(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Two half images of a moving vehicle: every other row 1, 2, 4, 8, 16 px to one side at 224 px; ours."""
    side = x.shape[-1]
    drawn = uniform(x, 1, generator=generator)
    shift = torch.where(drawn < 0.5, -1, 1) * level(severity, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0).view(-1, 1) * scale(x)
    at = (torch.arange(side, device=x.device, dtype=x.dtype) + shift).clamp(0, side - 1)
    out = x.clone()
    out[:, :, 1::2] = x[:, :, 1::2] @ between(at, side)[:, None].mT
    return out
