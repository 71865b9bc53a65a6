"""Each corruption as a function of severity: images in [0, 1], severity in [0, 5], 0 is the identity.

Levels 1 to 5 follow ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261) where it has the corruption;
between whole levels the constants are interpolated. Lengths in pixels (defocus, motion blur, rain) are meant
for images of 224 px and scale with the shorter side; noise is per pixel at every size, and JPEG keeps its blocks.
Everything runs batched on the tensor's device and repeats itself given the same `torch.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Protocol

import torch
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import filter2d
from torch import Tensor
from torch.nn import functional as F

from vmmr.errors import ConfigError, DataError

__all__ = [
    "HELD_OUT_OPS",
    "MAX_SEVERITY",
    "OPS",
    "TRAIN_OPS",
    "Op",
    "defocus",
    "downscale",
    "fog",
    "gaussian",
    "impulse",
    "jpeg",
    "low_light",
    "motion_blur",
    "rain",
    "shot",
    "speckle",
]

MAX_SEVERITY = 5.0
"""The strongest level."""


class Op(Protocol):
    """A corruption: [B, 3, H, W] in [0, 1] and a severity for all or one per image, to the same shape and range."""

    def __call__(self, x: Tensor, severity: float | Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Corrupt; raises DataError for anything but float images in [0, 1], ConfigError for a bad severity."""
        ...


def _op(body: Callable[[Tensor, Tensor, torch.Generator | None], Tensor]) -> Op:
    """What all share: the checks, one severity per image, the exact identity at 0, the clip."""

    @wraps(body)
    def op(x: Tensor, severity: float | Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():
            raise DataError("no batch of images", got=f"{x.dtype} {list(x.shape)}", do="pass floats [B, 3, H, W]")
        if x.numel() == 0:
            return x
        low, high = (bound.item() for bound in x.aminmax())
        if not 0 <= low <= high <= 1:
            raise DataError("image values outside of [0, 1]", got=f"{low:.3g} .. {high:.3g}", do="rescale the images")
        level = torch.as_tensor(severity, dtype=x.dtype, device=x.device)
        if level.ndim > 1 or (level.ndim == 1 and len(level) != len(x)):
            raise ConfigError("severity fits no batch", got=list(level.shape), do=f"pass a number or [{len(x)}]")
        if not ((level >= 0) & (level <= MAX_SEVERITY)).all():
            raise ConfigError("severity outside of [0, 5]", got=severity, do="pass numbers from 0 to 5")
        level = level.expand(len(x))
        noisy = body(x, level, generator).clamp_(0, 1)
        return torch.where(level[:, None, None, None] > 0, noisy, x)

    return op


def _level(severity: Tensor, *constants: float) -> Tensor:
    """The constants of levels 0 to 5, interpolated at each severity, as [B, 1, 1, 1]."""
    table = torch.tensor(constants, dtype=severity.dtype, device=severity.device)
    low = severity.long().clamp(max=len(constants) - 2)
    return torch.lerp(table[low], table[low + 1], severity - low)[:, None, None, None]


def _rand(x: Tensor, *shape: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, device=x.device, dtype=x.dtype, generator=generator)


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)


def _scale(x: Tensor) -> float:
    return min(x.shape[-2:]) / 224


def _offsets(x: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row offsets of a square kernel that reaches ``reach`` pixels, kept within the image."""
    radius = min(math.ceil(reach.max().item()), min(x.shape[-2:]) - 1)
    line = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    return line[None, :], line[:, None]


@_op
def gaussian(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal noise, independent in every pixel and channel; sigma .08, .12, .18, .26, .38 (ImageNet-C).

    >>> x = torch.full((1, 3, 64, 64), 0.5)
    >>> round(gaussian(x, 1.0, generator=torch.Generator().manual_seed(0)).std().item(), 3)
    0.08
    """
    return x + _level(severity, 0.0, 0.08, 0.12, 0.18, 0.26, 0.38) * _randn_like(x, generator)


@_op
def shot(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Photon counting: Poisson counts with 60, 25, 12, 5, 3 photons at white (ImageNet-C).

    Keeps the mean; the variance is intensity / photons. Interpolated in 1 / photons.
    """
    gain = _level(severity, 0.0, 1 / 60, 1 / 25, 1 / 12, 1 / 5, 1 / 3).clamp(min=1e-6)
    return torch.poisson(x / gain, generator=generator) * gain


@_op
def speckle(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise in proportion to the intensity; relative sigma .15, .2, .35, .45, .6 (ImageNet-C)."""
    return x + x * _level(severity, 0.0, 0.15, 0.2, 0.35, 0.45, 0.6) * _randn_like(x, generator)


@_op
def impulse(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Salt and pepper in equal parts on 3, 6, 9, 17, 27 % of the values (ImageNet-C).

    >>> x = torch.full((1, 3, 64, 64), 0.5)
    >>> round((impulse(x, 5.0, generator=torch.Generator().manual_seed(0)) != 0.5).float().mean().item(), 2)
    0.27
    """
    amount = _level(severity, 0.0, 0.03, 0.06, 0.09, 0.17, 0.27)
    draw = _rand(x, *x.shape, generator=generator)
    return torch.where(draw < amount, (draw < amount / 2).to(x.dtype), x)


@_op
def defocus(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """A lens out of focus: a disc of radius 3, 4, 6, 8, 10 px at 224 px (ImageNet-C), with a soft rim."""
    radius = _level(severity, 0.0, 3.0, 4.0, 6.0, 8.0, 10.0).view(-1, 1, 1) * _scale(x)
    columns, rows = _offsets(x, radius)
    kernel = (radius + 0.5 - torch.hypot(columns, rows)).clamp(0, 1)
    return filter2d(x, kernel, normalized=True)


@_op
def motion_blur(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """A straight path of 6, 10, 13, 16, 20 px at 224 px during exposure, in a direction drawn per image.

    ImageNet-C smears to one side with Gaussian weights; the lengths here are those of a uniform path of the same
    spread. kornia's motion kernel has one whole length for the batch, this one a length for each image.
    """
    angle = _rand(x, len(x), 1, 1, generator=generator) * math.pi
    length = _level(severity, 0.0, 6.0, 10.0, 13.0, 16.0, 20.0).view(-1, 1, 1) * _scale(x)
    return filter2d(x, _line(x, length, angle), normalized=True)


def _line(x: Tensor, length: Tensor, angle: Tensor) -> Tensor:
    """Antialiased line segments through the centre as kernels [B, k, k]; length and angle [B, 1, 1]."""
    columns, rows = _offsets(x, length / 2 + 0.5)
    along = (columns * angle.cos() + rows * angle.sin()).abs()
    across = (rows * angle.cos() - columns * angle.sin()).abs()
    return (length / 2 + 0.5 - along).clamp(0, 1) * (1 - across).clamp(min=0)


@_op
def low_light(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Too little light: exposure of 50, 30, 18, 10, 6 % in linear light (gamma 2.2), with the sensor's noise.

    Noise is normal with variance ``shot * light + read^2``, the usual model of a raw sensor (Foi et al. 2008,
    doi 10.1109/TIP.2008.2001399); less light comes with more gain, so both grow with severity.
    """
    light = x**2.2 * _level(severity, 1.0, 0.5, 0.3, 0.18, 0.1, 0.06)
    gain = _level(severity, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    sigma = (light * 0.002 * gain + (0.006 * gain) ** 2).sqrt()
    light = light + sigma * _randn_like(x, generator)
    return light.clamp(min=0) ** (1 / 2.2)


@_op
def jpeg(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """JPEG at quality 25, 18, 15, 10, 7 (ImageNet-C) with halved colour resolution; below level 1 from 100 down."""
    quality = _level(severity, 100.0, 25.0, 18.0, 15.0, 10.0, 7.0).flatten()
    return jpeg_codec_differentiable(x, quality)


@_op
def downscale(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """A vehicle far away: area-averaged to 60, 45, 33, 25, 18 % of the size, bilinear back.

    ImageNet-C's pixelate ends at 25 % and shows the cells; cameras above a road see less and interpolate. Below
    level 1 the 60 % are mixed with the image, as a size just below the full one would blur in beats. Resizing is
    linear along each axis, so that a matrix per image gives each its own size.
    """
    factor = _level(severity, 0.6, 0.6, 0.45, 0.33, 0.25, 0.18).flatten()
    mix = severity.clamp(max=1)
    rows, columns = (_there_and_back(side, factor, mix) for side in x.shape[-2:])
    return rows[:, None] @ x @ columns[:, None].mT


def _there_and_back(side: int, factor: Tensor, mix: Tensor) -> Tensor:
    """[B, side, side]: averages over round(side * factor) cells, interpolated back at the pixel centres."""
    cells = (side * factor).round().clamp(min=1)[:, None, None]
    pixel = torch.arange(side, device=factor.device, dtype=factor.dtype)
    low, high = pixel[:, None] * side / cells, (pixel[:, None] + 1) * side / cells
    average = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0) * cells / side
    at = ((pixel[:, None] + 0.5) * cells / side - 0.5).clamp(min=0).minimum(cells - 1)
    resized = (1 - (at - pixel).abs()).clamp(min=0) @ average
    return torch.eye(side, device=factor.device, dtype=factor.dtype).lerp(resized, mix[:, None, None])


@_op
def rain(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Bright streaks within 20 degrees of the vertical, and the greyer light of a wet day.

    Drops start on .3, .6, 1, 1.4, 2 % of the pixels and fall 12 to 28 px at 224 px; no counterpart in ImageNet-C.
    """
    density = _level(severity, 0.0, 0.003, 0.006, 0.010, 0.014, 0.020)
    length = _level(severity, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0).view(-1, 1, 1) * _scale(x)
    tilt = math.radians(20) * (2 * _rand(x, len(x), 1, 1, generator=generator) - 1)
    drops = _rand(x, len(x), 1, *x.shape[-2:], generator=generator)
    brightness = (1 - drops / density.clamp(min=1e-6)).clamp(min=0)
    kernel = _line(x, length, math.pi / 2 + tilt)
    streaks = filter2d(brightness, kernel, border_type="constant").clamp(max=1)
    veil = _level(severity, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
    dull = x + veil * (0.55 - x)
    return dull + 0.7 * streaks * (0.95 - dull)


@_op
def fog(x: Tensor, severity: Tensor, generator: torch.Generator | None) -> Tensor:
    """Airlight .9 over 35, 45, 55, 65, 75 % of the image's light on average, in drifting patches.

    Koschmieder's law ``x t + airlight (1 - t)`` with a transmission of five octaves of smooth noise, in the place
    of ImageNet-C's plasma.
    """
    patches = torch.zeros_like(x[:, :1])
    for octave in range(5):
        coarse = _rand(x, len(x), 1, 2 << octave, 2 << octave, generator=generator)
        patches += F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=True) / 2**octave
    low, high = patches.amin((2, 3), keepdim=True), patches.amax((2, 3), keepdim=True)
    patches = (patches - low) / (high - low).clamp(min=1e-6)
    opacity = _level(severity, 0.0, 0.35, 0.45, 0.55, 0.65, 0.75) * (0.75 + 0.5 * patches)
    return x + opacity * (0.9 - x)


OPS: dict[str, Op] = {
    "defocus": defocus,
    "downscale": downscale,
    "fog": fog,
    "gaussian": gaussian,
    "impulse": impulse,
    "jpeg": jpeg,
    "low_light": low_light,
    "motion_blur": motion_blur,
    "rain": rain,
    "shot": shot,
    "speckle": speckle,
}

TRAIN_OPS = ("low_light", "defocus", "motion_blur", "shot", "gaussian", "impulse", "downscale", "jpeg")
"""What training may draw from, in the order in which a camera adds them: light, optics, sensor, transmission."""

HELD_OUT_OPS = ("fog", "rain", "speckle")
"""What training never sees, so that a benchmark can ask for the unknown."""
