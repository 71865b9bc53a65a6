"""Named losses -> named weights, so that several can share one trunk.

One rule a file, all of one form:

    rule = BALANCERS["avgnorm"](("make", "model"))
    balance = balanced_backward(losses, rule, [last_shared_layer.weight])
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vmmr.balancing.avgnorm import AvgNorm
from vmmr.balancing.backward import Balance, balanced_backward
from vmmr.balancing.db_mtl import DBMTL
from vmmr.balancing.dwa import DWA
from vmmr.balancing.fixed import Fixed
from vmmr.balancing.gradnorm import GradNorm
from vmmr.balancing.random import RandomWeights
from vmmr.balancing.rule import Weighting
from vmmr.balancing.surgery import Surgery
from vmmr.balancing.uncertainty import Uncertainty

__all__ = [
    "BALANCERS",
    "DBMTL",
    "DWA",
    "AvgNorm",
    "Balance",
    "Fixed",
    "GradNorm",
    "RandomWeights",
    "Surgery",
    "Uncertainty",
    "Weighting",
    "balanced_backward",
]

BALANCERS: dict[str, Callable[..., Weighting]] = {
    "aligned_mtl": partial(Surgery, aggregator="aligned_mtl"),
    "avgnorm": AvgNorm,
    "cagrad": partial(Surgery, aggregator="cagrad"),
    "db_mtl": DBMTL,
    "dwa": DWA,
    "fairgrad": partial(Surgery, aggregator="fairgrad"),
    "fixed": Fixed,
    "gradnorm": GradNorm,
    "imtl_g": partial(Surgery, aggregator="imtl_g"),
    "mgda": partial(Surgery, aggregator="mgda"),
    "nash_mtl": partial(Surgery, aggregator="nash_mtl"),
    "pcgrad": partial(Surgery, aggregator="pcgrad"),
    "random": RandomWeights,
    "uncertainty": Uncertainty,
    "upgrad": partial(Surgery, aggregator="upgrad"),
}
