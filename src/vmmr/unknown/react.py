"""ReAct: energy of logits from features cut off above, as strangers activate some of them too much.

Source: Sun, Guo and Li, NeurIPS 2021 (arXiv 2111.12797).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Head, Shape
from vmmr.unknown.statistics import Statistics

__all__ = ["ReActFitted", "fit_react", "react"]


@dataclass(frozen=True)
class ReActFitted(Head):
    """The classifier, and where features are cut off; infinity for nowhere."""

    clip: Annotated[Tensor, Shape(finite=False)]


def fit_react(statistics: Statistics, percentile: float = 90.0) -> ReActFitted:
    """The cut at this percentile of the training images' activations; 90 as published."""
    clip = torch.tensor(statistics.percentile(percentile), dtype=torch.float32)
    return ReActFitted(statistics.weight.float(), statistics.bias.float(), clip)


def react(features: Tensor, logits: Tensor, fitted: ReActFitted) -> Tensor:
    """energy(W min(f, clip) + b), [N], of features [N, D]; with an infinite clip it is the energy."""
    shown = functional.linear(features.minimum(fitted.clip), fitted.weight, fitted.bias)
    return energy(features, shown, fitted)
