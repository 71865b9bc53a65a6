"""What all corruptions share: their form, severity as interpolated constants, and draws for a batch or for each image.

Images are in [0, 1], severity in [0, 5], 0 is the identity. Lengths in pixels are meant for images of 224 px and
scale with the shorter side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from vmmr.errors import ConfigError, DataError

__all__ = ["MAX_SEVERITY", "Draws", "Op", "corruption", "level", "normal", "offsets", "poisson", "scale", "uniform"]

MAX_SEVERITY = 5.0
"""The strongest level."""

Draws: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where random numbers come from: one generator for the batch, which is fast on any device, or one for each image, so
that what an image meets does not depend on its batch. The numbers of the latter are drawn where its generators are."""


class Op(Protocol):
    """A corruption: [B, 3, H, W] in [0, 1] and a severity for all or one per image, to the same shape and range."""

    def __call__(self, x: Tensor, severity: float | Tensor, *, generator: Draws = None) -> Tensor:
        """Corrupt; raises DataError for anything but float images in [0, 1], ConfigError for a bad severity."""
        ...


def corruption(body: Callable[[Tensor, Tensor, Draws], Tensor]) -> Op:
    """What all share: the checks, the exact identity at 0, the clip.

    The body is given its severities as [B], or as [1] where all images have the same.
    """

    @wraps(body)
    def op(x: Tensor, severity: float | Tensor, *, generator: Draws = None) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():
            raise DataError("no batch of images", got=f"{x.dtype} {list(x.shape)}", do="pass floats [B, 3, H, W]")
        if isinstance(generator, Sequence) and len(generator) != len(x):
            raise ConfigError(
                "generators fit no batch", got=len(generator), do=f"pass one, or one for each of {len(x)}"
            )
        if x.numel() == 0:
            return x
        low, high = (bound.item() for bound in x.aminmax())
        if not 0 <= low <= high <= 1:
            raise DataError("image values outside of [0, 1]", got=f"{low:.3g} .. {high:.3g}", do="rescale the images")
        levels = torch.as_tensor(severity, dtype=x.dtype, device=x.device)
        if levels.ndim > 1 or (levels.ndim == 1 and len(levels) != len(x)):
            raise ConfigError("severity fits no batch", got=list(levels.shape), do=f"pass a number or [{len(x)}]")
        if not ((levels >= 0) & (levels <= MAX_SEVERITY)).all():
            raise ConfigError("severity outside of [0, 5]", got=severity, do="pass numbers from 0 to 5")
        levels = levels.reshape(-1)
        if (levels == levels[0]).all():
            levels = levels[:1]
        noisy = body(x, levels, generator).clamp_(0, 1)
        return torch.where(levels[:, None, None, None] > 0, noisy, x)

    return op


def level(severity: Tensor, *constants: float) -> Tensor:
    """The constants of levels 0 to 5, interpolated at each severity, as [B, 1, 1, 1].

    >>> level(torch.tensor([0.5, 5.0]), 0, 3, 4, 6, 8, 10).flatten().tolist()
    [1.5, 10.0]
    """
    table = torch.tensor(constants, dtype=severity.dtype, device=severity.device)
    low = severity.long().clamp(max=len(constants) - 2)
    return torch.lerp(table[low], table[low + 1], severity - low)[:, None, None, None]


def uniform(x: Tensor, *shape: int, generator: Draws) -> Tensor:
    """U(0, 1) of [B, *shape] for a batch of B images, in its dtype and on its device."""
    if isinstance(generator, Sequence):
        drawn = torch.empty(len(x), *shape, dtype=x.dtype, device=generator[0].device)
        for one, own in zip(drawn, generator, strict=True):
            one.uniform_(generator=own)
        return drawn.to(x.device)
    return torch.rand((len(x), *shape), device=x.device, dtype=x.dtype, generator=generator)


def normal(x: Tensor, *shape: int, generator: Draws) -> Tensor:
    """N(0, 1) of [B, *shape] for a batch of B images, in its dtype and on its device."""
    if isinstance(generator, Sequence):
        drawn = torch.empty(len(x), *shape, dtype=x.dtype, device=generator[0].device)
        for one, own in zip(drawn, generator, strict=True):
            one.normal_(generator=own)
        return drawn.to(x.device)
    return torch.randn((len(x), *shape), device=x.device, dtype=x.dtype, generator=generator)


def poisson(rate: Tensor, *, generator: Draws) -> Tensor:
    """Poisson counts of these rates, [B, ...]."""
    if isinstance(generator, Sequence):
        rates = rate.to(generator[0].device)
        counts = [torch.poisson(one, generator=own) for one, own in zip(rates, generator, strict=True)]
        return torch.stack(counts).to(rate.device)
    return torch.poisson(rate, generator=generator)


def scale(x: Tensor) -> float:
    """What a length that is meant for 224 px is multiplied with."""
    return min(x.shape[-2:]) / 224


def offsets(x: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row offsets of a square kernel that reaches ``reach`` pixels, kept within the image."""
    radius = min(math.ceil(reach.max().item()), min(x.shape[-2:]) - 1)
    line = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    return line[None, :], line[:, None]
