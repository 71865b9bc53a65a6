"""Maximum logit and, half as weighty, how well the features point where those of some known class lie.

Ours. A logit is a length times an angle, taken to a weight vector that training chose; the angle to a class's mean
features tells what the logit does not. Measured around the centre of all images it is sharp: behind a ReLU all features
point the same way. HIMPLoS (arXiv 2310.18104) multiplies by such a cosine, around 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from torch.nn import functional

from vmmr.unknown.fitted import Fitted, Shape
from vmmr.unknown.max_logit import max_logit
from vmmr.unknown.statistics import Statistics

__all__ = ["PrototypeFitted", "fit_max_logit_prototype", "max_logit_prototype"]

_SHARE = 0.5
"""Of the spread of the maximum logit: what the cosine may add. Anything from 0.25 to 1 did as well."""


@dataclass(frozen=True)
class PrototypeFitted(Fitted):
    """centre: mean features of all images. prototype: of each class, around it, of length 1. scale: what a cosine of 1
    is worth in logits."""

    centre: Annotated[Tensor, Shape("D")]
    prototype: Annotated[Tensor, Shape("C", "D")]
    scale: Annotated[Tensor, Shape()]


def fit_max_logit_prototype(statistics: Statistics) -> PrototypeFitted:
    """Prototypes over all training images; scale = 0.5 std(max logit) / std(best cosine), over the bank."""
    centre = statistics.centre.float()
    prototype = functional.normalize(statistics.mean.float() - centre, dim=1)
    best = _best_cosine(statistics.bank, centre, prototype).double()
    spread = statistics.bank_logits.amax(dim=1).std(correction=0)
    scale = _SHARE * spread / best.std(correction=0).clamp(min=1e-6)
    return PrototypeFitted(centre, prototype, scale.float())


def max_logit_prototype(features: Tensor, logits: Tensor, fitted: PrototypeFitted) -> Tensor:
    """-max_k logits_k - scale max_c cos(f - centre, mean_c - centre), [N], of features [N, D] and logits [N, C]."""
    return max_logit(features, logits, fitted) - fitted.scale * _best_cosine(features, fitted.centre, fitted.prototype)


def _best_cosine(features: Tensor, centre: Tensor, prototype: Tensor) -> Tensor:
    return (functional.normalize(features - centre, dim=1) @ prototype.T).amax(dim=1)
