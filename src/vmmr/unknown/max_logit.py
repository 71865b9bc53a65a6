"""Maximum logit: as MSP, but what all logits have in common counts.

Source: Hendrycks et al., ICML 2022 (arXiv 1911.11132).
"""

from __future__ import annotations

from torch import Tensor

from vmmr.unknown.fitted import Fitted

__all__ = ["max_logit"]


def max_logit(features: Tensor, logits: Tensor, fitted: Fitted) -> Tensor:
    """-max_k logits_k, [N], of logits [N, C].

    >>> import torch
    >>> max_logit(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), Fitted())
    tensor([-3.])
    """
    return -logits.amax(dim=1)
