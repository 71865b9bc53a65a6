"""How far the answers to several views of one image are apart.

Source: the Jensen-Shannon consistency of AugMix (Hendrycks et al., ICLR 2020, arXiv 1912.02781, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["jensen_shannon"]


def jensen_shannon(logits: Sequence[Tensor]) -> Tensor:
    """Mean over the batch of (1/V) sum_v KL(p_v || m), m the mean of the views' probabilities p_v.

    logits: one float [B, N] a view. Returns a scalar in [0, log V]; gradients flow through all views.

    >>> sure = torch.tensor([[100.0, 0.0]])
    >>> round(jensen_shannon([sure, sure.flip(1)]).item(), 4)
    0.6931
    """
    log_p = torch.stack([functional.log_softmax(view, dim=-1) for view in logits])
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_mean)).sum(-1).mean()
