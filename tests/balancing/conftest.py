from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

LossesOf = Callable[..., tuple[dict[str, Tensor], Tensor]]


@pytest.fixture(scope="session")
def losses_of() -> LossesOf:
    """Makes losses a, b, c... with the given gradients, rows of [T, P], and values, 1 each, and the shared tensor."""

    def make(rows: Sequence[Sequence[float]] | Tensor, values: Sequence[float] | None = None) -> tuple:
        gradients = torch.as_tensor(rows, dtype=torch.float32)
        shared = torch.zeros(gradients.shape[1], requires_grad=True)
        values = values or [1.0] * len(gradients)
        return {chr(97 + i): v + g @ shared for i, (g, v) in enumerate(zip(gradients, values, strict=True))}, shared

    return make
