"""The highest sum of a class's logit and of half its linear discriminant: both readings of the features must agree.

A classifier learned to part its own classes, and so do linear discriminants (`vmmr.discriminants`), but by the spread
of all images about their means, which the classifier never saw. They err on different strangers. The combination is
ours; logits and a generative reading of the features also meet in ViM (`vmmr.unknown.vim`), as a distance.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vmmr.discriminants import discriminants, moments
from vmmr.errors import ConfigError
from vmmr.unknown.fitted import Head
from vmmr.unknown.max_logit import max_logit
from vmmr.unknown.statistics import Statistics

__all__ = ["discriminant_max_logit", "fit_discriminant_max_logit"]


def fit_discriminant_max_logit(statistics: Statistics, share: float = 0.5) -> Head:
    """weight [C, D] and bias [C] of discriminants of the bank's images, less what all classes share, so large that the
    highest of an image varies over the bank by `share` of what the highest logit does.

    A class without an image in the bank has none: 0, what classes say on average. Raises ConfigError for a share below
    0, DataError where all images of each class are alike.
    """
    if not 0 <= share < float("inf"):
        raise ConfigError("the share of discriminants is a number, 0 or more", got=share)
    known = moments(statistics.bank, statistics.bank_label, len(statistics.count))
    weight, bias = discriminants(known)
    there = known.count > 0
    weight, bias = weight - weight[there].mean(dim=0), bias - bias[there].mean()
    weight, bias = weight.where(there[:, None], 0.0), bias.where(there, 0.0)
    told = functional.normalize(statistics.bank.double(), dim=1) @ weight.T + bias
    spread = told.amax(dim=1).std(correction=0).clamp(min=1e-12)
    factor = share * statistics.bank_logits.amax(dim=1).std(correction=0) / spread
    return Head((factor * weight).float(), (factor * bias).float())


def discriminant_max_logit(features: Tensor, logits: Tensor, fitted: Head) -> Tensor:
    """-max_c (logits_c + w_c f / |f| + b_c), [N], of features f [N, D] and logits [N, C]."""
    told = functional.linear(functional.normalize(features, dim=1), fitted.weight, fitted.bias)
    return max_logit(features, logits + told, fitted)
