"""Learning rates as a share of their peak: functions of how far the run is, with no state to save."""

from __future__ import annotations

import math

__all__ = ["epoch_cosine", "one_cycle", "share_of_peak"]


def epoch_cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(pi e / E)) / 2 for epoch e from 0: constant within an epoch, no warm-up (PMAL and PMD).

    >>> epoch_cosine(0, 200), round(epoch_cosine(100, 200), 12)
    (1.0, 0.5)
    """
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Cosine from 1/25 of the peak up during the share `warmup` of the steps, then cosine down to 0 (Smith 2018).

    >>> one_cycle(0, 100, 0.25), one_cycle(25, 100, 0.25)
    (0.04, 1.0)
    """
    rising = warmup * steps
    if step < rising:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rising)) / 2
    return (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2


def share_of_peak(kind: str, *, epoch: int, epochs: int, step: int, steps: int, warmup: float) -> float:
    """The share that a global step of a run takes; kind: epoch_cosine or one_cycle."""
    return epoch_cosine(epoch, epochs) if kind == "epoch_cosine" else one_cycle(step, steps, warmup)
