"""Gradient surgery: TorchJD's aggregators as a rule.

All of them give a sum of the losses' gradients with weights that follow from their inner products, so that one
backward pass of the weighted losses is the aggregate. Where the inner products are taken is the caller's: over all
shared parameters as published, which costs a backward pass a loss, or at the last shared layer, almost for nothing.

| name | source | the weights |
|---|---|---|
| pcgrad | Yu 2020, arXiv 2001.06782 | each gradient without what opposes the others, in random order; then the sum |
| cagrad | Liu 2021, arXiv 2110.14048 | best worst case within half the mean gradient's length of it |
| mgda | Sener 2018, arXiv 1810.04650 | the shortest convex combination |
| imtl_g | Liu 2021, ICLR | equal projections on all gradients; sums to 1, may be negative |
| nash_mtl | Navon 2022, arXiv 2202.01017 | the bargaining solution G w = 1 / w, with G over its norm |
| fairgrad | Ban 2024, arXiv 2402.15638 | G w = w^(-1/2), alpha 2 |
| aligned_mtl | Senushkin 2023, arXiv 2305.19000 | principal components of one length |
| upgrad | Quinton 2024, arXiv 2406.16232 | mean of the gradients projected on the cone that opposes none |

TorchJD's NashMTL solves its system by ECOS, which is under GPLv3; fairgrad with alpha 1 is the same system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from vmmr.balancing.rule import Observation, Weighting
from vmmr.errors import ConfigError

if TYPE_CHECKING:
    from torchjd.linalg import DualConeProjector

__all__ = ["AGGREGATORS", "Surgery"]

GramWeighting = Callable[[Tensor], Tensor]
_RESOLUTION = 1e-7


def _upgrad() -> GramWeighting:
    from torchjd.aggregation import UPGradWeighting

    return UPGradWeighting(projector=cast("DualConeProjector", _project))


def _project(directions: Tensor, gram: Tensor) -> Tensor:
    """For each row u of [T, T] the v >= u with least v' G v, as a non-negative least squares problem in v - u.

    In the place of TorchJD's QuadprogProjector, as quadprog is under the GPL. Its regularisation of 1e-4 would ignore a
    gradient a hundred times shorter than the longest; ours is the resolution of float32.
    """
    products = gram.double().numpy()
    root = np.linalg.cholesky(products / np.trace(products) + _RESOLUTION * np.eye(len(products))).T
    rows = directions.double().numpy()
    return torch.from_numpy(np.stack([u + nnls(root, -root @ u)[0] for u in rows])).to(gram.dtype)


def _named(name: str, **options: float) -> Callable[[], GramWeighting]:
    """The maker of TorchJD's weighting `name`."""

    def make() -> GramWeighting:
        import torchjd.aggregation  # half a second, and cvxpy where it is installed as much again

        return cast(GramWeighting, getattr(torchjd.aggregation, name)(**options))

    return make


AGGREGATORS: dict[str, tuple[Callable[[], GramWeighting], float]] = {
    "aligned_mtl": (_named("AlignedMTLWeighting"), 0.0),
    "cagrad": (_named("CAGradWeighting", c=0.5), 0.0),
    "fairgrad": (_named("FairGradWeighting", alpha=2.0), -2 / 3),
    "imtl_g": (_named("IMTLGWeighting"), 0.0),
    "mgda": (_named("MGDAWeighting"), 0.0),
    "nash_mtl": (_named("FairGradWeighting", alpha=1.0), 0.0),
    "pcgrad": (_named("PCGradWeighting"), 0.0),
    "upgrad": (_upgrad, 0.0),
}
"""Makers of weightings [T, T] -> [T], and the degree by which the weights follow the size of the inner products."""


class Surgery(Weighting):
    """Weights that an aggregator gives to the gradients at the shared tensors.

    aggregator: a name of AGGREGATORS, or a function from inner products [T, T], scaled to norm 1, to weights [T], such
    as a weighting of TorchJD with options of your own; weights_heads: False as in TorchJD, heads descend their own
    losses unweighted; seed: of random orders, with the number of the batch. Losses without a gradient get weight 1.
    Raises ConfigError for an unknown name, or when a package is missing.

    >>> w = torch.tensor([0.0, 0.0], requires_grad=True)
    >>> losses = {"make": w[0], "model": w[1] - w[0]}  # gradients (1, 0) and (-1, 1)
    >>> {name: round(weight.item(), 3) for name, weight in Surgery(("make", "model"), "pcgrad")(losses, [w]).items()}
    {'make': 2.0, 'model': 1.5}
    """

    step: Tensor

    def __init__(
        self, names: Sequence[str], aggregator: str | GramWeighting, *, weights_heads: bool = False, seed: int = 0
    ) -> None:
        super().__init__(names)
        self.weights_heads, self.seed, self.degree = weights_heads, seed, 0.0
        if isinstance(aggregator, str):
            if aggregator not in AGGREGATORS:
                raise ConfigError("unknown aggregator", got=aggregator, do=f"choose from {sorted(AGGREGATORS)}")
            make, self.degree = AGGREGATORS[aggregator]
            try:
                aggregator = make()
            except ImportError as error:
                do = "pip install 'vmmr[cagrad]'"
                raise ConfigError("the aggregator needs a package that is not installed", got=error, do=do) from error
        self.aggregator = aggregator
        self.register_buffer("step", torch.tensor(0))

    @property
    def needs_gradients(self) -> bool:
        """Always."""
        return True

    @torch.no_grad()
    def weigh(self, seen: Observation) -> Tensor:
        """Weights [T], of which some may be 0 or negative."""
        gram = seen.products.cpu()
        weights = torch.ones(len(gram))
        some = gram.diagonal() > 0
        if some.any() and gram.isfinite().all():  # else the loop is to say what has gone wrong with the losses
            part = gram[some][:, some]
            size = torch.linalg.matrix_norm(part)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed * 1_000_003 + int(self.step))
                weights[some] = self.aggregator(part / size) * size**self.degree
        self.step = self.step + 1
        return weights.to(seen.products.device)
