"""PMD: the progressive teacher's answer and features in a plain backbone, at no cost at inference.

Source: the distillation half of Liu 2024, arXiv 2401.14336, and the authors' code. For the first half of the epochs a
batch takes four updates, three on the feature maps from shallow to deep and one on logits and labels; after that one
update on labels alone. No noise anywhere. The fast mode is ours: one update on all terms, a noisy student against a
clean teacher.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.models.backbone import DEPTHS
from vmmr.noise import TRAINING_NOISE
from vmmr.objectives import ensemble_mse, feature_mse, relative_feature_mse, smoothed_kl
from vmmr.training.method import Batch, Step

__all__ = ["Distil"]


class Distil:
    """PMD as a method of the training loop. The teacher is frozen: evaluation mode, no gradients, never updated."""

    def __init__(self, student: Backbone, teacher: ProgressiveNetwork, config: TrainConfig) -> None:
        self.network = student
        self.teacher = teacher.eval().requires_grad_(False)
        self._config = config
        self._noise = TRAINING_NOISE[config.noise]
        self._feature_term = relative_feature_mse if config.relative_features else feature_mse

    def head_parameters(self) -> list[nn.Parameter]:
        """The classifier."""
        return self.network.classifier_parameters()

    def asks_teacher(self, epoch: int) -> bool:
        """Whether epoch (from 0) still distils: e < distil_share * epochs, so that odd counts round up."""
        return epoch < self._config.distil_share * self._config.epochs

    def begin(self, batch: Batch, epoch: int) -> Batch:
        """The teacher looks at the clean images once a batch; its outputs travel as teacher_*."""
        if not self.asks_teacher(epoch):
            return batch
        with torch.no_grad():
            seen = self.teacher(batch["image"])
        return {**batch, **{f"teacher_{key}": value for key, value in seen.items()}}

    def steps(self, epoch: int, step: int) -> tuple[Step, ...]:
        """Published: three feature updates and one on logits and labels, later labels alone. Fast: one update."""
        if not self.asks_teacher(epoch):
            return (Step("labels", self._view, self._label_losses),)
        if self._config.mode == "fast":
            return (Step("fused", self._view, self._fused),)
        features = (Step(f"features_{depth}", self._view, partial(self._feature_losses, depth)) for depth in DEPTHS)
        return (*features, Step("logits", self._view, self._logit_losses))

    def answer(self, network: nn.Module, image: Tensor) -> Tensor:
        """The classifier's logits."""
        logits: Tensor = network(image)["logits_0"]
        return logits

    def _view(self, batch: Batch, generator: torch.Generator) -> Batch:
        return {**batch, "image": self._noise(batch["image"], generator=generator)["noisy"]}

    def _feature_loss(self, outputs: dict[str, Tensor], batch: Batch, depth: int) -> dict[str, Tensor]:
        key = f"features_{depth}"
        return {key: self._config.feature_weight * self._feature_term(outputs[key], batch[f"teacher_{key}"])}

    def _answer_loss(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        teachers = [batch[f"teacher_logits_{j}"] for j in (1, 2, 3, 0)]
        return {
            "logits": self._config.logit_weight * ensemble_mse(outputs["logits_0"], teachers),
            "labels": smoothed_kl(outputs["logits_0"], batch["label"], self._config.smoothing),
        }

    def _feature_losses(self, depth: int, batch: Batch) -> dict[str, Tensor]:
        return self._feature_loss(self.network(batch["image"]), batch, depth)

    def _logit_losses(self, batch: Batch) -> dict[str, Tensor]:
        return self._answer_loss(self.network(batch["image"]), batch)

    def _label_losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.network(batch["image"])["logits_0"]
        return {"labels": smoothed_kl(logits, batch["label"], self._config.smoothing)}

    def _fused(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.network(batch["image"])
        losses = self._answer_loss(outputs, batch)
        for depth in DEPTHS:
            losses.update(self._feature_loss(outputs, batch, depth))
        return losses
