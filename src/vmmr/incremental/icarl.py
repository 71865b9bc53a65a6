"""iCaRL: each output a yes or no, old ones as they were; answers by the nearest mean of exemplars.

Source: Rebuffi et al., CVPR 2017 (arXiv 1611.07725), algorithms 1 and 3. Memory is herded (`vmmr.incremental.memory`),
and answers are those of `vmmr.incremental.prototypes`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["icarl_loss"]


def icarl_loss(logits: Tensor, labels: Tensor, old: Tensor) -> Tensor:
    """Binary cross-entropy, summed over classes, mean over images: old classes to be what they were, sigmoid(old), new
    ones to be 1 for the label and 0 for others.

    logits [B, C], labels int64 [B], old [B, those before].

    >>> round(icarl_loss(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(1, 1)).item(), 4)
    1.3863
    """
    target = functional.one_hot(labels, logits.shape[1]).to(logits)
    target = torch.cat([old.sigmoid(), target[:, old.shape[1] :]], dim=1)
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1).mean()
