"""One named loss a level, each over the images whose label is known there.

Source: the multi-task loss of Manole and Diosan, arXiv 2603.01746, L = sum over levels of weight * CE, with the
smoothed labels of all our classifiers. The marginal likelihood of the make and the year as a number are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.levels import NUMBERS
from vmmr.models.heads.hierarchy import log_marginal
from vmmr.objectives.classify import smoothed_kl

__all__ = ["level_losses", "marginal_nll", "year_loss"]


def level_losses(
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    *,
    smoothing: float = 0.1,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """The loss of each level by name: `smoothed_kl`, or `year_loss` where the level is a number, times its weight.

    logits: float [B, width] by level. labels: int64 [B] by level, -1 for unknown. weights: 1 where none is given. A
    level of which no image of the batch is labelled has no entry.

    >>> logits = {"make": torch.zeros(2, 4), "model": torch.zeros(2, 8)}
    >>> labels = {"make": torch.tensor([1, 2]), "model": torch.tensor([-1, -1])}
    >>> {name: round(loss.item(), 4) for name, loss in level_losses(logits, labels, smoothing=0.0).items()}
    {'make': 1.3863}
    """
    losses = {}
    for level, answered in logits.items():
        known = labels[level] >= 0
        if not known.any():
            continue
        told, truth = answered[known], labels[level][known]
        loss = year_loss(told, truth) if level in NUMBERS else smoothed_kl(told, truth, smoothing)
        losses[level] = (1.0 if weights is None else weights.get(level, 1.0)) * loss
    return losses


def marginal_nll(logits: Tensor, parents: Tensor, labels: Tensor, groups: int) -> Tensor:
    """Mean of -log p(make) where p(make) is the sum of p(model) over its models: the make learned without a head.

    logits: [B, K] of the finer level; parents: int64 [K]; labels: int64 [B] at the coarser level, -1 for unknown, not
    all of them; groups: width of the coarser level.

    >>> p = torch.tensor([[0.5, 0.2, 0.3]])
    >>> round(marginal_nll(p.log(), torch.tensor([0, 0, 1]), torch.tensor([0]), 2).item(), 4)
    0.3567
    """
    log_p = log_marginal(functional.log_softmax(logits, dim=1), parents, groups)
    return functional.nll_loss(log_p, labels, ignore_index=-1)


def year_loss(values: Tensor, years: Tensor) -> Tensor:
    """Mean Huber loss of years as numbers: quadratic up to one year off, then linear, in decades.

    values: [B, 1] as `vmmr.levels.year_value` scales them; years: int64 [B].

    >>> year_loss(torch.tensor([[1.2]]), torch.tensor([2012])).item()
    0.0
    """
    # In float32 at least: bfloat16 cannot tell neighbouring years apart.
    told = values[:, 0].to(torch.promote_types(values.dtype, torch.float32))
    return functional.smooth_l1_loss(told, (years - 2000).to(told.dtype) / 10, beta=0.1)
