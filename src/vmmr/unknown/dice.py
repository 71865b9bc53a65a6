"""DICE: energy of logits from the few weights that contribute to known images.

Source: Sun and Li, ECCV 2022 (arXiv 2111.09805).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Head
from vmmr.unknown.statistics import Statistics

__all__ = ["dice", "fit_dice"]


def fit_dice(statistics: Statistics, percentile: float = 90.0) -> Head:
    """The classifier with all weights at 0 but those whose mean contribution w_ck * E[f_k] is above this percentile of
    all of them; 90 as published for CIFAR."""
    contribution = statistics.weight * statistics.centre
    kept = contribution > float(np.percentile(contribution.numpy(), percentile))
    return Head(torch.where(kept, statistics.weight, 0.0).float(), statistics.bias.float())


def dice(features: Tensor, logits: Tensor, fitted: Head) -> Tensor:
    """energy((M * W) f + b), [N], of features [N, D]; fitted: the sparse classifier of `fit_dice`."""
    return energy(features, functional.linear(features, fitted.weight, fitted.bias), fitted)
