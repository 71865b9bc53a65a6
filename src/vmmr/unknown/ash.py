"""ASH-S: most features are put to 0, and the rest grows by what was lost.

Source: Djurisic et al., ICLR 2023 (arXiv 2209.09858), algorithm ASH-S.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Head
from vmmr.unknown.statistics import Statistics

__all__ = ["ash", "fit_head", "highest"]


def fit_head(statistics: Statistics) -> Head:
    """The classifier itself."""
    return Head(statistics.weight.float(), statistics.bias.float())


def highest(features: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Each image's features above its own percentile, all others 0, [N, D]; and the ratio [N] of the sum of all to the
    sum of those, at least 1.

    n - round(n * percentile / 100) features are kept. Only what is above 0 counts in the sums, which changes nothing
    behind a ReLU; where nothing is above 0 the ratio is 1.

    >>> highest(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 50)
    (tensor([[0., 0., 3., 4.]]), tensor([1.4286]))
    """
    width = features.shape[1]
    values, places = features.topk(max(1, width - int(np.round(width * percentile / 100))), dim=1)
    kept = torch.zeros_like(features).scatter(1, places, values)
    whole, part = features.clamp(min=0).sum(dim=1), values.clamp(min=0).sum(dim=1)
    return kept, torch.where(part > 0, whole / torch.where(part > 0, part, 1), 1)


def ash(features: Tensor, logits: Tensor, fitted: Head, *, percentile: float = 90.0) -> Tensor:
    """energy(W (exp(r) f') + b), [N]: f' the highest features, r the ratio of sums, see `highest`.

    percentile: 90 as published for ImageNet.
    """
    kept, ratio = highest(features, percentile)
    return energy(features, functional.linear(kept * ratio.exp()[:, None], fitted.weight, fitted.bias), fitted)
