"""Whether a confidence of 80 % means right four times of five: calibration error, reliability, one temperature."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

import vmmr.torchvision_ops  # noqa: F401  (before torchmetrics)
from vmmr.errors import DataError

from torchmetrics.functional.classification import binary_calibration_error  # isort: skip

__all__ = ["BINS", "calibration_error", "confidences", "fit_temperature", "negative_log_likelihood", "reliability_bins"]

BINS = 15
"""Equal bins of confidence on [0, 1], as Guo et al. 2017 (arXiv 1706.04599) and most after them."""

_TEMPERATURES = (0.05, 20.0)
_MOST = 1 - 2**-24  # the largest float32 below 1: a confidence that rounds to 1 belongs to the last bin


def confidences(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The probability of the answer, [N] in (0, 1), of logits [N, C] divided by a temperature."""
    return (logits.float() / temperature).softmax(dim=1).amax(dim=1).clamp(max=_MOST)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over bins, weighted by their images.

    confidence: [N] in [0, 1], see `confidences`. right: [N], whether the answer was. Source: Guo et al. 2017,
    arXiv 1706.04599.

    >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([True, True, True, False])), 4)
    0.15
    """
    # The top-label error of a classifier is the error of "this answer is right" as a binary prediction.
    return binary_calibration_error(confidence, right.long(), n_bins=BINS, norm="l1").item()


def reliability_bins(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    """The bins of the calibration error: {"low", "high", "confidence", "accuracy", "share"} of each, in order.

    confidence and accuracy are means over the bin's images, None in a bin without any; share is the bin's part of all.
    """
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=BINS - 1).numpy()
    count = np.bincount(place, minlength=BINS)
    sums = [np.bincount(place, weights=values.double().numpy(), minlength=BINS) for values in (confidence, right)]
    return [
        {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "confidence": float(sums[0][k] / count[k]) if count[k] else None,
            "accuracy": float(sums[1][k] / count[k]) if count[k] else None,
            "share": float(count[k] / len(place)),
        }
        for k in range(BINS)
    ]


def negative_log_likelihood(logits: Tensor, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean of -log p(label) in nats, of logits [N, C] and labels [N]."""
    return functional.cross_entropy(logits.double() / temperature, torch.from_numpy(labels)).item()


def fit_temperature(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] by which dividing logits [N, C] makes labels [N] the most likely.

    Fit it on validation images, never on those that are judged. The likelihood has one maximum, as it is concave in
    1/T; where no answer is wrong, lower is better without end, and the temperature stays 1. Source: Guo et al. 2017,
    arXiv 1706.04599. Raises DataError where there is no image.
    """
    if len(logits) == 0:
        raise DataError("a temperature needs validation images", got=list(logits.shape))
    if (logits.argmax(dim=1).numpy() == labels).all():
        return 1.0
    found = minimize_scalar(
        lambda power: negative_log_likelihood(logits, labels, float(np.exp(power))),
        bounds=tuple(np.log(_TEMPERATURES)),
        method="bounded",
    )
    return float(np.exp(found.x))
