"""What several processes must agree on after each backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["average", "fill_gradients", "mean"]


def mean(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    return cast(Tensor, fabric.all_reduce(tensor, reduce_op="mean"))


def average(fabric: Fabric, tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over the processes, in one message."""
    if fabric.world_size == 1 or not tensors:
        return
    flat = mean(fabric, torch.cat([t.reshape(-1) for t in tensors]))
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def fill_gradients(fabric: Fabric, parameters: list[nn.Parameter]) -> None:
    """Zeros where another process has a gradient and we have none, as when no image here tells a level: messages must
    have one length."""
    if fabric.world_size == 1:
        return
    ours = torch.tensor([float(p.grad is not None) for p in parameters], device=fabric.device)
    for parameter, share in zip(parameters, mean(fabric, ours).tolist(), strict=True):
        if share and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
