"""SCALE: ASH-S without putting anything to 0.

Source: Xu et al., ICLR 2024 (arXiv 2310.00227).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vmmr.unknown.ash import highest
from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Head

__all__ = ["scale"]


def scale(features: Tensor, logits: Tensor, fitted: Head, *, percentile: float = 85.0) -> Tensor:
    """energy(W (exp(r) f) + b), [N]: r the ratio of the sum of features to that of the highest, see `ash.highest`.

    percentile: 85 as published for ImageNet.
    """
    _, ratio = highest(features, percentile)
    return energy(features, functional.linear(features * ratio.exp()[:, None], fitted.weight, fitted.bias), fitted)
