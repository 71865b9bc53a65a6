"""From a score to a decision, with its reason."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum

from torch import Tensor

from vmmr.errors import ConfigError, DataError

__all__ = ["Gate", "Reason", "accept_threshold", "decide", "fit_gate"]


class Reason(StrEnum):
    """Why an answer is given, or why it should not be trusted."""

    OK = "ok"
    UNSURE = "unsure"
    UNKNOWN_VEHICLE = "unknown_vehicle"
    NOT_A_VEHICLE = "not_a_vehicle"
    LOW_QUALITY = "low_quality"
    TOO_SMALL = "too_small"


@dataclass(frozen=True)
class Gate:
    """Where decisions change: numbers only, so that JSON can hold it.

    known: the highest score of what is known. vehicle: the highest of what may be a vehicle, known or not. dull: the
    least contrast; soft, noisy: the least and the most detail of a good picture, see `vmmr.unknown.quality`. shortest:
    pixels of the shorter side of the picture, or of its box, below which nothing is said; 0 for no such limit.

    Raises ConfigError for numbers that are not finite or not in order.
    """

    known: float
    vehicle: float
    dull: float
    soft: float
    noisy: float
    shortest: int = 0

    def __post_init__(self) -> None:
        values = asdict(self)
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in values.values()):
            raise ConfigError("a gate is made of finite numbers", got=values)
        if self.vehicle < self.known or self.noisy < self.soft or self.shortest < 0:
            raise ConfigError(
                "the numbers of a gate are out of order",
                got=values,
                do="known <= vehicle, soft <= noisy, shortest >= 0",
            )


def accept_threshold(scores: Tensor, rate: float) -> float:
    """The lowest threshold t such that at least this share of scores [N] is <= t: one of the scores, exactly.

    Raises ConfigError for a rate outside of (0, 1], DataError where there is no score or one that is no number.

    >>> import torch
    >>> accept_threshold(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.75)
    3.0
    """
    if not 0 < rate <= 1:
        raise ConfigError("the share that is accepted lies in (0, 1]", got=rate)
    if not len(scores) or not scores.isfinite().all():
        raise DataError("a threshold needs scores that are finite numbers", got=list(scores.shape))
    place = math.ceil(rate * len(scores) - 1e-9)  # 0.7 * 10 is a little above 7
    return float(scores.sort().values[place - 1])


def fit_gate(
    known: Tensor,
    hidden: Tensor,
    contrast: Tensor,
    detail: Tensor,
    *,
    rate: float = 0.95,
    vehicle_rate: float = 0.95,
    tail: float = 0.01,
    shortest: int = 0,
) -> Gate:
    """The gate that validation images call for; all tensors [N], of the same clean images.

    known: their scores. hidden: those without their own class, see `hidden_scores`. contrast, detail: of the pictures.
    rate: share of known images that are accepted as known. vehicle_rate: share of vehicles with a hidden class that are
    accepted as vehicles. tail: share of pictures at each end that count as bad. shortest: as in `Gate`.
    """
    accepted = accept_threshold(known, rate)
    return Gate(
        known=accepted,
        vehicle=max(accepted, accept_threshold(hidden, vehicle_rate)),
        dull=-accept_threshold(-contrast, 1 - tail),
        soft=-accept_threshold(-detail, 1 - tail),
        noisy=accept_threshold(detail, 1 - tail),
        shortest=shortest,
    )


def decide(gate: Gate, *, score: float, sure: bool, side: float, contrast: float, detail: float) -> Reason:
    """The reason for one picture.

    score: as the gate was fitted for. sure: whether the answer, at some level, is; False where the back-off says
    nothing. side: pixels of the shorter side of the picture, or of its box, before it was resized. contrast, detail: of
    what the network saw.

    A picture that is too small is refused at once. A bad picture excuses, it does not accuse: a known vehicle in fog
    looks strange, so what would be refused is put down to the picture, and what is known and sure stays so.

    >>> gate = Gate(known=1.0, vehicle=2.0, dull=0.1, soft=-1.0, noisy=0.0)
    >>> good = {"side": 80, "contrast": 0.2, "detail": -0.5}
    >>> str(decide(gate, score=0.5, sure=True, **good)), str(decide(gate, score=1.5, sure=True, **good))
    ('ok', 'unknown_vehicle')
    """
    if side < gate.shortest:
        return Reason.TOO_SMALL
    if score <= gate.known and sure:
        return Reason.OK
    if contrast < gate.dull or not gate.soft <= detail <= gate.noisy:
        return Reason.LOW_QUALITY
    if score <= gate.known:
        return Reason.UNSURE
    # What is no number is no vehicle either.
    return Reason.UNKNOWN_VEHICLE if score <= gate.vehicle else Reason.NOT_A_VEHICLE
