"""Sharpness-aware minimisation, as two passes of one closure.

Source: Foret et al., ICLR 2021 (arXiv 2010.01412), eq. 2-3, non-adaptive, L2. As in PMAL's code, BatchNorm running
statistics change in the first pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")

__all__ = ["clear_gradients", "frozen_statistics", "sharpness_aware"]


@contextmanager
def frozen_statistics(*networks: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers in training mode use batch statistics but leave their running ones alone.

    Equal to a momentum of 0, and the batch counter stands still too.
    """
    layers = [
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def clear_gradients(parameters: Iterable[nn.Parameter], *, dense: bool = False) -> None:
    """Forget gradients. dense=True leaves zeros, so that momentum and weight decay act on unused parameters too.

    torch before 2.0, and with it the published environment of PMAL, left zeros.
    """
    for parameter in parameters:
        if dense:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad = None


@torch.no_grad()
def _ascend(parameters: list[nn.Parameter], rho: float) -> list[Tensor]:
    """Move to the worst point of the rho-ball along the gradient; returns copies of where we were."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = rho / (norm + 1e-12)
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.add_(parameter.grad * factor.to(parameter.grad.dtype))
    return before


def sharpness_aware(
    closure: Callable[[], T],
    parameters: Iterable[nn.Parameter],
    *,
    rho: float,
    networks: tuple[nn.Module, ...],
    dense: bool = False,
) -> T:
    """Leave in `.grad` the gradient at w + rho * g / ||g||, and w itself restored to the last bit.

    closure runs forward and backward (adding to `.grad`) and returns what it likes; it is called twice with cleared
    gradients, the second time with BatchNorm statistics of `networks` frozen. The norm is joint over all parameters
    that have a gradient. rho=0 calls it once: plain descent. Returns the first call's value.
    """
    parameters = list(parameters)
    clear_gradients(parameters, dense=dense)
    value = closure()
    if rho == 0.0:
        return value
    before = _ascend(parameters, rho)
    clear_gradients(parameters, dense=dense)
    with frozen_statistics(*networks):
        closure()
    with torch.no_grad():
        for parameter, copy in zip(parameters, before, strict=True):
            parameter.copy_(copy)
    return value
