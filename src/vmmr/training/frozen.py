"""Training the last layers alone: what stands before them is computed once, for a few views of every image.

On a CPU most of a batch is the work of the first layers. Where they keep the weights they start from, their maps may be
kept as well, and an epoch costs what the last layers cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError
from vmmr.models import Backbone, HierarchicNetwork
from vmmr.models.stem import Stem, take_stem
from vmmr.noise import TRAINING_NOISE
from vmmr.training.augment import crop_and_flip
from vmmr.training.samples import Maps, Samples, Side

__all__ = ["freeze", "picked", "predict_from_maps"]

_BATCH = 64
_kept: dict[str, tuple[Maps, Maps]] = {}
"""What this process computed last: the runs of a study differ behind the stem."""


def freeze(
    network: Backbone | HierarchicNetwork,
    samples: Samples,
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Samples:
    """Take the layers before `config.frozen` out of the network, see `take_stem`, and return the samples with what
    these layers make of them: `frozen_views` views of each training image, noise included, and the middle of each
    validation image.

    Views do not depend on the seed of the run. Raises ConfigError for a layer that there is not, and for maps that do
    not fit into memory_gib.
    """
    backbone = network if isinstance(network, Backbone) else network.backbone
    stem = take_stem(backbone, config.frozen).to(device)
    key = _digest(stem, samples, config)
    if key not in _kept:
        with torch.no_grad():
            probe = stem(torch.zeros(1, 3, config.size, config.size, device=device))
        needed = 2 * probe.numel() * (config.frozen_views * len(samples.train) + len(samples.validation))
        if needed > config.memory_gib * 2**30:
            raise ConfigError(
                f"the maps before {config.frozen!r} do not fit into memory_gib",
                got=f"{needed / 2**30:.1f} GiB",
                do="lower frozen_views or size, freeze up to a later layer, or raise memory_gib",
            )
        generator = torch.Generator(device).manual_seed(0)
        noise = TRAINING_NOISE[config.noise]

        def varied(pixels: Tensor) -> Tensor:
            draws = torch.rand(len(pixels), 3, generator=generator, device=device).cpu()
            return crop_and_flip(pixels, draws, config.size, config.size, padding=config.padding)

        def noisy(image: Tensor) -> Tensor:
            return noise(image, generator=generator)["noisy"]

        preprocess, views = samples.preprocess, config.frozen_views
        found = (
            _maps(stem, samples.train, preprocess, varied, noisy, views=views, device=device, progress=progress),
            _maps(stem, samples.validation, preprocess, preprocess.centre_crop, None, device=device),
        )
        _kept.clear()
        _kept[key] = found
    return replace(samples, maps=_kept[key])


@torch.no_grad()
def _maps(
    stem: Stem,
    side: Side,
    preprocess: Preprocess,
    cut: Callable[[Tensor], Tensor],
    noise: Callable[[Tensor], Tensor] | None,
    *,
    views: int = 1,
    device: torch.device | str,
    progress: bool = False,
) -> Maps:
    """What the stem makes of each image, cut and made noisy anew for every view: float16 [N, views, C, h, w]."""
    parts = []
    starts = range(0, len(side), _BATCH)
    for start in track(starts, "computing what is frozen", disable=not progress, transient=True):
        pixels = side.pixels[np.arange(start, min(start + _BATCH, len(side)))].to(device)
        seen = []
        for _ in range(views):
            image = preprocess.normalise(cut(pixels)).contiguous(memory_format=torch.channels_last)
            seen.append(stem(image if noise is None else noise(image)).half().cpu())
        parts.append(torch.stack(seen, dim=1))
    return Maps(torch.cat(parts))


def picked(maps: Tensor, draws: Tensor) -> Tensor:
    """Of each image's maps [B, V, C, h, w] the one that its draw in [0, 1), float [B], says: float32 [B, C, h, w].

    >>> picked(torch.arange(6.0).reshape(2, 3, 1, 1, 1), torch.tensor([0.0, 0.99])).flatten()
    tensor([0., 5.])
    """
    number = (draws * maps.shape[1]).long().to(maps.device)
    return maps[torch.arange(len(maps), device=maps.device), number].float()


@torch.no_grad()
def predict_from_maps(
    answer: Callable[[Tensor], Tensor], network: nn.Module, maps: Maps, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Logits [N, classes] on the CPU of the first view of each image, as `vmmr.evaluation.classify.predict_logits` of
    pictures."""
    was_training = network.training
    network.eval()
    try:
        rows = np.array_split(np.arange(len(maps)), max(1, len(maps) // _BATCH))
        return torch.cat([answer(maps[some][:, 0].float().to(device)).float().cpu() for some in rows])
    finally:
        network.train(was_training)


def _digest(stem: Stem, samples: Samples, config: TrainConfig) -> str:
    """Of all that the maps depend on."""
    found = hashlib.sha256()
    for name, tensor in stem.state_dict().items():
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    told: tuple[object, ...] = (
        *(samples.splits, len(samples.train), samples.preprocess.to_json(), stem.backbone.standardise),
        *(stem.backbone.scale.tolist(), stem.backbone.shift.tolist()),
        *(config.padding, config.noise, config.frozen, config.frozen_views, repr(stem)),
    )
    found.update(repr(told).encode())
    return found.hexdigest()
