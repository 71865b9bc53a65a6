"""PMAL in our form: lean heads, one fused step a batch, strong noise on standardised images, no SAM."""

from __future__ import annotations

from vmmr.config import TrainConfig

__all__ = ["pmal_fast"]


def pmal_fast() -> TrainConfig:
    """What `vmmr train --recipe pmal_fast` runs."""
    return TrainConfig(method="pmal", mode="fast", noise="strong", statistics="image", heads="lean")
