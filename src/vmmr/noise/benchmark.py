"""The fixed corruption benchmark: which corruptions, and each image's own draws, whatever batch it is in.

    COMMON      the fifteen of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261)
    VALIDATION  its four extra ones, that no training noise ever draws from
    CAMERA      what a camera beside a road adds; ours

Every corruption has severities 1 to 5; their strength in dB is in docs/noise.md. Some of the first and the last group
are trained on as well (`vmmr.noise.TRAIN_OPS`); only the second is new to every model.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vmmr.errors import ConfigError
from vmmr.noise.corruption import Op
from vmmr.noise.ops import OPS

__all__ = ["CAMERA", "COMMON", "CORRUPTIONS", "VALIDATION", "corrupt"]

COMMON = (
    "gaussian",
    "shot",
    "impulse",
    "defocus",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic",
    "pixelate",
    "jpeg",
)
"""ImageNet-C's corruptions, in its order."""

VALIDATION = ("speckle", "gaussian_blur", "spatter", "saturate")
"""ImageNet-C's extra corruptions: no training noise draws from them, and choices may be made by them."""

CAMERA = ("low_light", "rain", "travel_blur", "interlace", "h264", "downscale")
"""What happens between a road and a file."""

CORRUPTIONS: dict[str, Op] = {name: OPS[name] for name in (*COMMON, *VALIDATION, *CAMERA)}
"""All of them, group after group."""


def corrupt(image: Tensor, name: str, severity: float, *, keys: Tensor | npt.NDArray[Any], seed: int = 0) -> Tensor:
    """One corruption of the benchmark, drawn for every image from its key, the corruption's name and the seed alone.

    Neither the batch nor the order nor the device decides what an image meets: the numbers are drawn on the CPU. The
    severity does not either: from level to level the same drops grow and the same fog thickens.

    Args:
        image: [B, 3, H, W] in [0, 1], on any device.
        name: one of `CORRUPTIONS`.
        severity: 0, the image itself, to 5; the benchmark's levels are 1 to 5.
        keys: whole numbers [B] that name the images, such as their rows in a manifest.
        seed: another seed is another run of the benchmark.

    Returns [B, 3, H, W] in [0, 1]. Raises ConfigError for a name, a severity or keys that do not fit, DataError for
    images that do not.

    >>> image = torch.full((2, 3, 16, 16), 0.5)
    >>> both = corrupt(image, "gaussian", 3, keys=torch.tensor([7, 8]))
    >>> torch.equal(both[1:], corrupt(image[1:], "gaussian", 3, keys=torch.tensor([8])))
    True
    """
    if name not in CORRUPTIONS:
        raise ConfigError("no such corruption", got=repr(name), do=f"use one of {', '.join(CORRUPTIONS)}")
    named = np.asarray(keys.cpu() if isinstance(keys, Tensor) else keys)
    if named.shape != (len(image),) or not np.issubdtype(named.dtype, np.integer):
        raise ConfigError(
            "keys name no batch", got=f"{named.dtype} {list(named.shape)}", do=f"pass {len(image)} whole numbers"
        )
    return CORRUPTIONS[name](image, severity, generator=[_generator(seed, name, int(key)) for key in named])


def _generator(seed: int, name: str, key: int) -> torch.Generator:
    # torch's CPU generator keeps the lower 32 bits of its seed: a hash spreads neighbours over all of them.
    digest = blake2b(f"{seed}/{name}/{key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
