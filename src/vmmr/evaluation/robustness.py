"""How accuracy falls when the image gets worse: Gaussian noise of known size, and the corruption families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmmr.errors import ConfigError
from vmmr.evaluation.intervals import interval
from vmmr.noise import OPS
from vmmr.noise.benchmark import CAMERA, COMMON, VALIDATION, corrupt

__all__ = ["FAMILIES", "GAUSSIAN_SIGMAS", "Degrade", "condition", "gaussian_noise", "noise_curve", "summary"]

GAUSSIAN_SIGMAS = (0.05, 0.1, 0.2, 0.4)
"""Standard deviations on images in [-1, 1]; 0.05 is the most that PMAL's own noise model draws."""

FAMILIES: dict[str, tuple[str, ...]] = {"common": COMMON, "validation": VALIDATION, "camera": CAMERA}
"""Corruptions by where they come from: the common ones of ImageNet-C, those that no training sees, a road camera's."""

Degrade = Callable[[Tensor, NDArray[np.int64]], Tensor]
"""Images [B, 3, H, W] in [-1, 1] and their keys [B] -> those images, worse."""


def gaussian_noise(image: Tensor, keys: NDArray[np.int64], *, sigma: float, seed: int = 0) -> Tensor:
    """Images in [-1, 1] plus N(0, sigma^2), not clipped: drawn on the CPU for each image, from (seed, key) alone.

    An image of a key has the same noise in every batch and on every device, and, scaled, under every sigma.
    """
    noise = torch.empty(image.shape, dtype=image.dtype)
    for row, key in zip(noise, keys.tolist(), strict=True):
        row.normal_(generator=_generator(seed, key))
    return image + sigma * noise.to(image.device)


def _generator(seed: int, key: int, device: torch.device | str = "cpu") -> torch.Generator:
    own = np.random.SeedSequence((seed, key)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(own))


def _corrupted(image: Tensor, keys: NDArray[np.int64], *, name: str, severity: float, seed: int) -> Tensor:
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    return corrupt(unit, name, severity, keys=keys, seed=seed) * 2 - 1


def condition(name: str, *, seed: int = 0) -> Degrade | None:
    """What a name does to a batch in [-1, 1] whose images have these keys; None for "clean".

    gaussian_0.1: noise of that standard deviation. fog@3: that corruption of `vmmr.noise.OPS` at that severity in
    [0, 5]. What is drawn follows from `seed` and keys: the same images in the same batches meet the same noise whatever
    was evaluated before. Raises ConfigError for other names and for a negative seed.
    """
    if seed < 0:
        raise ConfigError("a seed is not negative", got=seed)
    if name == "clean":
        return None
    kind, at, level = name.partition("@")
    try:
        if at and kind in OPS:
            return partial(_corrupted, name=kind, severity=float(level), seed=seed)
        if name.startswith("gaussian_"):
            return partial(gaussian_noise, sigma=float(name.removeprefix("gaussian_")), seed=seed)
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


def summary(top1: Mapping[str, float], resamples: Mapping[str, NDArray[np.float64]]) -> dict[str, dict[str, Any]]:
    """Conditions in one number each: {name: {"value", "interval"}}, of those whose conditions are there.

    top1: accuracy of every condition; resamples: its bootstrap [draws], drawn jointly over the conditions. clean;
    mean_corruption: mean over every corruption at every severity, without the Gaussian noises; relative_drop: the part
    of the clean accuracy that is lost there, 1 - mean_corruption / clean; the mean of each of `FAMILIES`, and of the
    Gaussian noises (gaussian). All but relative_drop are shares of images in [0, 1].
    """
    values = _groups({name: np.asarray(score) for name, score in top1.items()})
    draws = _groups(resamples)
    return {name: {"value": float(value), "interval": interval(draws[name])} for name, value in values.items()}


def _groups(top1: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    corrupted = [name for name in top1 if "@" in name]
    groups = {
        "clean": [name for name in top1 if name == "clean"],
        "mean_corruption": corrupted,
        "gaussian": [name for name in top1 if name.startswith("gaussian_") and "@" not in name],  # no gaussian_blur@3
    }
    for family, kinds in FAMILIES.items():
        groups[family] = [name for name in corrupted if name.partition("@")[0] in kinds]
    found = {group: np.mean([top1[name] for name in names], axis=0) for group, names in groups.items() if names}
    if {"clean", "mean_corruption"} <= found.keys():
        clean, noisy = found["clean"], found["mean_corruption"]
        # Where nothing is right (in a resample, say) there is nothing to lose.
        found["relative_drop"] = np.where(clean > 0, 1 - noisy / np.where(clean > 0, clean, 1), 0)
    return found
