"""The backward pass under a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vmmr.balancing.rule import Observation, Reduce, Weighting

__all__ = ["Balance", "balanced_backward"]

Balance = dict[str, dict[str, Tensor]]
"""For the log, scalars without gradients: `weights` and `norms` by loss, `cosines` by `"make~model"`."""


def balanced_backward(
    losses: Mapping[str, Tensor],
    rule: Weighting,
    shared: Sequence[Tensor] = (),
    *,
    heads: Sequence[Tensor] = (),
    reduce: Reduce | None = None,
    weights: Mapping[str, Tensor] | None = None,
    measure: bool = False,
) -> Balance:
    """In the place of `sum(losses.values()).backward()`: adds to `.grad` of all parameters what the rule makes of it.

    losses: named scalars, not scaled by a gradient scaler; call it outside of autocast. shared: where gradients are
    compared, see `rule`. heads: parameters that descend the plain sum of the losses under a rule that leaves heads
    alone. reduce: mean over processes; the gradients that are left in `.grad` are each process's own. weights: those
    of an earlier pass over the same batch, as in SAM's second, which are used again (a rule that learns its weights
    descends with them as they are). measure: compare gradients also for a rule that does not need it.

    >>> from vmmr.balancing import AvgNorm
    >>> w = torch.tensor([0.0, 0.0], requires_grad=True)
    >>> losses = {"make": 4 * w[0], "model": 2 * w[1]}
    >>> balance = balanced_backward(losses, AvgNorm(("make", "model"), "max_norm"), [w])
    >>> w.grad.tolist(), balance["norms"]["make"].item(), balance["cosines"]["make~model"].item()
    ([4.0, 4.0], 4.0, 0.0)
    """
    seen: Observation | None = None
    if weights is None or rule.learns:
        seen = rule.observe(losses, shared, reduce, measure=measure and weights is None)
        weights = dict(zip(seen.names, rule.weigh(seen).unbind(), strict=True))
    terms = [weights[name] * loss for name, loss in losses.items()]
    penalty = rule.penalty(seen) if seen is not None else None
    if penalty is not None:
        terms.append(penalty)
    corrections: Sequence[Tensor | None] = ()
    if heads and not rule.weights_heads:
        rest = torch.stack([(1 - weights[name]) * loss for name, loss in losses.items()]).sum()
        corrections = torch.autograd.grad(rest, heads, retain_graph=True, allow_unused=True)
    torch.autograd.backward(torch.stack(terms).sum())
    for parameter, correction in zip(heads, corrections, strict=bool(corrections)):
        if correction is not None and parameter.grad is not None:
            parameter.grad = parameter.grad + correction
    balance: Balance = {"weights": {n: w.detach() for n, w in weights.items()}, "norms": {}, "cosines": {}}
    if seen is not None and seen.gram is not None:
        balance["norms"] = dict(zip(seen.names, seen.norms.unbind(), strict=True))
        cosines = seen.cosines
        balance["cosines"] = {
            f"{a}~{b}": cosines[i, j]
            for i, a in enumerate(seen.names)
            for j, b in enumerate(seen.names[i + 1 :], start=i + 1)
        }
    return balance
