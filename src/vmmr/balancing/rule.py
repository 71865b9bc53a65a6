"""What all rules share: a batch's losses as they are compared, and the form of a rule.

Gradients are compared at `shared`: the weight of the last layer that all losses have in common, or the features that
it gives, which is cheaper still. A partial gradient walks from its loss to there and no further; the graph stays for
the one backward pass that follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmmr.errors import ConfigError

__all__ = ["Observation", "Reduce", "Weighting", "gram_matrix", "observe", "task_gradients"]

Reduce = Callable[[Tensor], Tensor]
"""Mean over the processes of a tensor that has one shape on all of them, such as Fabric's all_reduce."""


@dataclass(frozen=True)
class Observation:
    """A batch as a rule sees it, alike on all processes.

    names: of the T losses that some process has; index: int64 [T], their places among the names of the rule;
    losses: float32 [T]; gradients: float32 [T, P], a row a loss, or None where they were not asked for or belong to
    features, which are each process's own; gram: float32 [T, T], their inner products, or None.
    """

    names: tuple[str, ...]
    index: Tensor
    losses: Tensor
    gradients: Tensor | None = None
    gram: Tensor | None = None

    @property
    def products(self) -> Tensor:
        """`gram`; raises ConfigError where no gradients were compared."""
        if self.gram is None:
            raise ConfigError("the rule compares gradients", got="no shared tensors", do="pass the last shared layer")
        return self.gram

    @property
    def norms(self) -> Tensor:
        """Length of each gradient, [T]."""
        return self.products.diagonal().clamp_min(0).sqrt()

    @property
    def sum_norm(self) -> Tensor:
        """Length of the sum of the gradients, a scalar."""
        return self.products.sum().clamp_min(0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosine of the angle between each two gradients, [T, T]; 0 where one of them is 0."""
        lengths = self.norms[:, None] * self.norms[None, :]
        return torch.where(lengths > 0, self.products / lengths.clamp_min(1e-38), 0.0).clamp(-1, 1)


def task_gradients(losses: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
    """The gradient of each loss with respect to `shared`, flat, as float32 [T, P]; the graph is kept.

    losses: scalars; shared: tensors with P elements in all. A loss that does not depend on them has a row of zeros.
    Raises ConfigError when a shared tensor is frozen.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> task_gradients([w.sum(), 3 * w[0]], [w]).tolist()
    [[1.0, 1.0], [3.0, 0.0]]
    """
    if not all(tensor.requires_grad for tensor in shared):
        do = "compare at a layer that is trained, or at features behind one"
        raise ConfigError("a shared tensor is frozen and has no gradient", got=[list(t.shape) for t in shared], do=do)
    rows = torch.zeros(len(losses), sum(t.numel() for t in shared), device=shared[0].device)
    for row, loss in zip(rows, losses, strict=True):
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)
            torch.cat([part.detach().reshape(-1).float() for part in parts], out=row)
    return rows


def gram_matrix(gradients: Tensor) -> Tensor:
    """Inner products [T, T] of the rows of gradients [T, P], in float32 also under autocast."""
    with torch.autocast(gradients.device.type, enabled=False):
        return gradients @ gradients.T


def observe(
    losses: Mapping[str, Tensor], names: Sequence[str], shared: Sequence[Tensor] = (), reduce: Reduce | None = None
) -> Observation:
    """See a batch: values and, where shared tensors are given, gradients.

    losses: named scalars, those of `names` that this batch has; shared: parameters, or features with a gradient.
    With `reduce`, values and gradients are means over the processes; a loss that a process does not have counts as
    zero gradient there, as it does in the mean of the gradients that is descended. Gradients of features are averaged
    as inner products. Raises ConfigError for a name that the rule does not know, and when there is no loss.
    """
    unknown = sorted(losses.keys() - set(names))
    if unknown or not losses:
        raise ConfigError(
            "the rule cannot balance these losses",
            got=f"{unknown or 'none'} beside {list(names)}",
            do="name every loss when the rule is made, and pass at least one",
        )
    here = tuple(name for name in names if name in losses)
    values = torch.stack([losses[name].detach().float() for name in here])
    index = torch.tensor([names.index(name) for name in here], device=values.device)
    rows = task_gradients([losses[name] for name in here], shared) if shared else None
    leaves = all(tensor.is_leaf for tensor in shared)
    gram = None if rows is None else gram_matrix(rows)
    if reduce is not None:
        own, ours = index, torch.zeros(len(names), 2, device=values.device)
        ours[own, 0], ours[own, 1] = values, 1.0
        ours = reduce(ours)
        index = ours[:, 1].nonzero().flatten()
        here = tuple(names[i] for i in index.tolist())
        values = ours[index, 0] / ours[index, 1]
        if rows is not None and gram is not None:
            if leaves:
                rows = reduce(rows.new_zeros(len(names), rows.shape[1]).index_copy(0, own, rows))[index]
                gram = gram_matrix(rows)
            else:
                spread = gram.new_zeros(len(names), len(names))
                spread[own[:, None], own] = gram
                gram = reduce(spread)[index[:, None], index]
    return Observation(here, index, values, rows if leaves else None, gram)


class Weighting(nn.Module, ABC):
    """A rule: named losses -> named weights; the caller descends the sum of weight x loss, plus `penalty`.

    names: every loss that can occur; a batch may have any of them. What a rule remembers it keeps in buffers, so that
    it is in the state_dict and moves to the device of the losses, and by name, so that it outlives batches without the
    loss. Weights are the same on all processes. Raises ConfigError when names are missing or double.
    """

    learns = False
    """Whether the weights carry a gradient to parameters of the rule, which the optimiser is to be given."""
    weights_heads = True
    """Whether heads descend the weighted losses too, or each its own loss as it is."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        if not names or len(set(names)) < len(names):
            raise ConfigError("a rule needs names, each once", got=list(names), do="name every loss that can occur")

    @property
    def needs_gradients(self) -> bool:
        """Whether the next batch's gradients at the shared tensors are looked at."""
        return False

    @abstractmethod
    def weigh(self, seen: Observation) -> Tensor:
        """The weights [T] of the losses seen; what the rule remembers moves on by one batch."""

    def penalty(self, seen: Observation) -> Tensor | None:
        """The rule's own scalar to be descended, or None."""
        return None

    def end_epoch(self) -> None:
        """To be called after each epoch."""

    def observe(
        self,
        losses: Mapping[str, Tensor],
        shared: Sequence[Tensor] = (),
        reduce: Reduce | None = None,
        *,
        measure: bool = False,
    ) -> Observation:
        """`observe` with the rule's names; gradients only if it needs them or they are to be measured."""
        return observe(losses, self.names, shared if measure or self.needs_gradients else (), reduce)

    def forward(
        self, losses: Mapping[str, Tensor], shared: Sequence[Tensor] = (), reduce: Reduce | None = None
    ) -> dict[str, Tensor]:
        """Named scalar losses, shared tensors -> named scalar weights."""
        seen = self.observe(losses, shared, reduce)
        return dict(zip(seen.names, self.weigh(seen).unbind(), strict=True))
