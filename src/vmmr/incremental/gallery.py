"""New classes in seconds: discriminants of features that stay as they are, beside the network's own logits.

    d_c = the discriminant of class c, old or new, of unit features (`vmmr.discriminants`)
    margin_k = d_k - max over old classes c of d_c
    logit_k  = max over old logits + scale * (margin_k - offset)

A new class k is answered where its discriminant leads those of all old classes by more than the offset; elsewhere the
old answer stands. Nothing is descended: one pass over features, one Cholesky factor. The offset is an order statistic
of old images, so that the share of old answers that change is bounded beforehand, with a confidence that is known too.

Sources: class means under one covariance on frozen features, Hayes and Kanan 2020 (arXiv 1909.01520); weights from
normalised features beside trained ones, Qi et al. 2018 (arXiv 1712.07136); the bound, Vovk 2012 (arXiv 1209.2673) and
Angelopoulos and Bates 2021 (arXiv 2107.07511). The margin against old classes is ours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import betaincinv
from torch import Tensor, nn
from torch.nn import functional

from vmmr.discriminants import discriminants, moments
from vmmr.errors import DataError

__all__ = [
    "CONFIDENCE",
    "Gallery",
    "crossfit",
    "exceeding",
    "fit_likelihoods",
    "fit_offset",
    "fit_scale",
    "fold_of",
    "margins",
]

CONFIDENCE = 0.9
"""That what is promised of old images holds, over draws of the images that it was fitted on."""
_MOST = 40.0  # of a logit over the temperature: what lies beyond is rounding
_APART = 100.0  # of all discriminants of an image, as log-likelihoods
_SCALES = 12.0  # natural logarithms that the scale is looked for in


def fold_of(labels: Tensor, groups: NDArray[np.int64], folds: int) -> Tensor:
    """A fold in [0, folds) for every image, int64 [N]: groups stay together, and those of a class are dealt in turn."""
    found = torch.zeros(len(labels), dtype=torch.int64)
    home: dict[int, int] = {}
    dealt: dict[int, int] = {}
    for row, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
        if group not in home:
            home[group] = dealt.get(label, 0) % folds
            dealt[label] = dealt.get(label, 0) + 1
        found[row] = home[group]
    return found


def crossfit(features: Tensor, labels: Tensor, classes: int, fold: Tensor) -> Tensor:
    """The discriminants of each image from the images of all other folds: float64 [N, classes].

    features [N, D], labels int64 [N], fold int64 [N]. As of images that were not seen, for the price of a Cholesky
    factor a fold.
    """
    names = torch.unique(fold).tolist()
    parts = [moments(features[fold == name], labels[fold == name], classes) for name in names]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    unit = functional.normalize(features.double(), dim=1)
    scores = unit.new_zeros(len(unit), classes)
    for name, part in zip(names, parts, strict=True):
        weight, bias = discriminants(whole - part)
        scores[fold == name] = unit[fold == name] @ weight.T + bias
    return scores


def margins(scores: Tensor, old: int) -> Tensor:
    """By how much each new class leads the best of the `old` first ones: [N, C] -> [N, C - old]."""
    return scores[:, old:] - scores[:, :old].amax(dim=1, keepdim=True)


def exceeding(images: int, bound: float, confidence: float | None = CONFIDENCE) -> tuple[int, float]:
    """How many of N old images may exceed an offset, m, and the share of others like them that this promises at most.

    None of the images may have been fitted on. Then the probability that another one, drawn alike, exceeds an offset
    that m of N do is at most one that is distributed as Beta(m + 1, N - m) over draws of the N. m is the largest for
    which its quantile at this confidence, the share, is at most `bound`; of few images m is 0 and the share more.
    confidence None: the mean instead of a quantile, (m + 1) / (N + 1), which about every other draw exceeds.

    Sources: Vovk 2012 (arXiv 1209.2673); Angelopoulos and Bates 2021 (arXiv 2107.07511), section 3.2.
    Raises DataError without images, and for a bound or a confidence out of range.

    >>> [exceeding(n, 0.02, None) for n in (9, 399)]
    [(0, 0.1), (7, 0.02)]
    >>> [(most, round(share, 4)) for most, share in (exceeding(n, 0.02) for n in (9, 399))]
    [(0, 0.2257), (4, 0.0199)]
    """
    if not 0 <= bound < 1 or images < 1:
        raise DataError("a bound in [0, 1) takes old images", got=f"{bound}, {images} images")
    if confidence is not None and not 0 < confidence < 1:
        raise DataError("a confidence lies between 0 and 1", got=confidence, do=f"{CONFIDENCE:g} is usual")
    most = np.arange(min(images, int(bound * (images + 1)) + 1))
    shares = (most + 1) / (images + 1) if confidence is None else betaincinv(most + 1, images - most, confidence)
    over = max(0, int(np.searchsorted(shares, bound + 1e-9, side="right")) - 1)
    return over, float(shares[over])


def fit_offset(lead: Tensor, bound: float, confidence: float | None = CONFIDENCE) -> tuple[float, float]:
    """The lowest offset that few enough old images exceed, and the share of others like them that it promises.

    lead: the highest margin of each of N old images, [N]; none of them may have been fitted on. Others as of
    `exceeding`, which also says what is raised.

    >>> fit_offset(torch.arange(99.0), 0.05, None)
    (94.0, 0.05)
    """
    over, share = exceeding(len(lead), bound, confidence)
    return float(lead.sort(descending=True).values[over]), share


def fit_scale(logits: Tensor, margin: Tensor, labels: Tensor, offset: float, temperature: float) -> float:
    """The scale under which labels are likeliest, as probabilities are read from logits over the temperature.

    logits [N, C] of old classes, margin [N, K] of new ones, labels int64 [N] in [0, C + K): of images that nothing
    was fitted on. The scale stays so small that none of their margins counts for more than 40 units of log-probability.
    """
    best = logits.double().amax(dim=1, keepdim=True)
    apart = margin.double() - offset
    highest = math.log(_MOST * temperature / apart.abs().amax().clamp(min=1e-9).item())

    def unlikely(power: float) -> float:
        new = best + math.exp(power) * apart
        return functional.cross_entropy(torch.cat([logits.double(), new], dim=1) / temperature, labels).item()

    return float(math.exp(minimize_scalar(unlikely, bounds=(highest - _SCALES, highest), method="bounded").x))


def fit_likelihoods(scores: Tensor, labels: Tensor) -> float:
    """The factor that makes of discriminants [N, C] log-likelihoods under which labels, int64 [N], are likeliest.

    Of images that no discriminant was fitted on. The factor stays so small that no two classes are further apart than
    100 units of log-probability: where all images are told rightly, more would always be better.
    """
    exact = scores.double()
    highest = math.log(_APART / (exact.amax(dim=1) - exact.amin(dim=1)).amax().clamp(min=1e-9).item())

    def unlikely(power: float) -> float:
        return functional.cross_entropy(math.exp(power) * exact, labels).item()

    return float(math.exp(minimize_scalar(unlikely, bounds=(highest - _SCALES, highest), method="bounded").x))


class Gallery(nn.Module):
    """The logits of new classes, from old logits and features. reference [R, D], reference_bias [R]: discriminants of
    old classes; weight [K, D], bias [K]: of the new ones; scale, offset: scalars."""

    reference: Tensor
    reference_bias: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, old: int, new: int, width: int) -> None:
        super().__init__()
        for name, count in (("reference", old), ("weight", new)):
            self.register_buffer(name, torch.zeros(count, width))
        for name, count in (("reference_bias", old), ("bias", new)):
            self.register_buffer(name, torch.zeros(count))
        for name in ("scale", "offset"):
            self.register_buffer(name, torch.zeros(()))

    def margins(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        unit = functional.normalize(features, dim=1)
        old = functional.linear(unit, self.reference, self.reference_bias).amax(dim=1, keepdim=True)
        return functional.linear(unit, self.weight, self.bias) - old

    def forward(self, logits: Tensor, margin: Tensor) -> Tensor:
        """Old logits [B, C] and `margins` [B, K] -> [B, C + K]."""
        new = logits.amax(dim=1, keepdim=True) + self.scale * (margin - self.offset)
        return torch.cat([logits, new], dim=1)
