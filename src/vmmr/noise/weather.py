"""Corruptions of weather, and of what it leaves on the lens."""

from __future__ import annotations

import math

import torch
from kornia.color import rgb_to_grayscale
from kornia.filters import filter2d
from torch import Tensor
from torch.nn import functional as F

from vmmr.noise.axes import along_axes, between, smoothing
from vmmr.noise.blur import line
from vmmr.noise.corruption import Draws, corruption, level, normal, scale, uniform

__all__ = ["fog", "frost", "plasma", "rain", "snow", "spatter"]


@corruption
def rain(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Bright streaks within 20 degrees of the vertical, and the greyer light of a wet day; ours.

    Drops start on .3, .6, 1, 1.4, 2 % of the pixels and fall 12 to 28 px at 224 px; no counterpart in ImageNet-C.
    """
    density = level(severity, 0.0, 0.003, 0.006, 0.010, 0.014, 0.020)
    length = level(severity, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0).view(-1, 1, 1) * scale(x)
    tilt = math.radians(20) * (2 * uniform(x, 1, 1, generator=generator) - 1)
    drops = uniform(x, 1, *x.shape[-2:], generator=generator)
    brightness = (1 - drops / density.clamp(min=1e-6)).clamp(min=0)
    kernel = line(x, length, math.pi / 2 + tilt)
    streaks = filter2d(brightness, kernel, border_type="constant").clamp(max=1)
    veil = level(severity, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
    dull = x + veil * (0.55 - x)
    return dull + 0.7 * streaks * (0.95 - dull)


@corruption
def fog(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Drifting fog: ``(x + c plasma) m / (m + c)`` with c = 1.5, 2, 2.5, 2.5, 3 and m the image's maximum (ImageNet-C).

    The plasma is rougher at higher levels: its wobble decays by 2, 2, 1.7, 1.5, 1.4 from octave to octave.
    """
    thickness = level(severity, 0.0, 1.5, 2.0, 2.5, 2.5, 3.0)
    decay = level(severity, 2.0, 2.0, 2.0, 1.7, 1.5, 1.4)[..., 0]
    drift = plasma(uniform(x, 256, 256, generator=generator), decay)[:, None, :224, :224]
    drift = F.interpolate(drift, size=x.shape[-2:], mode="bilinear", antialias=True)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * drift) * (brightest / (brightest + thickness).clamp(min=1e-6))


def plasma(draw: Tensor, decay: Tensor) -> Tensor:
    """Diamond-square heights [B, n, n] in [0, 1] that wrap around, from U(0, 1) [B, n, n]; decay is [B or 1, 1, 1].

    From a coarse grid to a fine one every new point is the mean of its four neighbours plus U(-1, 1) times an
    amplitude, that starts at 100^2 and falls with the square of ``decay``, as in ImageNet-C.
    """
    wobble = 2 * draw - 1
    heights = torch.zeros_like(draw)
    step, amplitude = draw.shape[-1], 100.0**2 / torch.ones_like(decay)
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        squares = (squares + squares.roll(-1, 2)) / 4 + amplitude * wobble[:, half::step, half::step]
        heights[:, half::step, half::step] = squares
        beside = corners + corners.roll(-1, 2) + squares + squares.roll(1, 1)
        heights[:, ::step, half::step] = beside / 4 + amplitude * wobble[:, ::step, half::step]
        below = corners + corners.roll(-1, 1) + squares + squares.roll(1, 2)
        heights[:, half::step, ::step] = below / 4 + amplitude * wobble[:, half::step, ::step]
        step, amplitude = half, amplitude / decay**2
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return (heights - low) / (high - low)


@corruption
def snow(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Driven flakes, upright and turned by half a circle, over a whitened picture (ImageNet-C).

    Flakes are what exceeds .5, .5, .9, .85, .85 in normal noise of mean .1, .2, .55, .55, .55 and sigma .3, magnified
    3, 2, 4, 4.5, 2.5 times and smeared within 45 degrees of the vertical over 8.6, 8.6, 16.7, 16.7, 21.5 px, a uniform
    path of the spread of the published Gaussian one. Below level 1, that level is mixed with the image.
    """
    mean, floor = level(severity, 0.1, 0.1, 0.2, 0.55, 0.55, 0.55), level(severity, 0.5, 0.5, 0.5, 0.9, 0.85, 0.85)
    zoom = level(severity, 3.0, 3.0, 2.0, 4.0, 4.5, 2.5).view(-1, 1) * scale(x)
    length = level(severity, 8.6, 8.6, 8.6, 16.7, 16.7, 21.5).view(-1, 1, 1) * scale(x)
    keep = level(severity, 0.8, 0.8, 0.7, 0.7, 0.65, 0.55)

    sides = x.shape[-2:]
    # The finest grid serves all levels: what is drawn does not depend on the severity.
    most = [math.ceil(side / (2 * scale(x))) for side in sides]
    noise = mean + 0.3 * normal(x, 1, *most, generator=generator)
    flakes = along_axes(noise, *(_magnified(side, cells, zoom) for side, cells in zip(sides, most, strict=True)))
    flakes = torch.where(flakes < floor, 0, flakes).clamp(0, 1)
    angle = math.pi / 4 + math.pi / 2 * uniform(x, 1, 1, generator=generator)
    flakes = filter2d(flakes, line(x, length, angle), normalized=True)

    grey = rgb_to_grayscale(x)
    white = keep * x + (1 - keep) * torch.maximum(x, 1.5 * grey + 0.5)
    snowy = (white + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)
    return x.lerp(snowy, severity.clamp(max=1)[:, None, None, None])


def _magnified(side: int, most: int, zoom: Tensor) -> Tensor:
    """[B, side, most]: the first ceil(side / zoom) of ``most`` cells, stretched from edge to edge."""
    cells = (side / zoom - 1e-3).ceil().clamp(min=2, max=most)
    pixel = torch.arange(side, device=zoom.device, dtype=zoom.dtype)
    return between(pixel * (cells - 1) / (side - 1), most)


@corruption
def frost(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Ice on the lens: ``a x + b ice`` with a = 1, .8, .7, .65, .6 and b = .4, .6, .7, .7, .75 (ImageNet-C).

    ImageNet-C cuts its ice out of five photographs; ours is grown: needles, the ridges of noise that is stretched
    along four directions, each where a patch of its own lets it, over a haze, as bright as those photographs.
    """
    image, ice = level(severity, 1.0, 1.0, 0.8, 0.7, 0.65, 0.6), level(severity, 0.0, 0.4, 0.6, 0.7, 0.7, 0.75)
    return image * x + ice * _ice(x, generator)


def _ice(x: Tensor, generator: Draws) -> Tensor:
    """A texture [B, 3, H, W] of mean .57: pale blue needles."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - height / 2) / min(height, width)
    columns = (torch.arange(width, device=x.device, dtype=x.dtype) - width / 2) / min(height, width)
    turn = uniform(x, 4, 1, 1, generator=generator) * math.pi
    along = columns * turn.cos() + rows * turn.sin()
    across = rows * turn.cos() - columns * turn.sin()
    # Half a diagonal is .71: the noise, 64 cells across and 12 along, covers the whole picture at any angle.
    grain = 2 * uniform(x, 4, 64, 12, generator=generator) - 1
    at = torch.stack([along, across], 4).flatten(0, 1) / 0.75
    fibres = F.grid_sample(grain.flatten(0, 1)[:, None], at, align_corners=True, padding_mode="border")
    needles = (1 - 2.5 * fibres.view(len(x), 4, height, width).abs()).clamp(min=0)
    patches = F.interpolate(uniform(x, 4, 7, 7, generator=generator), size=(height, width), mode="bicubic")
    needles = (needles * (2 * patches - 0.4).clamp(0, 1)).amax(1, keepdim=True)
    haze = F.interpolate(uniform(x, 1, 5, 5, generator=generator), size=(height, width), mode="bicubic")
    tint = torch.tensor([0.94, 1.0, 1.06], device=x.device, dtype=x.dtype)[:, None, None]
    return (tint * (0.22 + 0.3 * haze + 0.4 * needles)).clamp(0, 1)


@corruption
def spatter(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """Drops on the lens: water at levels 1 to 3, mud at 4 and 5, never both (ImageNet-C).

    Drops lie where smoothed normal noise (sigma 4, 3, 2, 1, 1 px at 224 px) exceeds a threshold. ImageNet-C shades
    water through a chain of OpenCV filters; ours adds the light of a slope to that of the thickness. Below level
    1, that level is mixed with the image; water turns to mud at 3.5.
    """
    sigma = level(severity, 4.0, 4.0, 3.0, 2.0, 1.0, 1.0)
    spread = level(severity, 0.3, 0.3, 0.3, 0.3, 0.3, 0.4) / (2 * math.sqrt(math.pi) * sigma)
    excess = level(severity, 0.04, 0.04, 0.03, 0.03, 0.0, -0.02) / spread
    shine = level(severity, 0.42, 0.42, 0.58, 0.63, 0.63, 0.63)
    sigma = sigma * scale(x)
    sides = x.shape[-2:]
    # What smoothing leaves of white noise of sigma 1 has a sigma of 1 / (2 sqrt(pi) sigma).
    liquid = normal(x, 1, *sides, generator=generator) * (2 * math.sqrt(math.pi) * sigma)
    height = along_axes(liquid, *(smoothing(side, sigma.flatten()) for side in sides)) - excess
    water = severity[:, None, None, None] < 3.5
    splashed = torch.where(water, _water(x, height, sigma, shine), _mud(x, height))
    return x.lerp(splashed.clamp(0, 1), severity.clamp(max=1)[:, None, None, None])


def _water(x: Tensor, height: Tensor, sigma: Tensor, shine: Tensor) -> Tensor:
    """x plus light of a pale turquoise, on the thick parts of drops and above all on their slopes to one side."""
    wet = height.clamp(min=0)
    slope = (wet - F.pad(wet, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]).clamp(min=0) * sigma
    light = (0.22 * wet + 0.3 * slope**2).clamp(max=1) * shine
    turquoise = torch.tensor([175.0, 238.0, 238.0], device=x.device, dtype=x.dtype)[:, None, None] / 255
    return x + light * turquoise


def _mud(x: Tensor, height: Tensor) -> Tensor:
    """x under opaque brown where most of the neighbourhood, a Gaussian of 1.5 px at 224 px, is wet."""
    sigma = torch.full((1,), 1.5 * scale(x), device=x.device, dtype=x.dtype)
    wet = along_axes((height > 0).to(x.dtype), *(smoothing(side, sigma) for side in x.shape[-2:]))
    cover = torch.where(wet < 0.8, 0, wet)
    brown = torch.tensor([63.0, 42.0, 20.0], device=x.device, dtype=x.dtype)[:, None, None] / 255
    return x * (1 - cover) + cover * brown
