"""Weight aligning: replay with distillation, then the weights of new classes made as long as those of old ones.

Source: Zhao et al., Maintaining Discrimination and Fairness in Class Incremental Learning, CVPR 2020
(arXiv 1911.07053).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["aligned_weights", "distilled_cross_entropy"]


def distilled_cross_entropy(logits: Tensor, labels: Tensor, old: Tensor, *, temperature: float = 2.0) -> Tensor:
    """s KD + (1 - s) CE with s the share of old classes: their softmax at a temperature is to stay what it was.

    logits [B, C], labels int64 [B], old [B, those before].

    >>> round(distilled_cross_entropy(torch.zeros(1, 4), torch.tensor([3]), torch.zeros(1, 2)).item(), 4)
    1.0397
    """
    before = old.shape[1]
    share = before / logits.shape[1]
    kept = (old / temperature).softmax(dim=1)
    said = (logits[:, :before] / temperature).log_softmax(dim=1)
    return share * -(kept * said).sum(dim=1).mean() + (1 - share) * functional.cross_entropy(logits, labels)


def aligned_weights(weight: Tensor, old: int) -> Tensor:
    """Weights [C, D], those from `old` on brought to the mean length of the first `old`; biases stay.

    >>> aligned_weights(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), 1)
    tensor([[3., 4.],
            [0., 5.]])
    """
    length = weight.norm(dim=1)
    return torch.cat([weight[:old], weight[old:] * (length[:old].mean() / length[old:].mean())])
