"""k nearest neighbours: how far away the k-th nearest known image is, by direction.

Source: Sun et al., ICML 2022 (arXiv 2204.06507).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.unknown.fitted import Fitted, Shape
from vmmr.unknown.statistics import Statistics

__all__ = ["KNNFitted", "fit_knn", "grown_knn", "knn", "nearest"]


@dataclass(frozen=True)
class KNNFitted(Fitted):
    """bank: features of known images, each of length 1; label: their classes."""

    bank: Annotated[Tensor, Shape("M", "D")]
    label: Annotated[Tensor, Shape("M", dtype=torch.int64)]


def fit_knn(statistics: Statistics) -> KNNFitted:
    """The bank, each image's features brought to length 1."""
    return KNNFitted(functional.normalize(statistics.bank, dim=1), statistics.bank_label)


_Bank = TypeVar("_Bank", bound=KNNFitted)


def grown_knn(fitted: _Bank, features: Tensor, labels: Tensor, pull: float, *, least: int = 10) -> _Bank:
    """The bank with features [N, D] of images of new classes, labels int64 [N]. What was near stays as near.

    A new class has a few images where an old one has many, of which the network learned to tell nothing apart: its own
    images lie far from each other. pull: how far, in [0, 1], its rows are moved towards the direction of their mean;
    rows are repeated to `least`, the neighbours that `knn` looks at. They get the median length of the bank's rows: 1,
    or in that of `nnguide` a confidence like others'.
    """
    unit = functional.normalize(features, dim=1)
    length = fitted.bank.norm(dim=1).median()
    rows, names = [fitted.bank], [fitted.label]
    for label in torch.unique(labels).tolist():
        own = unit[labels == label]
        moved = functional.normalize(torch.lerp(own, functional.normalize(own.mean(dim=0), dim=0), pull), dim=1)
        moved = moved.repeat(-(-least // len(own)), 1)
        rows.append(length * moved)
        names.append(torch.full((len(moved),), label))
    return replace(fitted, bank=torch.cat(rows), label=torch.cat(names))


def nearest(features: Tensor, bank: Tensor, k: int) -> Tensor:
    """The k largest of each image's products with the bank, [N, k] falling, features [N, D] brought to length 1; fewer
    where the bank is smaller."""
    return (functional.normalize(features, dim=1) @ bank.T).topk(min(k, len(bank)), dim=1).values


def knn(features: Tensor, logits: Tensor, fitted: KNNFitted, *, k: int = 10) -> Tensor:
    """Distance of features [N, D] to the k-th nearest of the bank, all of length 1: [N] in [0, 2].

    k: 10 as published for a bank of 1 % of ImageNet, where a class has about as many images as here.
    """
    cosine = nearest(features, fitted.bank, k)[:, -1]
    return (2 - 2 * cosine).clamp(min=0).sqrt()
