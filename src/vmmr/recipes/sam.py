"""Plain fine-tuning with sharpness-aware minimisation (Foret et al., ICLR 2021): twice the compute a step."""

from __future__ import annotations

from vmmr.config import TrainConfig
from vmmr.recipes.plain import plain

__all__ = ["sam"]


def sam() -> TrainConfig:
    """`plain` with rho 0.05, as PMAL uses it."""
    return plain().with_(sam_rho=0.05)
