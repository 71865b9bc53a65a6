"""Outputs and targets -> named scalars. One paper a file; everything here is a plain function of tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vmmr.objectives.classify import smoothed_kl
from vmmr.objectives.consistency import jensen_shannon
from vmmr.objectives.distil import ensemble_mse, feature_mse, relative_feature_mse
from vmmr.objectives.hierarchy import level_losses, marginal_nll, year_loss
from vmmr.objectives.restore import RESTORATION, charbonnier

__all__ = [
    "OBJECTIVES",
    "RESTORATION",
    "charbonnier",
    "ensemble_mse",
    "feature_mse",
    "jensen_shannon",
    "level_losses",
    "marginal_nll",
    "relative_feature_mse",
    "smoothed_kl",
    "year_loss",
]

OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "charbonnier": charbonnier,
    "ensemble_mse": ensemble_mse,
    "feature_mse": feature_mse,
    "jensen_shannon": jensen_shannon,
    "marginal_nll": marginal_nll,
    "relative_feature_mse": relative_feature_mse,
    "smoothed_kl": smoothed_kl,
    "year_loss": year_loss,
}
