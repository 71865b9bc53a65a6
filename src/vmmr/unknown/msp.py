"""Maximum softmax probability: the less sure of its answer, the stranger.

Source: Hendrycks and Gimpel, ICLR 2017 (arXiv 1610.02136).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vmmr.unknown.fitted import Fitted

__all__ = ["msp"]


def msp(features: Tensor, logits: Tensor, fitted: Fitted) -> Tensor:
    """1 - max_k softmax(logits)_k, [N] in [0, 1), of logits [N, C]. Adding a number to all logits changes nothing.

    >>> msp(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]]), Fitted())
    tensor([0.5000])
    """
    # In float64: a rest of 1e-9 beside 1 still ranks one sure answer behind another.
    sure = logits.double().log_softmax(dim=1).amax(dim=1)
    return -torch.expm1(sure).to(logits.dtype)
