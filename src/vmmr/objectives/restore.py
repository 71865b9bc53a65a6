"""How far a restored image is from its target.

Source: the restoration term of PMAL (Liu 2024, arXiv 2401.14336), as in the authors' code. Note that kornia's function
of the same name is sqrt(d^2 + 1) - 1 and is not interchangeable.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RESTORATION", "Charbonnier", "charbonnier"]


def charbonnier(restored: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """Smooth absolute error, mean over all elements of sqrt((restored - target)^2 + eps^2).

    Two float tensors of one shape. Returns a scalar >= eps.

    >>> round(charbonnier(torch.tensor([3.0]), torch.tensor([0.0])).item(), 4)
    3.0
    """
    return torch.sqrt((restored - target).square() + eps * eps).mean()


class Charbonnier(nn.Module):
    """`charbonnier` with its eps fixed."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape -> scalar."""
        return charbonnier(restored, target, self.eps)


RESTORATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "charbonnier": charbonnier,
    "mse": functional.mse_loss,
}
