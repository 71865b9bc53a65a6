"""GEN: generalised entropy of the likeliest classes.

Source: Liu, Lochman and Zach, CVPR 2023, GEN: pushing the limits of softmax-based out-of-distribution detection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vmmr.unknown.fitted import Fitted

__all__ = ["gen"]


def gen(features: Tensor, logits: Tensor, fitted: Fitted, *, gamma: float = 0.1, classes: int = 100) -> Tensor:
    """sum over the likeliest classes of (p (1 - p))^gamma, [N] >= 0, p = softmax(logits), logits [N, C].

    gamma, classes: as published for ImageNet; where there are fewer classes, all count.

    >>> gen(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]]), Fitted(), gamma=0.5)
    tensor([1.])
    """
    log_p = logits.double().log_softmax(dim=1).topk(min(classes, logits.shape[1]), dim=1).values
    # log(1 - p) by expm1: a sure answer leaves little, and rounding would make it nothing.
    rest = (-torch.expm1(log_p)).clamp(min=1e-300).log()
    return (gamma * (log_p + rest)).exp().sum(dim=1).to(logits.dtype)
