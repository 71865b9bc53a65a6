"""AugMix: an image mixed with short chains of simple operations on itself.

Source: Hendrycks et al., ICLR 2020 (arXiv 1912.02781), algorithm 1, and the authors' code (google-research/augmix). Its
nine operations are chosen not to overlap with ImageNet-C's corruptions. Here every image of a batch draws its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import vmmr.torchvision_ops  # noqa: F401  (before torchvision)

from torchvision.transforms.v2 import functional as vision  # isort: skip

__all__ = ["AUGMIX_OPS", "augmix"]

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def _bytes(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    changed: Tensor = change((x * 255).round().to(torch.uint8))
    return changed.to(x.dtype) / 255


def autocontrast(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Stretch every channel to the full range."""
    stretched: Tensor = vision.autocontrast(x)
    return stretched


def equalize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Flatten the histogram of every channel."""
    return _bytes(x, vision.equalize)


def posterize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keep 4 - floor(0.4 level) bits."""
    step = 2.0 ** (4 + (0.4 * level).floor())
    return ((x * 255).round() / _each(step)).floor() * _each(step) / 255


def solarize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Invert what is at or above 256 - floor(25.6 level), in bytes."""
    threshold = (256 - (25.6 * level).floor()) / 255
    return torch.where(x >= _each(threshold), 1 - x, x)


def rotate(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Turn by 3 level degrees about the centre."""
    angle = torch.deg2rad((3 * level).floor()) * sign
    return _warp(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def shear_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Shift every row by 0.03 level times its number."""
    one = torch.ones_like(level)
    return _warp(x, one, 0.03 * level * sign, 0 * one, one, centred=False)


def shear_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Shift every column by 0.03 level times its number."""
    one = torch.ones_like(level)
    return _warp(x, one, 0 * one, 0.03 * level * sign, one, centred=False)


def translate_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Move sideways by a thirtieth of the width times level."""
    one = torch.ones_like(level)
    moved = (level * x.shape[3] / 30).floor() * sign
    return _warp(x, one, 0 * one, 0 * one, one, right=moved, centred=False)


def translate_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Move up or down by a thirtieth of the height times level."""
    one = torch.ones_like(level)
    moved = (level * x.shape[2] / 30).floor() * sign
    return _warp(x, one, 0 * one, 0 * one, one, down=moved, centred=False)


AUGMIX_OPS: dict[str, Operation] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "posterize": posterize,
    "rotate": rotate,
    "solarize": solarize,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
"""(images [B, 3, H, W] in [0, 1], level [B] in [0.1, 10], sign [B] of -1 or 1) -> images, with the authors' units."""


def _each(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]


def _warp(
    x: Tensor,
    xx: Tensor,
    xy: Tensor,
    yx: Tensor,
    yy: Tensor,
    *,
    right: Tensor | None = None,
    down: Tensor | None = None,
    centred: bool = True,
) -> Tensor:
    zero = torch.zeros_like(xx)
    linear = torch.stack([xx, xy, yx, yy], dim=1).view(-1, 2, 2)
    shift = torch.stack([zero if right is None else right, zero if down is None else down], dim=1)
    middle = torch.tensor([(x.shape[3] - 1) / 2, (x.shape[2] - 1) / 2], device=x.device, dtype=x.dtype)
    if not centred:
        shift = shift + linear @ middle - middle
    # From pixels to the coordinates of grid_sample, which run from -1 to 1 between the outer pixels' centres.
    theta = torch.cat([linear * middle / middle[:, None], (shift / middle)[:, :, None]], dim=2)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=True)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def augmix(
    x: Tensor,
    *,
    severity: float = 3.0,
    width: int = 3,
    depth: int = 3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(1 - m) x + m sum_i w_i chain_i(x), with w ~ Dirichlet(1) over `width` chains and m ~ U(0, 1).

    A chain is one to `depth` operations of `AUGMIX_OPS`, each at a level drawn from U(0.1, severity). x: [B, 3, H, W]
    in [0, 1], unchanged; returns the same shape and range.

    >>> x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> mixed = augmix(x, generator=torch.Generator().manual_seed(1))
    >>> mixed.shape == x.shape, bool((mixed != x).any())
    (True, True)
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, device=x.device, dtype=x.dtype, generator=generator)

    chains = len(x) * width
    chained = x.repeat_interleave(width, dim=0)
    length = 1 + (depth * draw(chains)).long()
    for turn in range(depth):
        chosen = (len(AUGMIX_OPS) * draw(chains)).long()
        level = 0.1 + (severity - 0.1) * draw(chains)
        sign = 1 - 2 * (draw(chains) < 0.5).to(x.dtype)
        for number, operation in enumerate(AUGMIX_OPS.values()):
            rows = ((chosen == number) & (turn < length)).nonzero().flatten()
            if len(rows):
                chained[rows] = operation(chained[rows], level[rows], sign[rows])
    weight = -draw(len(x), width).clamp_min(1e-12).log()  # exponential draws over their sum: Dirichlet(1)
    weight = weight / weight.sum(1, keepdim=True)
    mixture = (chained.view(len(x), width, *x.shape[1:]) * weight[:, :, None, None, None]).sum(1)
    return torch.lerp(x, mixture, _each(draw(len(x)))).clamp(0, 1)
