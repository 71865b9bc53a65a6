"""PMAL to the letter (Liu 2024, arXiv 2401.14336): four SAM steps a batch, full forwards, published heads and noise."""

from __future__ import annotations

from vmmr.config import TrainConfig

__all__ = ["pmal_published"]


def pmal_published() -> TrainConfig:
    """The authors' settings for ResNet-50 on Stanford Cars."""
    return TrainConfig(
        method="pmal",
        mode="published",
        backbone="resnet50",
        size=448,
        crop=448 / 550,
        padding=8,
        epochs=200,
        batch_size=8,
        optimizer="sgd",
        lr=2e-3,
        trunk_lr=2e-4,
        weight_decay=5e-4,
        schedule="epoch_cosine",
        sam_rho=0.05,
        noise="published",
        heads="published",
        dense_zero_grads=True,
        channels_last=False,
    )
