"""The highest logit, times how near the nearest prototype is: both must speak for a known vehicle.

NNGuide (`vmmr.unknown.nnguide`) with the highest logit for the energy, and the nearest prototype of a reduced bank
(`vmmr.unknown.knn_pca`) for the mean of ten images. Like the smoothing of HIMPLoS (`vmmr.unknown.himplos`), a cosine
shrinks logits, but one to the nearest of several centres of any class. The combination is ours.
"""

from __future__ import annotations

from torch import Tensor

from vmmr.unknown.knn_pca import ReducedKNNFitted, nearest_cosine
from vmmr.unknown.max_logit import max_logit

__all__ = ["guided_max_logit"]


def guided_max_logit(features: Tensor, logits: Tensor, fitted: ReducedKNNFitted) -> Tensor:
    """max_logit of logits [N, C], times the cosine of features [N, D] to the nearest prototype, at least 0: [N].

    Logits are taken for sums that are mostly above 0, as those of a linear layer: where all of them are below, a small
    cosine makes an image less strange.
    """
    return max_logit(features, logits, fitted) * nearest_cosine(features, fitted).clamp(min=0)
