"""Resizing and smoothing as matrices along each axis, so that every image of a batch can have its own size or sigma."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along_axes", "area", "between", "smoothing"]


def along_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ x @ columns.T`` for every channel.

    Args:
        x: [B, C, h, w].
        rows: [B or 1, H, h].
        columns: [B or 1, W, w].

    Returns [B, C, H, W].
    """
    return rows[:, None] @ x @ columns[:, None].mT


def area(side: int, cells: Tensor) -> Tensor:
    """Averages over equal parts: from ``side`` pixels to ``cells`` [B], as [B, side, side], empty below the last cell.

    >>> area(4, torch.tensor([2.0]))[0, :2].tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    cells = cells[:, None, None]
    pixel = torch.arange(side, device=cells.device, dtype=cells.dtype)
    low, high = pixel[:, None] * side / cells, (pixel[:, None] + 1) * side / cells
    return (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0) * cells / side


def between(at: Tensor, side: int) -> Tensor:
    """Linear interpolation at the positions ``at`` [B, n] among ``side`` pixels, as [B, n, side].

    Pixel centres are whole numbers; beyond the last there is nothing, so clamp the positions for an edge that repeats.

    >>> between(torch.tensor([[0.25, 1.0]]), 3).tolist()
    [[[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]]
    """
    pixel = torch.arange(side, device=at.device, dtype=at.dtype)
    return (1 - (at[:, :, None] - pixel).abs()).clamp(min=0)


def smoothing(side: int, sigma: Tensor, truncate: float = 4.0) -> Tensor:
    """Gaussian smoothing with sigma [B] in pixels, cut off at ``truncate`` sigma; the edge repeats; [B, side, side].

    As scipy.ndimage.gaussian_filter1d with mode="nearest".

    >>> smoothing(3, torch.tensor([0.0])).tolist()
    [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]
    """
    sigma = sigma[:, None, None].clamp(min=1e-3)
    reach = (truncate * sigma + 0.5).floor()
    beyond = min(int(reach.max().item()), 8 * side)
    pixel = torch.arange(side, device=sigma.device, dtype=sigma.dtype)[:, None]
    source = torch.arange(-beyond, side + beyond, device=sigma.device, dtype=sigma.dtype)
    weights = (-0.5 * ((source - pixel) / sigma) ** 2).exp() * ((source - pixel).abs() <= reach)
    weights = weights / weights.sum(2, keepdim=True)
    inside = weights[..., beyond : beyond + side].clone()
    inside[..., 0] += weights[..., :beyond].sum(2)
    inside[..., -1] += weights[..., beyond + side :].sum(2)
    return inside
