"""Homoscedastic uncertainty: each loss is divided by a learned variance.

    sum_i  e^{-s_i} L_i + s_i / 2        classification, s = log sigma^2
    sum_i  e^{-s_i} L_i / 2 + s_i / 2    regression

Source: Kendall, Gal and Cipolla, CVPR 2018 (arXiv 1705.07115), eq. 7 and 10. Many implementations use the second form
for every loss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

__all__ = ["Uncertainty", "uncertainty"]


def uncertainty(log_variance: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """Weights factor x e^{-s} from log variances s, of any shape; factor is 1 of classification, 1/2 of regression.

    >>> uncertainty(torch.zeros(2), torch.tensor([1.0, 0.5])).tolist()
    [1.0, 0.5]
    """
    return factor * torch.exp(-log_variance)


class Uncertainty(Weighting):
    """Learned log variances, 0 at first, one a name.

    regression: names of the losses that have the form of a regression. Give `parameters()` to the optimiser, without
    weight decay. Raises ConfigError for an unknown name.
    """

    learns = True
    factor: Tensor

    def __init__(self, names: Sequence[str], regression: Collection[str] = ()) -> None:
        super().__init__(names)
        if not set(regression) <= set(names):
            raise ConfigError("unknown regression losses", got=sorted(regression), do=f"choose from {list(names)}")
        self.log_variance = nn.Parameter(torch.zeros(len(names)))
        self.register_buffer("factor", torch.tensor([0.5 if name in regression else 1.0 for name in names]))

    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T] with a gradient to the log variances."""
        return uncertainty(self.log_variance[seen.index], self.factor[seen.index])

    def penalty(self, seen: Observation) -> Tensor:
        """Half the sum of the log variances of the losses seen."""
        return self.log_variance[seen.index].sum() / 2
