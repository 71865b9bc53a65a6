"""DB-MTL: logarithms balance the losses, and their gradients get the length of the longest.

    g_i = grad log L_i;  b_i <- g_i + beta / t^sigma (b_i - g_i);  w_i = (max_j ||b_j|| / ||b_i||) / L_i

Source: Lin et al., 2023 (arXiv 2308.12029). The authors descend the averages b_i themselves at the shared parameters
and log L_i in the heads; here b only sets the lengths, and all of the network descends the weighted losses. With
beta = 0 the shared parameters get exactly the published gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vmmr.balancing.avgnorm import avgnorm
from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

__all__ = ["DBMTL"]

_EPS = 1e-8  # below which a loss does not count as smaller, as in the authors' code


class DBMTL(Weighting):
    """Weights by lengths of averaged gradients of log losses.

    beta: in [0, 1), share of the average that stays; sigma >= 0: how fast that share fades with the batches t. Losses
    must be >= 0. beta > 0 keeps a float32 [T, P] and needs parameters to compare at, not features. Raises ConfigError
    otherwise.
    """

    average: Tensor
    batches: Tensor

    def __init__(self, names: Sequence[str], beta: float = 0.9, sigma: float = 0.0) -> None:
        super().__init__(names)
        if not (0 <= beta < 1 and sigma >= 0):
            do = "pass beta in [0, 1) and sigma >= 0"
            raise ConfigError("DB-MTL is out of range", got=f"{beta=}, {sigma=}", do=do)
        self.beta, self.sigma = beta, sigma
        self.register_buffer("average", torch.zeros(len(names), 0))  # as wide as the shared parameters, once seen
        self.register_buffer("batches", torch.zeros(len(names)))

    @property
    def needs_gradients(self) -> bool:
        """Always."""
        return True

    @torch.no_grad()
    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T]."""
        losses = seen.losses.clamp_min(0) + _EPS
        norms = self._averaged(seen, losses) if self.beta else seen.norms / losses
        return avgnorm(norms, seen.sum_norm, "max_norm") / losses

    def _averaged(self, seen: Observation, losses: Tensor) -> Tensor:
        """Lengths [T] of the averages, which take in this batch."""
        gradients = seen.gradients
        if gradients is None or self.average.shape[1] not in (0, gradients.shape[1]):
            raise ConfigError(
                "DB-MTL cannot average these gradients",
                got="those of features" if gradients is None else f"{gradients.shape[1]} values",
                do="compare at the same parameters throughout, or set beta to 0",
            )
        index, batches = seen.index, self.batches[seen.index] + 1
        fresh = gradients / losses[:, None]
        before = self.average if self.average.shape[1] else fresh.new_zeros(len(self.names), fresh.shape[1])
        stays = torch.where(batches > 1, self.beta / batches**self.sigma, 0.0)
        averages = torch.lerp(fresh, before[index], stays[:, None])
        self.average = before.index_copy(0, index, averages)
        self.batches = self.batches.index_copy(0, index, batches)
        lengths: Tensor = torch.linalg.vector_norm(averages, dim=1)
        return lengths

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}average")
        if isinstance(saved, Tensor):
            self.average = self.average.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
