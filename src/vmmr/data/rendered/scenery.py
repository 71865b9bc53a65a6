"""What stands behind and below the vehicles: skies, skylines and road surfaces as seeded textures."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

__all__ = ["BACKGROUNDS", "GROUND_TILE", "ground", "panorama"]

BACKGROUNDS = ("street", "motorway", "suburb", "depot", "field", "quay")
GROUND_TILE = 16.0
"""Metres that one ground texture covers."""

Pixels = npt.NDArray[np.uint8]

_ROAD = {
    "street": (0.42, 0.42, 0.44),
    "motorway": (0.43, 0.43, 0.44),
    "suburb": (0.46, 0.44, 0.42),
    "depot": (0.58, 0.57, 0.54),
    "field": (0.45, 0.47, 0.30),
    "quay": (0.52, 0.50, 0.50),
}


def _noise(rng: np.random.Generator, shape: tuple[int, int], blur: float) -> npt.NDArray[np.float64]:
    field = gaussian_filter(rng.standard_normal(shape), blur, mode="wrap")
    scaled: npt.NDArray[np.float64] = field / (field.std() + 1e-9)
    return scaled


@lru_cache(maxsize=64)
def panorama(background: str, seed: int) -> Pixels:
    """The surrounding all around, [128, 512, 3] display values, its lower edge on the horizon's ground."""
    rng = np.random.default_rng([seed, BACKGROUNDS.index(background)])
    rows = np.linspace(0, 1, 128)[:, None, None]
    image = (1 - rows) * np.array([0.50, 0.66, 0.88]) + rows * np.array([0.86, 0.90, 0.94])
    clouds = np.clip(_noise(rng, (128, 512), 11) - 0.3, 0, 1.2)[..., None]
    image = image * (1 - 0.35 * clouds) + 0.35 * clouds
    wood = np.array([0.20, 0.31, 0.17]) * rng.uniform(0.8, 1.3)
    hills = 112 - 5 * np.abs(_noise(rng, (1, 512), 18))[0]
    trees = hills - (4 + 3 * np.abs(_noise(rng, (1, 512), 2.0))[0]) * (_noise(rng, (1, 512), 14)[0] > -0.4)
    image[np.arange(128)[:, None] > trees] = wood
    image *= 1 + 0.05 * _noise(rng, (128, 512), 0.8)[..., None] * (image[..., :1] < 0.45)
    count = {"street": 26, "motorway": 5, "suburb": 14, "depot": 8, "field": 1, "quay": 9}[background]
    for _ in range(count):
        left, width = int(rng.integers(512)), int(rng.integers(14, 46))
        height = int(rng.integers(16, 70) if background == "street" else rng.integers(10, 30))
        wall = np.array([0.55, 0.50, 0.46]) * rng.uniform(0.55, 1.45) + rng.uniform(-0.08, 0.08, 3)
        columns = (left + np.arange(width)) % 512
        image[118 - height : 122, columns] = wall
        pane = np.clip(wall * rng.choice([0.45, 0.6, 1.35]), 0, 1)
        for row in range(121 - height, 116, 6):
            panes = columns[(np.arange(width) % 6 >= 2) & (np.arange(width) < width - 2)]
            image[row : row + 3, panes] = pane
    image[120:] = np.array([0.40, 0.40, 0.38]) if background != "field" else wood * 1.2
    return np.asarray(np.clip(image, 0, 1) * 255, np.uint8)


@lru_cache(maxsize=64)
def ground(background: str, seed: int) -> Pixels:
    """A road surface that repeats in both directions, [256, 256, 3] display values over `GROUND_TILE` metres."""
    rng = np.random.default_rng([seed, 100 + BACKGROUNDS.index(background)])
    grain = 0.05 * _noise(rng, (256, 256), 0.7) + 0.04 * _noise(rng, (256, 256), 6) + 0.03 * _noise(rng, (256, 256), 24)
    image = np.array(_ROAD[background]) * rng.uniform(0.85, 1.15) * (1 + grain[..., None])
    match background:
        case "motorway" | "street":
            image[124:128, : 256 if background == "street" else 140] = 0.80
        case "depot" | "quay":
            image[::64] *= 0.72
            image[:, ::64] *= 0.72
        case "suburb":
            image[:64] = np.array([0.27, 0.38, 0.20]) * (1 + 2.2 * grain[:64, :, None])
            image[64:70] = 0.66
    return np.asarray(np.clip(image, 0, 1) * 255, np.uint8)
