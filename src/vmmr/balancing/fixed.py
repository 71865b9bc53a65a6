"""Weights that stay what they are: uniform, or tuned by hand or grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

__all__ = ["Fixed"]


class Fixed(Weighting):
    """Each loss has the weight given for its name, 1 where none is given.

    Raises ConfigError for a weight of an unknown name, or one below zero.

    >>> rule = Fixed(("make", "model"), {"make": 0.5})
    >>> rule({"make": torch.tensor(2.0), "model": torch.tensor(3.0)})
    {'make': tensor(0.5000), 'model': tensor(1.)}
    """

    values: Tensor

    def __init__(self, names: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        super().__init__(names)
        weights = weights or {}
        if not weights.keys() <= set(names) or min(weights.values(), default=0) < 0:
            do = f"give weights of at least 0 to {list(names)}"
            raise ConfigError("these weights fit no loss", got=dict(weights), do=do)
        self.register_buffer("values", torch.tensor([float(weights.get(name, 1)) for name in names]))

    def weigh(self, seen: Observation) -> Tensor:
        """The given weights, [T]."""
        return self.values[seen.index]
