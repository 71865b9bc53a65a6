"""How far a number may be trusted: the bootstrap over images.

Every condition shows the same images, so all conditions share one resample: a mean over conditions, or a ratio of two,
is computed within each resample, and its interval knows that a hard image is hard throughout. Treating the conditions
as independent would give intervals that are too narrow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmmr.errors import ConfigError, DataError

__all__ = ["interval", "resampled_means"]

_BLOCK = 100  # resamples at a time: bounds memory at 100 numbers an image


def resampled_means(scores: NDArray[np.floating], *, seed: int, draws: int = 1000) -> NDArray[np.float64]:
    """Means over images drawn with replacement: scores [N, K] of N images under K conditions -> [draws, K].

    The draw depends on (seed, N) alone. Source: Efron 1979, Bootstrap methods: another look at the jackknife. Raises
    DataError where there is no image, ConfigError for a negative seed.

    >>> resampled_means(np.ones((5, 2)), seed=0, draws=3).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    images = len(scores)
    if images == 0:
        raise DataError("there is no image to resample", got=list(scores.shape), do="evaluate at least one image")
    if seed < 0:
        raise ConfigError("a seed is not negative", got=seed)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, _BLOCK):
        # How often each image was drawn: with these counts, a mean over the resample is a matrix product.
        counts = [
            np.bincount(random.integers(images, size=images), minlength=images)
            for _ in range(start, min(start + _BLOCK, draws))
        ]
        means.append(np.stack(counts).astype(np.float64) @ scores / images)
    return np.concatenate(means)


def interval(resamples: NDArray[np.floating], *, level: float = 0.95) -> list[float]:
    """The central share `level` of a number's resamples [draws], as [low, high]: the percentile interval.

    >>> interval(np.arange(101.0), level=0.5)
    [25.0, 75.0]
    """
    tail = (1 - level) / 2
    found: list[float] = np.quantile(resamples, [tail, 1 - tail]).tolist()
    return found
