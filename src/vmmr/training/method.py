"""What the loop needs of a method: networks, and per batch a list of steps that can be printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Method", "Step", "total"]

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One optimiser update.

    name: for logs. prepare: draws what both passes of SAM share (views, noise), without gradients.
    losses: prepared batch -> named scalars, already weighted; their sum is descended, or what a balancer makes of it.
    shared: the weight at which a balancer compares gradients.
    """

    name: str
    prepare: Callable[[Batch, torch.Generator], Batch]
    losses: Callable[[Batch], dict[str, Tensor]]
    shared: tuple[Tensor, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        return f"Step({self.name})"


class Method(Protocol):
    """Plain, Progressive and Distil: a network in training and the steps that train it."""

    @property
    def network(self) -> nn.Module:
        """Everything that is trained, decoders included."""

    def head_parameters(self) -> list[nn.Parameter]:
        """What learns at the heads' rate; the rest is trunk."""

    def begin(self, batch: Batch, epoch: int) -> Batch:
        """Once a batch, before its steps: what all of them share. batch: image [B, 3, H, W] in [-1, 1], label [B]."""

    def steps(self, epoch: int, step: int) -> tuple[Step, ...]:
        """The optimiser updates of global step `step`, in order."""

    def answer(self, network: nn.Module, image: Tensor) -> Tensor:
        """Logits [B, N] of a network like ours (itself, or its weight average) on clean images."""


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of the named scalars."""
    return torch.stack(list(losses.values())).sum()
