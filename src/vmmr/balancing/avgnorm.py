"""AvgNorm: losses are scaled so that their gradients at the last shared layer have one length.

    w_i = (S / ||g_i||)^power      power 1 as published, 0 is uniform

As published S is the length of the summed gradients, without memory and without bounds. All gradients then have length
S: where they agree a step grows up to T-fold, where they cancel out it vanishes; `normalise_to_T` keeps the step's
size apart from that.

Source: Guo et al., 2025 (arXiv 2509.23915), sum_norm. max_norm is that of DB-MTL (arXiv 2308.12029), without its
logarithms; the rest is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

__all__ = ["SCALES", "AvgNorm", "avgnorm"]

_NONE = 1e-12  # a gradient at most this long is none: its loss keeps weight 1, so that a head can leave zero


def _harmonic(norms: Tensor, sum_norm: Tensor, power: float) -> Tensor:
    """S for weights that sum to T: the mean of the lengths with exponent -power, which power 0 does not need."""
    inverse = norms.pow(-power).nanmean()
    return inverse.pow(-1 / power) if power else inverse


SCALES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "fixed_1": lambda norms, sum_norm, power: torch.ones_like(sum_norm),
    "max_norm": lambda norms, sum_norm, power: norms.nan_to_num(nan=0.0).max(),
    "mean_of_norms": lambda norms, sum_norm, power: norms.nanmean(),
    "normalise_to_T": _harmonic,
    "sum_norm": lambda norms, sum_norm, power: sum_norm,
}
"""S by name, from the lengths [T], nan where there is no gradient, the length of the sum, and the power."""


def avgnorm(norms: Tensor, sum_norm: Tensor, scale: str = "sum_norm", power: float = 1.0) -> Tensor:
    """Weights [T] from the lengths [T] of the gradients and the length of their sum, a scalar.

    scale: one of SCALES; power in [0, 1]. A loss without a gradient gets 1.

    >>> avgnorm(torch.tensor([1.0, 10.0]), torch.tensor(9.0)).tolist()  # opposed
    [9.0, 0.8999999761581421]
    """
    norms = norms.where(norms > _NONE, math.nan)
    weights = (SCALES[scale](norms, sum_norm, power) / norms).pow(power)
    return weights.where(norms.isfinite(), 1.0)


class AvgNorm(Weighting):
    """`avgnorm` for each batch, with a memory and bounds if wanted.

    scale: one of SCALES; power in [0, 1]; memory: in [0, 1), the lengths ||g_i|| are exponential means with this
    factor; clamp: (lowest, highest) weight; freeze_after: after so many batches each weight stays at its mean until
    then, and no more gradients are compared. Raises ConfigError when one of them is out of range.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> AvgNorm(("make", "model"), "fixed_1")({"make": 4 * w[0], "model": 2 * w[1]}, [w])
    {'make': tensor(0.2500), 'model': tensor(0.5000)}
    """

    means: Tensor
    batches: Tensor
    total: Tensor
    step: Tensor

    def __init__(
        self,
        names: Sequence[str],
        scale: str = "sum_norm",
        *,
        power: float = 1.0,
        memory: float = 0.0,
        clamp: tuple[float, float] | None = None,
        freeze_after: int | None = None,
    ) -> None:
        super().__init__(names)
        bounds = clamp is None or 0 <= clamp[0] <= clamp[1]
        freezes = freeze_after is None or freeze_after > 0
        if not (scale in SCALES and 0 <= power <= 1 and 0 <= memory < 1 and bounds and freezes):
            raise ConfigError(
                "AvgNorm is out of range",
                got=f"{scale=}, {power=}, {memory=}, {clamp=}, {freeze_after=}",
                do=f"scale of {sorted(SCALES)}, power in [0, 1], memory in [0, 1), 0 <= lowest <= highest, batches > 0",
            )
        self.scale, self.power, self.memory, self.clamp, self.freeze_after = scale, power, memory, clamp, freeze_after
        self.register_buffer("means", torch.zeros(len(names)))  # of lengths, exponential, not yet corrected
        self.register_buffer("batches", torch.zeros(len(names)))  # that had the loss
        self.register_buffer("total", torch.zeros(len(names)))  # of weights
        self.register_buffer("step", torch.tensor(0))

    @property
    def needs_gradients(self) -> bool:
        """Until the weights are frozen."""
        return self.freeze_after is None or int(self.step) < self.freeze_after

    @torch.no_grad()
    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T]."""
        index = seen.index
        if not self.needs_gradients:
            batches = self.batches[index]
            return torch.where(batches > 0, self.total[index] / batches.clamp_min(1), 1.0)
        means = self.memory * self.means[index] + (1 - self.memory) * seen.norms
        batches = self.batches[index] + 1
        weights = avgnorm(means / (1 - self.memory**batches), seen.sum_norm, self.scale, self.power)
        if self.clamp is not None:
            weights = weights.clamp(*self.clamp)
        self.means = self.means.index_copy(0, index, means)
        self.batches = self.batches.index_copy(0, index, batches)
        self.total = self.total.index_add(0, index, weights)
        self.step = self.step + 1
        return weights
