"""GradNorm: learned weights that pull all gradients towards one length, longer for losses that have fallen less.

    L_grad(w) = sum_i | w_i ||g_i|| - mean_j(w_j ||g_j||) r_i^a |      r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0))

Source: Chen et al., ICML 2018 (arXiv 1711.02257), eq. 2 and algorithm 1. Weights are T softmax(s), as in LibMTL, so
that they stay positive and sum to T. s follows a plain gradient step on L_grad of its own, apart from the network's
optimiser, and L_grad is divided by the mean length, so that the rate has no unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

__all__ = ["GradNorm", "gradnorm_loss", "training_rates"]


def training_rates(losses: Tensor, first: Tensor) -> Tensor:
    """Relative inverse training rates r [T] from losses and first losses [T]: above 1 where a loss has fallen less.

    >>> training_rates(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])).tolist()
    [0.5, 1.5]
    """
    share = losses.clamp_min(0) / first.clamp_min(1e-12)
    return share / share.mean().clamp_min(1e-12)


def gradnorm_loss(weights: Tensor, norms: Tensor, rates: Tensor, asymmetry: float = 1.5) -> Tensor:
    """L_grad, a scalar, over its mean length; weights, norms and rates are [T]. The target is held constant.

    >>> gradnorm_loss(torch.ones(2), torch.tensor([1.0, 3.0]), torch.ones(2)).item()
    1.0
    """
    lengths = weights * norms
    mean = lengths.mean().detach()
    return (lengths - mean * rates**asymmetry).abs().sum() / mean.clamp_min(1e-12)


class GradNorm(Weighting):
    """Weights by gradient steps on `gradnorm_loss`.

    asymmetry: a, 0 for equal lengths; rate: of the steps of s, which are in logarithms of weights. First losses are
    those of the first batch that has them. Raises ConfigError when one of them is out of range.
    """

    scores: Tensor
    first: Tensor

    def __init__(self, names: Sequence[str], asymmetry: float = 1.5, rate: float = 0.025) -> None:
        super().__init__(names)
        if not (asymmetry >= 0 and rate > 0):
            got = f"asymmetry={asymmetry}, rate={rate}"
            raise ConfigError("GradNorm is out of range", got=got, do="pass asymmetry >= 0 and rate > 0")
        self.asymmetry, self.rate = asymmetry, rate
        self.register_buffer("scores", torch.zeros(len(names)))
        self.register_buffer("first", torch.full((len(names),), math.nan))

    @property
    def needs_gradients(self) -> bool:
        """Always."""
        return True

    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T] as they stand; then they learn from this batch."""
        index, norms = seen.index, seen.norms
        first = self.first[index]
        first = torch.where(first.isnan(), seen.losses, first)
        with torch.enable_grad():
            scores = self.scores[index].detach().requires_grad_()
            weights = len(index) * torch.softmax(scores, dim=0)
            loss = gradnorm_loss(weights, norms, training_rates(seen.losses, first), self.asymmetry)
            (slope,) = torch.autograd.grad(loss, scores)
        self.first = self.first.index_copy(0, index, first)
        self.scores = self.scores.index_copy(0, index, scores.detach() - self.rate * slope)
        return weights.detach()
