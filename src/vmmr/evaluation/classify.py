"""How often the right class is first, or among the first five."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vmmr.torchvision_ops  # noqa: F401  (before torchmetrics)
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess

from torchmetrics.functional.classification import multiclass_accuracy  # isort: skip

__all__ = ["accuracy", "predict_logits"]


@torch.no_grad()
def predict_logits(
    answer: Callable[[Tensor], Tensor],
    network: nn.Module,
    pixels: Pixels,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    degrade: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits [N, classes] on the CPU of all images, cropped at the centre, with `network` in evaluation mode.

    answer: images [B, 3, H, W], normalised as `preprocess` says, -> logits. degrade: applied to those images first.
    The network's mode is put back afterwards.
    """
    was_training = network.training
    network.eval()
    try:
        parts = []
        for start in range(0, len(pixels), batch_size):
            held = pixels[np.arange(start, min(start + batch_size, len(pixels)))]
            image = preprocess.normalise(preprocess.centre_crop(held).to(device))
            if degrade is not None:
                image = degrade(image)
            parts.append(answer(image.contiguous(memory_format=torch.channels_last)).float().cpu())
        return torch.cat(parts)
    finally:
        network.train(was_training)


def accuracy(logits: Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    """top1 and top5 in [0, 1] of logits [N, C] and labels [N].

    >>> accuracy(torch.eye(6), np.arange(6))
    {'top1': 1.0, 'top5': 1.0}
    """
    truth, classes = torch.from_numpy(labels), logits.shape[1]
    return {
        f"top{k}": multiclass_accuracy(logits, truth, classes, average="micro", top_k=min(k, classes)).item()
        for k in (1, 5)
    }
