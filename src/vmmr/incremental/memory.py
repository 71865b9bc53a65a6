"""A few images of every class, kept for later tasks.

memory = Memory(budget=2000)
memory = memory.with_classes(items, labels, features)     # after every task
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError, DataError

__all__ = ["Memory", "Pick", "at_random", "closest_to_mean", "herding", "per_class"]

Pick = Callable[[Tensor, int], Tensor]
"""features [N, D] of one class, and how many -> rows of at most so many, int64, the most telling first."""


def herding(features: Tensor, count: int) -> Tensor:
    """Rows one after another, each such that the mean of those taken comes as near as can be to the mean of all.

    Features are brought to length 1. Of a shorter list these are the first. Source: Rebuffi et al., iCaRL
    (arXiv 1611.07725), algorithm 4.

    >>> herding(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 2).tolist()
    [2, 0]
    """
    unit = functional.normalize(features.double(), dim=1)
    mean, taken = unit.mean(dim=0), torch.zeros_like(unit[0])
    left = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    rows = []
    for place in range(1, min(count, len(unit)) + 1):
        distance = (mean - (taken + unit) / place).square().sum(dim=1)
        row = int(distance.masked_fill(~left, torch.inf).argmin())
        rows.append(row)
        left[row] = False
        taken = taken + unit[row]
    return torch.tensor(rows, dtype=torch.int64)


def closest_to_mean(features: Tensor, count: int) -> Tensor:
    """Rows by their distance from the mean, all of length 1.

    >>> closest_to_mean(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 1).tolist()
    [2]
    """
    unit = functional.normalize(features.double(), dim=1)
    return (unit - unit.mean(dim=0)).square().sum(dim=1).argsort(stable=True)[:count].cpu()


def at_random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows drawn evenly without replacement."""
    return torch.randperm(len(features), generator=generator)[:count]


def per_class(labels: Tensor, features: Tensor, count: int, pick: Pick = herding) -> Tensor:
    """Rows of at most `count` images of each label, int64: label after label, each as `pick` orders them.

    >>> per_class(torch.tensor([4, 1, 4]), torch.eye(3), 1).tolist()
    [1, 0]
    """
    found = [torch.zeros(0, dtype=torch.int64)]
    for label in torch.unique(labels).tolist():
        rows = torch.nonzero(labels == label)[:, 0]
        found.append(rows.cpu()[pick(features[rows], count)])
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Memory:
    """Exemplars of all classes seen, never more than `budget`, as many of each class as of any other.

    items [M, ...]: images, or whatever finds them, such as rows of a table. labels int64 [M], those of a class side by
    side, the most telling first. classes: how many were seen, those without an image left included. pick: which images
    of a class are kept.

    Raises ConfigError for a negative budget.
    """

    budget: int
    items: Tensor = field(default_factory=partial(torch.zeros, 0))
    labels: Tensor = field(default_factory=partial(torch.zeros, 0, dtype=torch.int64))
    classes: int = 0
    pick: Pick = herding

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ConfigError("a memory has room for none or some", got=f"budget={self.budget}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def quota(self) -> int:
        """Images kept of each class, the budget shared evenly; 0 before the first class."""
        return self.budget // self.classes if self.classes else 0

    def with_classes(self, items: Tensor, labels: Tensor, features: Tensor) -> Self:
        """The memory after new classes: old ones keep the first of what they had, up to the new quota.

        items [N, ...], labels int64 [N] and features [N, D]: images of the new classes, as the network sees them now.
        Raises DataError for a class that is here already.
        """
        new = torch.unique(labels)
        again = new[torch.isin(new, self.labels)].tolist()
        if again:
            raise DataError("classes are already in memory", got=again[:8])
        classes = self.classes + len(new)
        quota = self.budget // classes if classes else 0
        kept, rows = self._first(quota), per_class(labels, features, quota, self.pick)
        old = self.items[kept] if len(kept) else items[:0]
        return type(self)(
            self.budget, torch.cat([old, items[rows]]), torch.cat([self.labels[kept], labels[rows]]), classes, self.pick
        )

    def _first(self, count: int) -> Tensor:
        """Rows of the first `count` of each class."""
        rows = [torch.nonzero(self.labels == label)[:count, 0] for label in torch.unique(self.labels).tolist()]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
