"""Classification with smoothed targets, as a Kullback-Leibler divergence.

The target q puts `1 - smoothing` on the true class and spreads `smoothing` over the other N - 1. Its gradient is that
of `torch.nn.functional.cross_entropy(label_smoothing=smoothing * N / (N - 1))`; the value is lower by the entropy of q,
so that a perfect answer scores 0.

Source: the label smoothing of PMAL (Liu 2024, arXiv 2401.14336), as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmmr.errors import ConfigError

__all__ = ["SmoothedKL", "smoothed_kl"]


def smoothed_kl(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean over the batch of KL(q || softmax(logits)).

    logits: float [B, N]; labels: int64 [B] in 0..N-1; smoothing in [0, 1). Returns a scalar >= 0.

    >>> round(smoothed_kl(torch.zeros(1, 2), torch.tensor([0]), smoothing=0.5).item(), 6)
    0.0
    """
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError("label smoothing out of range", got=smoothing, do="pass a value in [0, 1)")
    classes = logits.shape[-1]
    log_p = functional.log_softmax(logits, dim=-1)
    if smoothing == 0.0 or classes == 1:
        return functional.nll_loss(log_p, labels)
    q = torch.full_like(log_p, smoothing / (classes - 1))
    q.scatter_(-1, labels.unsqueeze(-1), 1.0 - smoothing)
    return functional.kl_div(log_p, q, reduction="batchmean")


class SmoothedKL(nn.Module):
    """`smoothed_kl` with its smoothing fixed."""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, N], labels [B] -> scalar."""
        return smoothed_kl(logits, labels, self.smoothing)
