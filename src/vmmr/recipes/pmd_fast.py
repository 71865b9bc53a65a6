"""PMD in our form: one fused step, a noisy student against a clean teacher, started from the teacher's trunk."""

from __future__ import annotations

from vmmr.config import TrainConfig

__all__ = ["pmd_fast"]


def pmd_fast() -> TrainConfig:
    """What `vmmr distil` runs unless told otherwise."""
    return TrainConfig(method="pmd", mode="fast", noise="strong")
