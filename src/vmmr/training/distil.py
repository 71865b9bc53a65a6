"""PMD: the progressive teacher's answer and features in a plain backbone, at no cost at inference.

Source: the distillation half of Liu 2024, arXiv 2401.14336, and the authors' code. For the first half of the epochs a
batch takes four updates, three on the feature maps from shallow to deep and one on logits and labels; after that one
update on labels alone. No noise anywhere. The fast mode is ours: one update on all terms, a noisy student against a
clean teacher. A teacher that answers levels is distilled level by level: `logits_make` for `logits`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.models import Backbone, HierarchicNetwork, HierarchicProgressiveNetwork, ProgressiveNetwork
from vmmr.models.backbone import DEPTHS
from vmmr.noise import TRAINING_NOISE
from vmmr.objectives import ensemble_mse, feature_mse, relative_feature_mse, smoothed_kl
from vmmr.training.balance import shared_weights
from vmmr.training.method import Batch, Step
from vmmr.training.multitask import hierarchy_losses, labels_by_level

__all__ = ["Distil"]


class Distil:
    """PMD as a method of the training loop. The teacher is frozen: evaluation mode, no gradients, never updated."""

    def __init__(self, student: Backbone | HierarchicNetwork, teacher: ProgressiveNetwork, config: TrainConfig) -> None:
        self.network = student
        self.teacher = teacher.eval().requires_grad_(False)
        self._config = config
        self._noise = TRAINING_NOISE[config.noise]
        backbone = student.backbone if isinstance(student, HierarchicNetwork) else student
        [self._shared] = shared_weights(backbone, config, DEPTHS[-1]).values()
        self._feature_term = relative_feature_mse if config.relative_features else feature_mse

    def head_parameters(self) -> list[nn.Parameter]:
        """The classifier, or the heads of all levels."""
        network = self.network
        if isinstance(network, HierarchicNetwork):
            return list(network.head.parameters())
        return network.classifier_parameters()

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
            return (Step("labels", self._view, self._label_losses, self._shared),)
        if self._config.mode == "fast":
            return (Step("fused", self._view, self._fused, self._shared),)
        features = (
            Step(f"features_{depth}", self._view, partial(self._feature_losses, depth), self._shared)
            for depth in DEPTHS
        )
        return (*features, Step("logits", self._view, self._logit_losses, self._shared))

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
        if isinstance(self.network, HierarchicNetwork):
            return self._level_logits(self.network, outputs, batch) | self._labels(outputs, batch)
        teachers = [batch[f"teacher_logits_{j}"] for j in (1, 2, 3, 0)]
        return {
            "logits": self._config.logit_weight * ensemble_mse(outputs["logits_0"], teachers),
            **self._labels(outputs, batch),
        }

    def _level_logits(self, network: HierarchicNetwork, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """For each level the student's logits against those of the teacher's heads that answer it."""
        assert isinstance(self.teacher, HierarchicProgressiveNetwork)
        heads = self.teacher.by_level({f"logits_{j}": batch[f"teacher_logits_{j}"] for j in range(4)}).values()
        return {
            f"logits_{level}": self._config.logit_weight
            * ensemble_mse(told, [logits[level] for logits in heads if level in logits])
            for level, told in network.by_level(outputs)["0"].items()
        }

    def _labels(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        network, config = self.network, self._config
        if isinstance(network, HierarchicNetwork):
            told = network.by_level(outputs)["0"]
            losses = hierarchy_losses(told, labels_by_level(batch), network.levels, config)
            return {f"labels_{level}": loss for level, loss in losses.items()}
        return {"labels": smoothed_kl(outputs["logits_0"], batch["label"], config.smoothing)}

    def _feature_losses(self, depth: int, batch: Batch) -> dict[str, Tensor]:
        return self._feature_loss(self.network(batch["image"]), batch, depth)

    def _logit_losses(self, batch: Batch) -> dict[str, Tensor]:
        return self._answer_loss(self.network(batch["image"]), batch)

    def _label_losses(self, batch: Batch) -> dict[str, Tensor]:
        return self._labels(self.network(batch["image"]), batch)

    def _fused(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.network(batch["image"])
        losses = self._answer_loss(outputs, batch)
        for depth in DEPTHS:
            losses.update(self._feature_loss(outputs, batch, depth))
        return losses
