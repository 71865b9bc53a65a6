"""Energy: the soft maximum of the logits.

Source: Liu et al., NeurIPS 2020 (arXiv 2010.03759), eq. 4 at temperature 1.
"""

from __future__ import annotations

from torch import Tensor

from vmmr.unknown.fitted import Fitted

__all__ = ["energy"]


def energy(features: Tensor, logits: Tensor, fitted: Fitted) -> Tensor:
    """-log sum_k exp(logits_k), [N], of logits [N, C].

    >>> import torch
    >>> energy(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]]), Fitted())
    tensor([-0.6931])
    """
    return -logits.logsumexp(dim=1)
