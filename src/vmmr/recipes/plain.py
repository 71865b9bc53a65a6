"""Plain fine-tuning: the baseline that everything else is measured against."""

from __future__ import annotations

from vmmr.config import TrainConfig

__all__ = ["plain"]


def plain() -> TrainConfig:
    """AdamW, one cycle, crop and flip, label smoothing."""
    return TrainConfig(method="plain", noise="none")
