"""How accuracy falls when the image gets worse: Gaussian noise of known size, and the corruption family."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from vmmr.errors import ConfigError
from vmmr.noise import OPS

__all__ = ["GAUSSIAN_SIGMAS", "condition", "gaussian_noise", "noise_curve"]

GAUSSIAN_SIGMAS = (0.05, 0.1, 0.2, 0.4)
"""Standard deviations on images in [-1, 1]; 0.05 is the most that PMAL's own noise model draws."""


def gaussian_noise(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Images in [-1, 1] plus N(0, sigma^2), not clipped."""
    return image + sigma * torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)


def _corrupted(image: Tensor, name: str, severity: float, generator: torch.Generator) -> Tensor:
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    return OPS[name](unit, severity, generator=generator) * 2 - 1


def condition(name: str, *, seed: int = 0, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor] | None:
    """What a name does to a batch in [-1, 1]; None for "clean".

    gaussian_0.1: noise of that standard deviation. fog@3: that corruption of `vmmr.noise.OPS` at that severity in
    [0, 5]. Every condition draws from its own generator, seeded by `seed`: the same images in the same batches meet the
    same noise whatever else is evaluated. Raises ConfigError for other names.
    """
    if name == "clean":
        return None
    generator = torch.Generator(device).manual_seed(seed)
    kind, at, level = name.partition("@")
    try:
        if at and kind in OPS:
            return partial(_corrupted, name=kind, severity=float(level), generator=generator)
        if name.startswith("gaussian_"):
            return partial(gaussian_noise, sigma=float(name.removeprefix("gaussian_")), generator=generator)
    except ValueError as error:
        raise ConfigError("a condition's strength is a number", got=repr(name)) from error
    raise ConfigError(
        "no such condition", got=repr(name), do=f"use clean, gaussian_<sigma> or <{'|'.join(OPS)}>@<severity>"
    )


def noise_curve(severities: Iterable[float] = (3.0,)) -> list[str]:
    """The names that `vmmr evaluate --noise` covers: clean, four Gaussians, every corruption at these severities.

    >>> noise_curve([3])[:3]
    ['clean', 'gaussian_0.05', 'gaussian_0.1']
    """
    gaussian = [f"gaussian_{sigma:g}" for sigma in GAUSSIAN_SIGMAS]
    return ["clean", *gaussian, *(f"{name}@{severity:g}" for severity in severities for name in OPS)]
