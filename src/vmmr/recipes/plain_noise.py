"""Plain fine-tuning with the fast teacher's noise as augmentation: the honest rival of PMAL and PMD."""

from __future__ import annotations

from vmmr.config import TrainConfig
from vmmr.recipes.plain import plain

__all__ = ["plain_noise"]


def plain_noise() -> TrainConfig:
    """`plain` on the noisy images."""
    return plain().with_(noise="strong")
