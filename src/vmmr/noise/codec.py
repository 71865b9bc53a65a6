"""Corruptions of compression. Blocks are 8 px at every size."""

from __future__ import annotations

import math

import torch
from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb
from kornia.enhance import jpeg_codec_differentiable
from torch import Tensor
from torch.nn import functional as F

from vmmr.noise.axes import along_axes, between
from vmmr.noise.corruption import Draws, corruption, level, scale, uniform

__all__ = ["coded", "h264", "jpeg"]


@corruption
def jpeg(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """JPEG at quality 25, 18, 15, 10, 7 (ImageNet-C) with halved colour resolution; below level 1 from 100 down."""
    quality = level(severity, 100.0, 25.0, 18.0, 15.0, 10.0, 7.0).flatten()
    return jpeg_codec_differentiable(x, quality)


@corruption
def h264(x: Tensor, severity: Tensor, generator: Draws) -> Tensor:
    """A frame of a starved video, like H.264: predicted from the frame before, at QP 32, 36, 40, 44, 48; ours.

    The frame before is the image moved by up to 4 px at 224 px an axis, itself coded. Of what is missing the 8 x 8
    cosine coefficients are kept in steps of .625 * 2^(QP / 6) grey levels, with H.264's rounding towards zero, and
    nothing at all of 16 x 16 macroblocks that miss little: there the old frame shows through. Block edges are
    smoothed where they step by less than the quantiser does. Colour has half the resolution and H.264's milder QP.
    Not H.264: one motion for all, one transform, no entropy coder, so that the rate is not known.
    """
    luma_step = _step(level(severity, 0.0, 32.0, 36.0, 40.0, 44.0, 48.0))
    colour_step = _step(level(severity, 0.0, 31.0, 34.0, 36.0, 37.0, 39.0))
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    motion = 4 * scale(x) * (2 * uniform(x, 2, generator=generator) - 1)
    rows, columns = (_moved(side, by) for side, by in zip(padded.shape[-2:], motion.unbind(1), strict=True))
    luma, colour = _planes(padded)
    old_luma, old_colour = _planes(along_axes(padded, rows, columns))
    old_luma = coded(old_luma, torch.full_like(luma, 0.5), luma_step, 1 / 3)
    old_colour = coded(old_colour, torch.full_like(colour, 0.5), colour_step, 1 / 3)
    missed = F.avg_pool2d((luma - old_luma).abs(), 16) > 0.2 * luma_step
    luma = torch.where(_spread(missed, 16), coded(luma, old_luma, luma_step, 1 / 6), old_luma)
    colour = torch.where(_spread(missed, 8), coded(colour, old_colour, colour_step, 1 / 6), old_colour)
    luma = _deblocked(_deblocked(luma, luma_step).mT, luma_step).mT
    colour = _deblocked(_deblocked(colour, colour_step).mT, colour_step).mT
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
    return ycbcr_to_rgb(torch.cat([luma, colour], 1))[..., :height, :width]


def _step(qp: Tensor) -> Tensor:
    """H.264's quantiser step for images in [0, 1]: it doubles every six QP."""
    return 0.625 * 2 ** (qp / 6) / 255


def _spread(blocks: Tensor, size: int) -> Tensor:
    return blocks.repeat_interleave(size, 2).repeat_interleave(size, 3)


def _moved(side: int, by: Tensor) -> Tensor:
    at = torch.arange(side, device=by.device, dtype=by.dtype) + by[:, None]
    return between(at.clamp(0, side - 1), side)


def _planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Luma [B, 1, H, W] and colour [B, 2, H / 2, W / 2]."""
    ycbcr = rgb_to_ycbcr(x)
    return ycbcr[:, :1], F.avg_pool2d(ycbcr[:, 1:], 2)


def coded(plane: Tensor, reference: Tensor, step: Tensor, rounding: float) -> Tensor:
    """The reference plus what quantisation leaves of the rest, in blocks of 8 x 8.

    Args:
        plane: [B, C, H, W], H and W multiples of 8.
        reference: of the same shape, what is known already.
        step: [B or 1, 1, 1, 1], between the values that a coefficient of the orthonormal cosine transform may have.
        rounding: what is added before the fraction is dropped: a half is the nearest step, less is a dead zone.
    """
    place = torch.arange(8, device=plane.device, dtype=plane.dtype)
    waves = (math.pi / 8 * (place + 0.5) * place[:, None]).cos() / 2
    waves[0] /= math.sqrt(2)
    basis = torch.einsum("ur,vc->uvrc", waves, waves).reshape(64, 1, 8, 8)
    rest = (plane - reference).flatten(0, 1)[:, None]
    size = step.expand(*plane.shape[:2], 1, 1).reshape(-1, 1, 1, 1)
    coefficients = F.conv2d(rest, basis, stride=8) / size
    coefficients = coefficients.sign() * (coefficients.abs() + rounding).floor() * size
    return reference + F.conv_transpose2d(coefficients, basis, stride=8).view_as(plane)


def _deblocked(plane: Tensor, step: Tensor) -> Tensor:
    """Vertical block edges smoothed over two pixels to each side where they step by less than the quantiser."""
    out = plane.clone()
    limit = step.expand(len(plane), 1, 1, 1)
    p1, p0 = plane[..., 6:-8:8], plane[..., 7:-8:8]
    q0, q1 = plane[..., 8::8], plane[..., 9::8]
    change = ((4 * (q0 - p0) + p1 - q1) / 8).where((q0 - p0).abs() < limit, torch.zeros_like(p0))
    out[..., 6:-8:8] += change / 2
    out[..., 7:-8:8] += change
    out[..., 8::8] -= change
    out[..., 9::8] -= change / 2
    return out
