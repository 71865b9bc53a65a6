"""Make and class from one plain trunk, under strong noise: a sibling head for each."""

from __future__ import annotations

from vmmr.config import TrainConfig

__all__ = ["levels"]


def levels() -> TrainConfig:
    """What `vmmr train --recipe levels` runs."""
    return TrainConfig(noise="strong", levels=["make", "class"])
