"""Affine warps in which every image of a batch has its own matrix, interpolation and border.

`torch.nn.functional.grid_sample` (and kornia on top of it) takes one interpolation and one border for the
whole batch and knows three of the five borders, so source pixels are folded and gathered here.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BORDERS", "affine_warp", "fold", "imgaug_matrix"]

BORDERS = ("constant", "edge", "symmetric", "reflect", "wrap")
"""What lies outside of the image, by skimage's and imgaug's names, for the row ``a b c d``:
``k k|a b c d|k k``, ``a a|a b c d|d d``, ``b a|a b c d|d c``, ``c b|a b c d|c b``, ``c d|a b c d|a b``."""


def fold(index: Tensor, size: int, border: Tensor) -> Tensor:
    """Source positions outside of ``0 .. size - 1`` led back inside.

    Args:
        index: integer positions along one axis, any sign.
        size: pixels along that axis.
        border: index into `BORDERS`, broadcast against ``index``; "constant" is clamped as "edge" is.

    >>> positions = torch.tensor([-2, -1, 0, 3, 4, 5])
    >>> [fold(positions, 4, torch.tensor(b)).tolist() for b in range(1, 5)]
    [[0, 0, 0, 3, 3, 3], [1, 0, 0, 3, 3, 2], [2, 1, 0, 3, 2, 1], [2, 3, 0, 3, 0, 1]]
    """
    symmetric = index % (2 * size)
    symmetric = torch.minimum(symmetric, 2 * size - 1 - symmetric)
    reflect = index % max(2 * size - 2, 1)
    reflect = torch.minimum(reflect, 2 * size - 2 - reflect)
    folded = torch.where(border == 2, symmetric, index.clamp(0, size - 1))
    folded = torch.where(border == 3, reflect, folded)
    return torch.where(border == 4, index % size, folded)


def affine_warp(x: Tensor, source: Tensor, *, bilinear: Tensor, border: Tensor, fill: Tensor) -> Tensor:
    """Each output pixel read from ``source @ (column, row, 1)`` of its image.

    Args:
        x: [B, C, H, W], any range.
        source: [B, 2, 3], from output to input pixel coordinates; pixel centres are whole numbers.
        bilinear: [B] bool, else the nearest pixel.
        border: [B] index into `BORDERS`.
        fill: [B], what the border "constant" consists of; bilinear blends it in at the edge, as OpenCV does.

    Returns [B, C, H, W].

    >>> x = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> one_right = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]])
    >>> how = {"bilinear": torch.tensor([True]), "border": torch.tensor([0]), "fill": torch.tensor([9.0])}
    >>> affine_warp(x, one_right, **how).flatten().tolist()
    [9.0, 0.0, 1.0, 2.0]
    """
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=x.device, dtype=x.dtype).expand(height, width)
    at = torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)
    at = source.to(x.dtype) @ at
    # On a whole coordinate the bilinear weights are 1 and 0: the nearest pixel needs no path of its own.
    at = torch.where(bilinear[:, None, None], at, (at + 0.5).floor())
    low = at.floor()
    weight_x, weight_y = (at - low).unbind(1)
    left, top = low.long().unbind(1)

    flat = x.flatten(2)
    fill = fill.to(x.dtype)[:, None, None]
    constant = (border == 0)[:, None]
    out = torch.zeros_like(flat)
    ys = [(fold(at_y, height, border[:, None]), (at_y < 0) | (at_y >= height)) for at_y in (top, top + 1)]
    xs = [(fold(at_x, width, border[:, None]), (at_x < 0) | (at_x >= width)) for at_x in (left, left + 1)]
    for (row, above), weight_row in zip(ys, (1 - weight_y, weight_y), strict=True):
        for (column, beside), weight_column in zip(xs, (1 - weight_x, weight_x), strict=True):
            value = flat.gather(2, (row * width + column)[:, None].expand_as(flat))
            value = torch.where(((above | beside) & constant)[:, None], fill, value)
            out = out + (weight_row * weight_column)[:, None] * value
    return out.view_as(x)


def imgaug_matrix(scale: Tensor, shift: Tensor, rotate: Tensor, shear: Tensor, *, height: int, width: int) -> Tensor:
    """imgaug 0.4.0's affine, inverted: from output to input pixel coordinates.

    About the centre ``((W-1)/2, (H-1)/2)``, in this order: y-shear, then skimage's (before 0.19) AffineTransform,
    that is ``x' = sx cos(r) x - sy sin(r+h) y + tx`` and ``y' = sx sin(r) x + sy cos(r+h) y + ty``. One shear
    angle ``h`` serves both axes: with a pair as range imgaug draws it once.

    Args:
        scale: [B, 2], (x, y).
        shift: [B, 2], (x, y) in pixels.
        rotate: [B], radians.
        shear: [B], radians.

    Returns [B, 2, 3].

    >>> one = torch.ones(1)
    >>> imgaug_matrix(torch.ones(1, 2), torch.ones(1, 2), 0 * one, 0 * one, height=5, width=5)[0].tolist()
    [[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]
    """
    zero, one = torch.zeros_like(shear), torch.ones_like(shear)
    shear_y = torch.stack([shear.cos(), zero, shear.sin(), one], dim=1).view(-1, 2, 2)
    turned = rotate + shear
    rest = torch.stack([rotate.cos(), -turned.sin(), rotate.sin(), turned.cos()], dim=1).view(-1, 2, 2)
    forward = (rest * scale[:, None]) @ shear_y
    linear = torch.linalg.inv(forward)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=scale.device, dtype=scale.dtype)
    offset = centre[:, None] - linear @ (centre + shift)[:, :, None]
    return torch.cat([linear, offset], dim=2)
