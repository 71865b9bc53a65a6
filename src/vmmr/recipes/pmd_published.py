"""PMD to the letter (Liu 2024, arXiv 2401.14336): feature and logit steps for half the epochs, labels alone after."""

from __future__ import annotations

from vmmr.config import TrainConfig
from vmmr.recipes.pmal_published import pmal_published

__all__ = ["pmd_published"]


def pmd_published() -> TrainConfig:
    """The authors' settings for ResNet-50 on Stanford Cars: the trunk learns at the heads' rate."""
    return pmal_published().with_(
        method="pmd",
        trunk_lr=2e-3,
        noise="none",
        feature_weight=100.0,
        relative_features=False,
        student_init="fresh",
        distil_share=0.5,
    )
