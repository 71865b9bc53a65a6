"""What training images tell about a network's features, gathered in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vmmr.errors import ConfigError, DataError

__all__ = ["BANK", "Statistics", "gather"]

BANK = 4096
"""How many images the bank keeps."""


@dataclass(frozen=True)
class Statistics:
    """Means, covariances and a sample of the features of training images, with the classifier that reads them.

    weight [C, D], bias [C]: of the classifier. count [C]: images of each class. mean [C, D], centre [D]: of each class
    and of all images. within [D, D]: covariance around the own class's mean, total [D, D]: around the centre (both
    over N). All float64. bank [M, D] float32, bank_label [M]: the features of up to M images, drawn evenly.
    """

    weight: Tensor
    bias: Tensor
    count: Tensor
    mean: Tensor
    centre: Tensor
    within: Tensor
    total: Tensor
    bank: Tensor
    bank_label: Tensor

    @cached_property
    def bank_logits(self) -> Tensor:
        """[M, C] float64, the logits of the bank."""
        return self.bank.double() @ self.weight.T + self.bias

    def percentile(self, p: float) -> float:
        """The p-th percentile of the activations: of all features of all images of the bank, exactly."""
        if not 0 <= p <= 100:
            raise ConfigError("a percentile lies in [0, 100]", got=p)
        return float(np.percentile(self.bank.numpy(), p))


def gather(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], weight: Tensor, bias: Tensor, *, bank: int = BANK, seed: int = 0
) -> Statistics:
    """One pass over training images, as a test shows them: no augmentation, no shuffling needed.

    batches: features [B, D] at the input of the classifier, labels int64 [B] in [0, C) and keys int64 [B], whole
    numbers that name the images, such as their rows. weight [C, D], bias [C]: of the classifier. bank: how many images
    are kept: those whose hash of (seed, key) is lowest, so that neither order nor batches decide. Sums are float64:
    another order changes their last digits at most.

    Raises DataError for features that are no numbers, for labels out of range, and where a class has no image;
    ConfigError for a bank below 1.

    >>> features, labels = torch.tensor([[0.0, 2.0], [2.0, 2.0], [4.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> found = gather([(features, labels, torch.arange(3))], torch.eye(2), torch.zeros(2))
    >>> found.mean.tolist(), round(found.within[0, 0].item(), 6)
    ([[1.0, 2.0], [4.0, 0.0]], 0.666667)
    """
    if bank < 1:
        raise ConfigError("the bank keeps an image at least", got=bank)
    classes, width = weight.shape
    count = torch.zeros(classes, dtype=torch.float64)
    sums = torch.zeros(classes, width, dtype=torch.float64)
    second = torch.zeros(width, width, dtype=torch.float64)
    # Around the mean of the first batch: sums of squares of what is far from 0 would lose digits.
    origin: Tensor | None = None
    kept = torch.zeros(0, width)
    kept_label, ranks = torch.zeros(0, dtype=torch.int64), np.zeros(0, dtype=np.uint64)
    for features, labels, keys in batches:
        features, labels = features.detach().cpu().float(), labels.cpu()
        _check(features, labels, classes, width)
        exact = features.double()
        if origin is None:
            origin = exact.mean(dim=0)
        exact = exact - origin
        count.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
        sums.index_add_(0, labels, exact)
        second += exact.T @ exact
        fresh = _ranks(keys, seed)
        some = fresh < ranks[-1] if len(ranks) == bank else np.ones(len(fresh), dtype=np.bool_)
        if some.any():
            chosen = torch.from_numpy(some)
            ranks = np.concatenate([ranks, fresh[some]])
            order = np.argsort(ranks, kind="stable")[:bank]
            ranks = ranks[order]
            kept = torch.cat([kept, features[chosen]])[torch.from_numpy(order)]
            kept_label = torch.cat([kept_label, labels[chosen]])[torch.from_numpy(order)]
    if origin is None or (count == 0).any():
        raise DataError(
            "every class needs a training image", got=f"{int((count == 0).sum())} of {classes} without", do="add some"
        )
    images, mean = count.sum(), sums / count[:, None]
    centre, spread = sums.sum(dim=0) / images, second / images
    return Statistics(
        weight=weight.detach().cpu().double(),
        bias=bias.detach().cpu().double(),
        count=count,
        mean=mean + origin,
        centre=centre + origin,
        within=spread - (mean * (count / images)[:, None]).T @ mean,
        total=spread - torch.outer(centre, centre),
        bank=kept,
        bank_label=kept_label,
    )


def _check(features: Tensor, labels: Tensor, classes: int, width: int) -> None:
    if features.dim() != 2 or features.shape[1] != width or labels.shape != features.shape[:1]:
        raise DataError(
            "features and labels do not fit the classifier",
            got=f"{list(features.shape)} and {list(labels.shape)}",
            do=f"pass [B, {width}] and [B]",
        )
    if not features.isfinite().all():
        raise DataError("features hold what is no finite number", do="look at the network and its images")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError("a label is none of the classifier's", got=[int(labels.min()), int(labels.max())])


def _ranks(keys: Tensor, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A hash of each key: the lowest ones are an even draw of the images."""
    salt = str(seed).encode()
    data = b"".join(hashlib.blake2b(str(k).encode(), digest_size=8, key=salt).digest() for k in keys.tolist())
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)
