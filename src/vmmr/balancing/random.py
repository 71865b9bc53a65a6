"""Random weights, drawn anew for each batch: what a rule has to beat.

Source: Lin et al., TMLR 2022 (arXiv 2111.10603), RLW with normal draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmmr.balancing.rule import Observation, Weighting

__all__ = ["RandomWeights"]


class RandomWeights(Weighting):
    """softmax of N(0, 1) draws, from (seed, batch) alone. As published the weights sum to 1, not to T.

    >>> rule = RandomWeights(("make", "model"), seed=1)
    >>> weights = rule({"make": torch.tensor(2.0), "model": torch.tensor(3.0)})
    >>> round(float(weights["make"] + weights["model"]), 6)
    1.0
    """

    step: Tensor

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        super().__init__(names)
        self.seed = seed
        self.register_buffer("step", torch.tensor(0))

    @torch.no_grad()
    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T]; the draw of a name does not depend on which others are there."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step))
        self.step = self.step + 1
        draws = torch.randn(len(self.names), generator=generator).to(seen.losses.device)
        return torch.softmax(draws[seen.index], dim=0)
