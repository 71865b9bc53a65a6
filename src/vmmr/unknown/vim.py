"""ViM: energy, and how far the features lie outside of the space that known images fill.

Source: Wang et al., CVPR 2022 (arXiv 2203.10807).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vmmr.errors import ConfigError
from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Fitted, Shape
from vmmr.unknown.statistics import Statistics

__all__ = ["ViMFitted", "fit_vim", "vim"]


@dataclass(frozen=True)
class ViMFitted(Fitted):
    """origin: where all logits are as near 0 as can be. null: an orthonormal basis of what known images hardly fill.
    alpha: what makes a distance in it as large as a maximum logit."""

    origin: Annotated[Tensor, Shape("D")]
    null: Annotated[Tensor, Shape("D", "R")]
    alpha: Annotated[Tensor, Shape()]


def fit_vim(statistics: Statistics, dimension: int | None = None) -> ViMFitted:
    """origin = -pinv(W) b; null spans all but the `dimension` strongest directions of the features around it.

    dimension: by default 1000 of 2048 features or more and 512 of 768 or more, as the authors; of fewer, half.
    alpha: mean maximum logit over mean distance, over the bank. Raises ConfigError for a dimension out of range.
    """
    width = len(statistics.centre)
    if dimension is None:
        dimension = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    if not 0 <= dimension < width:
        raise ConfigError("ViM's principal space is smaller than the features'", got=dimension, do=f"0 to {width - 1}")
    origin = -torch.linalg.pinv(statistics.weight) @ statistics.bias
    away = statistics.centre - origin
    _, directions = torch.linalg.eigh(statistics.total + torch.outer(away, away))  # weakest first
    null = directions[:, : width - dimension].contiguous()
    distance = ((statistics.bank.double() - origin) @ null).norm(dim=1).mean().clamp(min=1e-12)
    alpha = statistics.bank_logits.amax(dim=1).mean() / distance
    return ViMFitted(origin.float(), null.float(), alpha.float())


def vim(features: Tensor, logits: Tensor, fitted: ViMFitted) -> Tensor:
    """alpha |null^T (f - origin)| + energy(logits), [N], of features [N, D]."""
    residual: Tensor = ((features - fitted.origin) @ fitted.null).norm(dim=1)
    return fitted.alpha * residual + energy(features, logits, fitted)
