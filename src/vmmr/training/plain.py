"""Plain classification, with or without noise on the input, with or without AugMix's consistency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.models import Backbone
from vmmr.noise import TRAINING_NOISE, TrainingNoise
from vmmr.objectives import jensen_shannon, smoothed_kl
from vmmr.training.balance import shared_weights
from vmmr.training.method import Batch, Step

__all__ = ["Plain", "noisy_views"]


def noisy_views(batch: Batch, noise: TrainingNoise, generator: torch.Generator, *, consistent: bool) -> Batch:
    """The batch with its images [B, 3, H, W] made noisy; with `consistent` [3 B, ...]: the clean images, then two noisy
    views of each."""
    image = batch["image"]
    noisy = noise(image, generator=generator)["noisy"]
    if not consistent:
        return {**batch, "image": noisy}
    again = noise(image, generator=generator)["noisy"]
    return {**batch, "image": torch.cat([image, noisy, again])}


class Plain:
    """One step a batch: smoothed KL of the trunk's own classifier on the (noisy) images.

    With consistency it is AugMix's loss (Hendrycks et al., ICLR 2020, eq. 1): the clean images are classified, and
    their answers and those to two noisy views of each are drawn together.
    """

    def __init__(self, backbone: Backbone, config: TrainConfig) -> None:
        self.network = backbone
        self._config = config
        self._noise = TRAINING_NOISE[config.noise]
        self._shared = shared_weights(backbone, config, None)

    def head_parameters(self) -> list[nn.Parameter]:
        """The classifier."""
        return self.network.classifier_parameters()

    def begin(self, batch: Batch, epoch: int) -> Batch:
        """Nothing is shared between steps: there is one."""
        return batch

    def steps(self, epoch: int, step: int) -> tuple[Step, ...]:
        """One update."""
        return (Step("classify", self._prepare, self._losses, self._shared[None]),)

    def answer(self, network: nn.Module, image: Tensor) -> Tensor:
        """The classifier's logits."""
        logits: Tensor = network(image)["logits_0"]
        return logits

    def _prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return noisy_views(batch, self._noise, generator, consistent=bool(self._config.consistency))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.network(batch["image"])["logits_0"]
        if not self._config.consistency:
            return {"classify": smoothed_kl(logits, batch["label"], self._config.smoothing)}
        views = logits.chunk(3)
        return {
            "classify": smoothed_kl(views[0], batch["label"], self._config.smoothing),
            "consistency": self._config.consistency * jensen_shannon(views),
        }
