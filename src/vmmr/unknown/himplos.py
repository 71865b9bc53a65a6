"""HIMPLoS: features masked by the classifier's own weights, logits shrunk towards nothing away from the prototype.

Source: Sun et al. 2023 (arXiv 2310.18104), as the authors' evaluation code runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError
from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Fitted, Head, Shape
from vmmr.unknown.statistics import Statistics

__all__ = ["HIMPLoSFitted", "fit_himplos", "himplos"]


@dataclass(frozen=True)
class HIMPLoSFitted(Head):
    """least: the smallest weight of each class that its mask keeps. prototype: mean features of each class. clip: where
    features are cut off; infinity for nowhere."""

    least: Annotated[Tensor, Shape("C")]
    prototype: Annotated[Tensor, Shape("C", "D")]
    clip: Annotated[Tensor, Shape(finite=False)]


def fit_himplos(
    statistics: Statistics, percentile: float = 30.0, clip_percentile: float | None = 90.0
) -> HIMPLoSFitted:
    """Masks, prototypes and the cut.

    percentile: the share of weights of each class, signed, that is masked away, in [0, 100): 30 as published for
    ImageNet, 60 for CIFAR; 0 keeps all. clip_percentile: features are cut off at this percentile of the training
    images' activations, as ReAct's; None: nowhere. `vmmr.evaluation.openset.choose_mask` picks both by validation
    images. Prototypes are means over all training images of a class, those answered wrong too.

    Raises ConfigError for a percentile out of range.
    """
    if not 0 <= percentile < 100:
        raise ConfigError("a mask keeps some weights", got=percentile, do="pass a percentile in [0, 100)")
    weight = statistics.weight.float().numpy()
    bound = np.percentile(weight, percentile, axis=1, keepdims=True)
    least = np.where(weight >= bound, weight, np.inf).min(axis=1)
    clip = np.inf if clip_percentile is None else statistics.percentile(clip_percentile)
    return HIMPLoSFitted(
        weight=statistics.weight.float(),
        bias=statistics.bias.float(),
        least=torch.from_numpy(least),
        prototype=statistics.mean.float(),
        clip=torch.tensor(clip, dtype=torch.float32),
    )


def himplos(
    features: Tensor,
    logits: Tensor,
    fitted: HIMPLoSFitted,
    *,
    smooth: bool = True,
    end: Callable[[Tensor, Tensor, Fitted], Tensor] = energy,
) -> Tensor:
    """end(s (W g + b)), [N], of features [N, D] and logits [N, C].

    c = argmax of the logits as they are, so the answer never changes; g = min(f * mask_c, clip); s = the cosine of f
    and the prototype of c, at least 0 where features may be negative. As s goes to 0 the energy goes to -log C.
    smooth: False for s = 1. end: what judges the logits, such as `energy`, `max_logit`, `msp`.
    """
    answer = logits.argmax(dim=1)
    kept = fitted.weight[answer] >= fitted.least[answer, None]
    shown = functional.linear((features * kept).minimum(fitted.clip), fitted.weight, fitted.bias)
    if smooth:
        cosine = functional.cosine_similarity(features, fitted.prototype[answer], dim=1)
        shown = shown * cosine.clamp(min=0)[:, None]
    return end(features, shown, fitted)
