"""Every level at once on a plain trunk: one step a batch, one named loss a level.

Source: Manole and Diosan, arXiv 2603.01746: two cross-entropies, a weighted sum, one backward. Noise, missing labels
and side attributes are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.levels import Levels
from vmmr.models import HierarchicNetwork
from vmmr.noise import TRAINING_NOISE
from vmmr.objectives import jensen_shannon, level_losses, marginal_nll
from vmmr.training.balance import shared_weights
from vmmr.training.method import Batch, Step
from vmmr.training.plain import noisy_views

__all__ = ["Multitask", "hierarchy_losses", "labels_by_level"]


def labels_by_level(batch: Batch) -> dict[str, Tensor]:
    """The labels int64 [B] of every level, which a batch holds as `label_<level>`."""
    return {name.removeprefix("label_"): value for name, value in batch.items() if name.startswith("label_")}


def hierarchy_losses(
    logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], levels: Levels, config: TrainConfig
) -> dict[str, Tensor]:
    """`level_losses` with the weights of the settings, and the marginal likelihood of the coarsest level where asked.

    logits: [B, width] by level, of all levels or some; labels: int64 [B] by level, -1 for unknown.
    """
    losses = level_losses(logits, labels, smoothing=config.smoothing, weights=config.level_weights)
    coarse, fine = levels.tree[0], levels.finest
    if config.marginal_weight and fine in logits and (labels[coarse] >= 0).any():
        parents = torch.from_numpy(levels.parents(fine, coarse).copy()).to(logits[fine].device)
        told = marginal_nll(logits[fine], parents, labels[coarse], levels.widths[coarse])
        losses["marginal"] = config.marginal_weight * told
    return losses


class Multitask:
    """Plain training of a network with hierarchy heads, with or without noise and consistency, see `Plain`."""

    def __init__(self, network: HierarchicNetwork, config: TrainConfig) -> None:
        self.network = network
        self._config = config
        self._noise = TRAINING_NOISE[config.noise]
        self._shared = shared_weights(network.backbone, config, None)

    def head_parameters(self) -> list[nn.Parameter]:
        """The heads of all levels."""
        return list(self.network.head.parameters())

    def begin(self, batch: Batch, epoch: int) -> Batch:
        """Nothing is shared between steps: there is one."""
        return batch

    def steps(self, epoch: int, step: int) -> tuple[Step, ...]:
        """One update."""
        return (Step("levels", self._prepare, self._losses, self._shared[None]),)

    def answer(self, network: nn.Module, image: Tensor) -> Tensor:
        """The logits of all levels side by side."""
        assert isinstance(network, HierarchicNetwork)
        return network.answer(image)

    def _prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return noisy_views(batch, self._noise, generator, consistent=bool(self._config.consistency))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        network, config = self.network, self._config
        labels = labels_by_level(batch)
        views = 3 if config.consistency else 1
        shown = {level: truth.repeat(views) for level, truth in labels.items()}
        logits = network.by_level(network(batch["image"], shown))["0"]
        first = {level: found.chunk(views)[0] for level, found in logits.items()}
        losses = hierarchy_losses(first, labels, network.levels, config)
        if config.consistency:
            drawn = jensen_shannon(logits[network.levels.finest].chunk(views))
            losses["consistency"] = config.consistency * drawn
        return losses
