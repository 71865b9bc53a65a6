"""NNGuide: energy, weighed by how near confident known images are.

Source: Park, Jung and Teoh, ICCV 2023 (arXiv 2309.14888).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.unknown.energy import energy
from vmmr.unknown.knn import KNNFitted, nearest
from vmmr.unknown.statistics import Statistics

__all__ = ["fit_nnguide", "nnguide"]


def fit_nnguide(statistics: Statistics) -> KNNFitted:
    """The bank, each image's features brought to the length log sum_k exp(logits_k), its confidence."""
    length = torch.logsumexp(statistics.bank_logits, dim=1)
    bank = functional.normalize(statistics.bank.double(), dim=1) * length[:, None]
    return KNNFitted(bank.float(), statistics.bank_label)


def nnguide(features: Tensor, logits: Tensor, fitted: KNNFitted, *, k: int = 10) -> Tensor:
    """energy(logits) times the mean of the k largest products of the direction of features [N, D] with the bank: [N].

    k: 10 as published for a bank of 1 % of ImageNet.
    """
    return energy(features, logits, fitted) * nearest(features, fitted.bank, k).mean(dim=1)
