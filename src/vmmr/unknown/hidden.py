"""Strangers made of known images: each judged by the network as if it had never heard of the image's own class.

They need no image of anything unknown, so that what separates known from unknown can be chosen on validation images
alone. They are nearer to the known than true strangers of the same kind: the features were trained with the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vmmr.errors import DataError
from vmmr.unknown.fitted import Fitted

__all__ = ["hidden_scores"]


def hidden_scores(
    score: Callable[[Tensor, Tensor, Any], Tensor], features: Tensor, logits: Tensor, labels: Tensor, fitted: Fitted
) -> Tensor:
    """The scores [N] of features [N, D] and logits [N, C], each without the class of its label, int64 [N].

    Its logit is left out, and of the constants all that goes by class or bears its label (`Fitted.without`). Raises
    DataError where there are fewer than two classes, or an image without a label.

    >>> from vmmr.unknown.max_logit import max_logit
    >>> hidden_scores(max_logit, torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]), torch.tensor([0]), Fitted())
    tensor([-1.])
    """
    classes = logits.shape[1]
    if classes < 2 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise DataError("to hide a class takes two classes and labels", got=f"{classes} classes")
    found = logits.new_empty(len(labels))
    for label in torch.unique(labels).tolist():
        rows = labels == label
        left = torch.cat([logits[rows, :label], logits[rows, label + 1 :]], dim=1)
        found[rows] = score(features[rows], left, fitted.without(label)).to(found)
    return found
