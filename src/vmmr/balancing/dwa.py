"""Dynamic weight average: the slower a loss falls from epoch to epoch, the more it weighs.

Source: Liu, Johns and Davison, CVPR 2019 (arXiv 1803.10704), eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

__all__ = ["DWA", "dwa"]


def dwa(older: Tensor, newer: Tensor, temperature: float = 2.0) -> Tensor:
    """T softmax((newer / older) / temperature), [T], from the mean losses of two epochs, each [T] and >= 0.

    A loss without a mean (nan) counts as standing still. The weights sum to T.

    >>> dwa(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0])).tolist()
    [1.0, 1.0]
    """
    rates = (newer / older.clamp_min(1e-12)).nan_to_num(nan=1.0)
    return len(rates) * torch.softmax(rates / temperature, dim=0)


class DWA(Weighting):
    """`dwa` of the last two epochs; uniform in the first two.

    temperature > 0; larger is more uniform. Call `end_epoch` after each epoch. Raises ConfigError otherwise.
    """

    total: Tensor
    count: Tensor
    means: Tensor

    def __init__(self, names: Sequence[str], temperature: float = 2.0) -> None:
        super().__init__(names)
        if not temperature > 0:
            raise ConfigError("the temperature of DWA is out of range", got=temperature, do="pass a value above 0")
        self.temperature = temperature
        self.register_buffer("total", torch.zeros(len(names)))
        self.register_buffer("count", torch.zeros(len(names)))
        self.register_buffer("means", torch.full((2, len(names)), math.nan))  # of the last epoch but one, and the last

    @torch.no_grad()
    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T], the same throughout an epoch."""
        self.total = self.total.index_add(0, seen.index, seen.losses)
        self.count = self.count.index_add(0, seen.index, torch.ones_like(seen.losses))
        older, newer = self.means[:, seen.index]
        return dwa(older, newer, self.temperature)

    def end_epoch(self) -> None:
        """The means of this epoch become the newer ones; a loss that it did not have keeps those it had."""
        fresh = torch.stack([self.means[1], self.total / self.count])
        self.means = torch.where(self.count > 0, fresh, self.means)
        self.total, self.count = torch.zeros_like(self.total), torch.zeros_like(self.count)
