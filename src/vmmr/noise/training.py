"""What training draws from: images in [-1, 1] to the pair (target, noisy) and what was done to them.

Every kind of noise is called alike, ``noise(x, generator=...)`` with x float [B, 3, H, W], and answers a dict
with at least "target", what restoration aims at, and "noisy", what the network sees. No input is written to;
given the same generator state the same noise returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from kornia.filters import filter2d
from torch import Tensor

from vmmr.errors import ConfigError
from vmmr.noise.affine import BORDERS, affine_warp, imgaug_matrix
from vmmr.noise.augmix import augmix
from vmmr.noise.corruption import MAX_SEVERITY
from vmmr.noise.ops import OPS, TRAIN_OPS

__all__ = [
    "GaussianNoise",
    "PublishedNoise",
    "StrongNoise",
    "TrainingNoise",
    "augmixed",
    "clean",
    "gaussian_blur",
    "published",
    "varied",
]


class TrainingNoise(Protocol):
    """Images in [-1, 1] to at least "target" and "noisy", of the same shape."""

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Degrade a batch."""
        ...


def clean(x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """No noise: target and noisy are x itself.

    >>> x = torch.zeros(1, 3, 8, 8)
    >>> clean(x)["noisy"] is x
    True
    """
    return {"target": x, "noisy": x}


def _uniform(x: Tensor, low: float, high: float, *shape: int, generator: torch.Generator | None) -> Tensor:
    draw = torch.rand((len(x), *shape), device=x.device, dtype=x.dtype, generator=generator)
    return low + (high - low) * draw


def _each(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]


def _check_probabilities(**probabilities: float) -> None:
    for name, p in probabilities.items():
        if not 0 <= p <= 1:
            raise ConfigError(f"{name} is no probability", got=p, do="pass a number from 0 to 1")


def _check_sizes(**sizes: float) -> None:
    for name, size in sizes.items():
        if not 0 <= size < math.inf:
            raise ConfigError(f"{name} is negative or endless", got=size, do="pass a number from 0 up")


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma [B] in pixels for each image; mirrored at the edge; below 1e-3 the image as it is.

    The window is imgaug's: int(3.3 sigma) pixels, at least 5, made odd. (kornia's own blur has one window for the
    batch.)

    >>> x = torch.zeros(1, 1, 9, 9)
    >>> x[..., 4, 4] = 1
    >>> round(gaussian_blur(x, torch.tensor([1.0]))[0, 0, 4, 4].item(), 3)
    0.162
    """
    rows = (sigma >= 1e-3).nonzero().flatten()
    if len(rows) == 0:
        return x
    chosen = sigma[rows, None]
    reach = (3.3 * chosen).floor().clamp(min=5).div(2, rounding_mode="floor")
    radius = int(reach.max().item())
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = (-0.5 * (offset / chosen) ** 2).exp() * (offset.abs() <= reach)
    kernel = kernel / kernel.sum(1, keepdim=True)
    # At most 9 x 9: in one pass a quarter of the time of two separable ones on a CPU.
    return x.index_copy(0, rows, filter2d(x[rows], kernel[:, :, None] * kernel[:, None, :]))


@dataclass(frozen=True)
class PublishedNoise:
    """The noise that PMAL was published with (Liu 2024, arXiv 2401.14336; Dichao-Liu/Anti-noise_FGVR).

    The target is already transformed: on `affine_p` of the images an affine (scale U(.8, 1.2) per axis, shift
    U(-.2, .2) of the size per axis, rotation and shear U(-15, 15) degrees, nearest or bilinear, any of five
    borders), on `blur_p` of them a Gaussian blur of U(0, `max_blur`) px, the two in random order. The noise that is
    to be removed is normal with sigma U(0, `max_sigma`) per image, on `shared_p` of the images the same in all
    channels. Nothing is clipped.

    Answers target, noisy, sigma [B], shared_channels [B], affine [B], blur_sigma [B] (0 where not blurred).
    Sigma is in units of the range [-1, 1]; the fill of the border "constant" is U(*`fill`), mid-grey to white.
    imgaug's OpenCV path rounds its fill down to whole numbers, so that the published runs in fact filled with
    0: `fill=(0, 0)` repeats that.

    >>> x = torch.zeros(2, 3, 16, 16)
    >>> out = PublishedNoise(affine_p=0, blur_p=0)(x, generator=torch.Generator().manual_seed(0))
    >>> torch.equal(out["target"], x), bool((out["sigma"] <= 0.05).all())
    (True, True)
    """

    affine_p: float = 0.2
    blur_p: float = 0.5
    max_blur: float = 3.0
    max_sigma: float = 0.05
    shared_p: float = 0.5
    fill: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_probabilities(affine_p=self.affine_p, blur_p=self.blur_p, shared_p=self.shared_p)
        _check_sizes(max_blur=self.max_blur, max_sigma=self.max_sigma)

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw targets and noise for a batch."""
        affine = _uniform(x, 0, 1, generator=generator) < self.affine_p
        blurred = _uniform(x, 0, 1, generator=generator) < self.blur_p
        blur_first = _uniform(x, 0, 1, generator=generator) < 0.5
        blur_sigma = _uniform(x, 0, self.max_blur, generator=generator)
        blur_sigma = torch.where(blurred & (blur_sigma >= 1e-3), blur_sigma, 0)

        target = gaussian_blur(x, blur_sigma * blur_first)
        target = self._affine(target, affine, generator)
        target = gaussian_blur(target, blur_sigma * ~blur_first)

        sigma = _uniform(x, 0, self.max_sigma, generator=generator)
        shared = _uniform(x, 0, 1, generator=generator) < self.shared_p
        epsilon = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
        epsilon = torch.where(_each(shared), epsilon[:, :1], epsilon)
        return {
            "target": target,
            "noisy": target + _each(sigma) * epsilon,
            "sigma": sigma,
            "shared_channels": shared,
            "affine": affine,
            "blur_sigma": blur_sigma,
        }

    def _affine(self, x: Tensor, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
        height, width = x.shape[-2:]
        size = torch.tensor([width, height], device=x.device, dtype=x.dtype)
        limit = math.radians(15)
        source = imgaug_matrix(
            _uniform(x, 0.8, 1.2, 2, generator=generator),
            _uniform(x, -0.2, 0.2, 2, generator=generator) * size,
            _uniform(x, -limit, limit, generator=generator),
            _uniform(x, -limit, limit, generator=generator),
            height=height,
            width=width,
        )
        bilinear = _uniform(x, 0, 1, generator=generator) < 0.5
        border = torch.randint(len(BORDERS), (len(x),), device=x.device, generator=generator)
        fill = _uniform(x, *self.fill, generator=generator)
        rows = chosen.nonzero().flatten()
        if len(rows) == 0:
            return x
        how = {"bilinear": bilinear[rows], "border": border[rows], "fill": fill[rows]}
        return x.index_copy(0, rows, affine_warp(x[rows], source[rows], **how))


published = PublishedNoise()
"""The published noise with the published settings."""


@dataclass(frozen=True)
class GaussianNoise:
    """Plain training with noise as augmentation, the rival that a method has to beat.

    Normal noise of sigma U(0, `max_sigma`) in units of [-1, 1] on `p` of the images, clipped as a camera clips;
    the target is x (Rusak et al. 2020, arXiv 2001.06057, find it hard to beat). Answers target, noisy, sigma [B].

    >>> out = GaussianNoise(p=0)(torch.zeros(2, 3, 8, 8))
    >>> torch.equal(out["noisy"], out["target"])
    True
    """

    max_sigma: float = 0.4
    p: float = 0.7

    def __post_init__(self) -> None:
        _check_probabilities(p=self.p)
        _check_sizes(max_sigma=self.max_sigma)

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise for a batch."""
        chosen = _uniform(x, 0, 1, generator=generator) < self.p
        sigma = _uniform(x, 0, self.max_sigma, generator=generator) * chosen
        epsilon = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
        return {"target": x, "noisy": (x + _each(sigma) * epsilon).clamp(-1, 1), "sigma": sigma}


@dataclass(frozen=True)
class StrongNoise:
    """Noise as roads have it: on `p` of the images one op of `vmmr.noise.ops.TRAIN_OPS`, on `pair_p` of those two.

    The severity is U(0, `max_severity`) per image; two ops share it in random parts and come in the order in
    which a camera adds them. The target is x: blur, darkness and low resolution are on the noisy side only.
    Answers target, noisy and severity [B, len(TRAIN_OPS)], 0 where an op was not used.

    >>> out = StrongNoise()(torch.zeros(4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    >>> tuple(out["severity"].shape), bool(((out["severity"] > 0).sum(1) <= 2).all())
    ((4, 8), True)
    """

    p: float = 0.8
    pair_p: float = 0.5
    max_severity: float = MAX_SEVERITY

    def __post_init__(self) -> None:
        _check_probabilities(p=self.p, pair_p=self.pair_p)
        if not 0 <= self.max_severity <= MAX_SEVERITY:
            raise ConfigError("max_severity outside of [0, 5]", got=self.max_severity, do="pass a number from 0 to 5")

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw ops and severities for a batch and apply them."""
        chosen = _uniform(x, 0, 1, generator=generator) < self.p
        pair = _uniform(x, 0, 1, generator=generator) < self.pair_p
        total = _uniform(x, 0, self.max_severity, generator=generator) * chosen
        part = torch.where(pair, _uniform(x, 0, 1, generator=generator), 1)
        which = _uniform(x, 0, 1, len(TRAIN_OPS), generator=generator).topk(2, dim=1).indices
        shares = torch.stack([total * part, total * (1 - part)], dim=1)
        severity = torch.zeros(len(x), len(TRAIN_OPS), device=x.device, dtype=x.dtype).scatter(1, which, shares)

        noisy = ((x + 1) / 2).clamp_(0, 1)
        for column, name in enumerate(TRAIN_OPS):
            rows = (severity[:, column] > 0).nonzero().flatten()
            if len(rows):
                noisy[rows] = OPS[name](noisy[rows], severity[rows, column], generator=generator)
        return {"target": x, "noisy": torch.where(_each(chosen), 2 * noisy - 1, x), "severity": severity}


def augmixed(x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """AugMix on every image (`vmmr.noise.augmix`), at the authors' settings; the target is x.

    >>> x = torch.zeros(2, 3, 16, 16)
    >>> augmixed(x)["target"] is x
    True
    """
    return {"target": x, "noisy": 2 * augmix(((x + 1) / 2).clamp(0, 1), generator=generator) - 1}


_STRONG = StrongNoise()


def varied(x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """`augmixed`, then `StrongNoise`: what a scene may look like, and then what a camera makes of it.

    AugMix changes light, colour and place; no decoder could undo it, so the image after AugMix is the target. Answers
    target, noisy and the severity of `StrongNoise`.

    >>> sorted(varied(torch.zeros(4, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    ['noisy', 'severity', 'target']
    """
    return _STRONG(augmixed(x, generator=generator)["noisy"], generator=generator)
