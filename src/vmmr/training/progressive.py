"""PMAL: recognition and denoising trained together, head by head from shallow to deep.

Source: Liu 2024, arXiv 2401.14336 (T-ITS 25(9)), and the authors' code. The published order is data:

    Progressive(...).steps(0, 0)  ->  (Step(restore_1), Step(restore_2), Step(restore_3), Step(clean))

Step k draws its own target g and noisy image n, classifies n at depth k, restores it, and classifies the restored
image at depth k; nothing is detached. The clean step classifies the untouched image with all four classifiers. Each is
one optimiser update (two passes under SAM, on the same draw).

The fast mode is ours: one update a batch. A single whole forward of the noisy image serves all four classifiers. Every
`restore_every`-th batch it also serves the decoder of one depth, which rotates from shallow to deep, and the restored
image is classified by a forward that stops at that depth.

Where the network answers levels, every recognition is one loss a level, `noisy_1_make` for `noisy_1`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.models import HierarchicProgressiveNetwork, ProgressiveNetwork
from vmmr.models.backbone import DEPTHS
from vmmr.noise import TRAINING_NOISE
from vmmr.objectives import RESTORATION, smoothed_kl
from vmmr.training.balance import shared_weights
from vmmr.training.method import Batch, Step
from vmmr.training.multitask import hierarchy_losses, labels_by_level
from vmmr.training.sam import frozen_statistics

__all__ = ["Progressive", "Recognise", "clean_losses", "restore_losses"]

Recognise = Callable[[dict[str, Tensor], int, Batch], dict[str, Tensor]]
"""Outputs, depth, batch -> losses of the head at that depth, by what their names end in: "", or "_make" and so on."""


def _classes(smoothing: float) -> Recognise:
    """The loss of one flat classifier."""
    return lambda outputs, depth, batch: {"": smoothed_kl(outputs[f"logits_{depth}"], batch["label"], smoothing)}


def _every_level(network: HierarchicProgressiveNetwork, config: TrainConfig) -> Recognise:
    """The losses of every level that the head at the depth answers."""

    def losses(outputs: dict[str, Tensor], depth: int, batch: Batch) -> dict[str, Tensor]:
        logits = network.by_level(outputs)[str(depth)]
        found = hierarchy_losses(logits, labels_by_level(batch), network.levels, config)
        return {f"_{level}": loss for level, loss in found.items()}

    return losses


def _clean(outputs: dict[str, Tensor], batch: Batch, recognise: Recognise) -> dict[str, Tensor]:
    losses = {f"head_{depth}{end}": loss for depth in DEPTHS for end, loss in recognise(outputs, depth, batch).items()}
    return losses | {f"trunk{end}": 2 * loss for end, loss in recognise(outputs, 0, batch).items()}


def restore_losses(
    network: ProgressiveNetwork,
    batch: Batch,
    depth: int,
    *,
    stop: bool,
    alpha: float = 1.0,
    smoothing: float = 0.1,
    restoration: str = "charbonnier",
    recognise: Recognise | None = None,
) -> dict[str, Tensor]:
    """L_k = LS(p_k(n), y) + alpha * Char(r, g) + LS(p_k(r), y), as three named scalars.

    batch: noisy and target [B, 3, H, W] in [-1, 1], label [B]. stop: see `ProgressiveNetwork.at_depth`. recognise: in
    the place of LS, where there is more to recognise.
    """
    noisy, recognise = batch["noisy"], recognise or _classes(smoothing)
    seen = network.at_depth(noisy, depth, stop=stop)
    restored = network.restore(noisy, seen[f"features_{depth}"], depth)
    again = network.at_depth(restored, depth, stop=stop)
    return {
        **{f"noisy_{depth}{end}": loss for end, loss in recognise(seen, depth, batch).items()},
        f"restore_{depth}": alpha * RESTORATION[restoration](restored, batch["target"]),
        **{f"restored_{depth}{end}": loss for end, loss in recognise(again, depth, batch).items()},
    }


def clean_losses(outputs: dict[str, Tensor], label: Tensor, smoothing: float = 0.1) -> dict[str, Tensor]:
    """L_0 = LS(p_1) + LS(p_2) + LS(p_3) + 2 LS(p_0), as four named scalars."""
    return _clean(outputs, {"label": label}, _classes(smoothing))


class Progressive:
    """PMAL as a method of the training loop."""

    def __init__(self, network: ProgressiveNetwork, config: TrainConfig) -> None:
        self.network = network
        self._config = config
        self._noise = TRAINING_NOISE[config.noise]
        self._shared = shared_weights(network.backbone, config, *DEPTHS)
        self._recognise = _classes(config.smoothing)
        if isinstance(network, HierarchicProgressiveNetwork):
            self._recognise = _every_level(network, config)

    def head_parameters(self) -> list[nn.Parameter]:
        """Heads, decoders and the trunk's classifier."""
        network = self.network
        levels = network.level_heads.parameters() if isinstance(network, HierarchicProgressiveNetwork) else ()
        return [
            *levels,
            *network.heads.parameters(),
            *network.decoders.parameters(),
            *network.backbone.classifier_parameters(),
        ]

    def begin(self, batch: Batch, epoch: int) -> Batch:
        """Every step draws its own noise: nothing is shared."""
        return batch

    def steps(self, epoch: int, step: int) -> tuple[Step, ...]:
        """Four published updates, or one fast update whose restoring depth rotates."""
        if self._config.mode == "fast":
            turn, between = divmod(step, self._config.restore_every)
            if between:
                return (Step("noisy", self._degrade, self._noisy, self._shared[DEPTHS[-1]]),)
            depth = DEPTHS[turn % len(DEPTHS)]
            return (Step(f"fused_{depth}", self._degrade, partial(self._fused, depth), self._shared[depth]),)
        restoring = (
            Step(f"restore_{depth}", self._degrade, partial(self._restore, depth), self._shared[depth])
            for depth in DEPTHS
        )
        return (*restoring, Step("clean", lambda batch, generator: batch, self._clean, self._shared[DEPTHS[-1]]))

    def answer(self, network: nn.Module, image: Tensor) -> Tensor:
        """The mean of the four logit vectors, or, where the trunk alone is kept, its own."""
        assert isinstance(network, ProgressiveNetwork)
        if self._config.keep == "trunk":
            logits: Tensor = network(image)["logits_0"]
            return logits
        return network.answer(image)

    def _degrade(self, batch: Batch, generator: torch.Generator) -> Batch:
        drawn = self._noise(batch["image"], generator=generator)
        labels = {name: value for name, value in batch.items() if name.startswith("label")}
        return {"noisy": drawn["noisy"], "target": drawn["target"], **labels}

    def _partial_pass(self) -> AbstractContextManager[None]:
        return frozen_statistics(self.network) if self._config.norm_updates == "whole" else nullcontext()

    def _restore(self, depth: int, batch: Batch) -> dict[str, Tensor]:
        config = self._config
        with self._partial_pass():
            return restore_losses(
                self.network,
                batch,
                depth,
                stop=False,
                alpha=config.alpha,
                smoothing=config.smoothing,
                restoration=config.restoration_loss,
                recognise=self._recognise,
            )

    def _clean(self, batch: Batch) -> dict[str, Tensor]:
        return _clean(self.network(batch["image"]), batch, self._recognise)

    def _noisy(self, batch: Batch) -> dict[str, Tensor]:
        return _clean(self.network(batch["noisy"]), batch, self._recognise)

    def _fused(self, depth: int, batch: Batch) -> dict[str, Tensor]:
        config, network = self._config, self.network
        noisy = batch["noisy"]
        outputs = network(noisy)
        losses = _clean(outputs, batch, self._recognise)
        restored = network.restore(noisy, outputs[f"features_{depth}"], depth)
        losses[f"restore_{depth}"] = config.alpha * RESTORATION[config.restoration_loss](restored, batch["target"])
        if config.restored_weight:
            with self._partial_pass():
                again = network.at_depth(restored, depth, stop=True)
            for end, loss in self._recognise(again, depth, batch).items():
                losses[f"restored_{depth}{end}"] = config.restored_weight * loss
        return losses
