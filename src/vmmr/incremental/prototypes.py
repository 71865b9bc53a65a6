"""The nearest class mean: a class is the mean of its features, and needs no training.

Source: Mensink et al., TPAMI 2013; with features of length 1, as in iCaRL (arXiv 1611.07725, algorithm 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["class_means", "cosines"]


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[C, D] of length 1: the direction of the mean of a class's features, each of length 1; 0 where there is none.

    >>> class_means(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), 2)
    tensor([[1., 0.],
            [0., 1.]])
    """
    unit = functional.normalize(features, dim=1)
    sums = torch.zeros(classes, features.shape[1], dtype=unit.dtype, device=unit.device)
    return functional.normalize(sums.index_add(0, labels, unit), dim=1)


def cosines(features: Tensor, means: Tensor) -> Tensor:
    """[N, C]: features [N, D] against means [C, D] of length 1. The largest is the answer, and its negative how unknown
    an image is."""
    return functional.normalize(features, dim=1) @ means.T
