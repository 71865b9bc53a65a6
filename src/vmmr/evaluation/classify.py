"""How often the right class is first, or among the first five."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vmmr.torchvision_ops  # noqa: F401  (before torchmetrics)
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess

from torchmetrics.functional.classification import multiclass_accuracy  # isort: skip

__all__ = ["accuracy", "macro_accuracy", "make_accuracy", "predict_logits", "views"]


def views(
    pixels: Pixels,
    preprocess: Preprocess,
    *,
    rows: NDArray[np.int64] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    degrade: Callable[[Tensor, NDArray[np.int64]], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images (all, or these rows) in batches [B, 3, H, W], cropped at the centre and normalised as `preprocess`
    says: each clean, and as `degrade` leaves it, which is given the images and their rows as keys."""
    rows = np.arange(len(pixels)) if rows is None else rows
    for start in range(0, len(rows), batch_size):
        keys = rows[start : start + batch_size]
        clean = preprocess.normalise(preprocess.centre_crop(pixels[keys]).to(device))
        shown = clean if degrade is None else degrade(clean, keys)
        yield clean, shown.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict_logits(
    answer: Callable[[Tensor], Tensor],
    network: nn.Module,
    pixels: Pixels,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    degrade: Callable[[Tensor, NDArray[np.int64]], Tensor] | None = None,
) -> Tensor:
    """Logits [N, classes] on the CPU of all images, as `views` shows them, with `network` in evaluation mode.

    answer: images -> logits. The network's mode is put back afterwards.
    """
    was_training = network.training
    network.eval()
    try:
        shown = views(pixels, preprocess, device=device, batch_size=batch_size, degrade=degrade)
        return torch.cat([answer(image).float().cpu() for _, image in shown])
    finally:
        network.train(was_training)


def accuracy(logits: Tensor, labels: NDArray[np.int64], ranks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """top1 and top5 (or those of other ranks) in [0, 1] of logits [N, C] and labels [N].

    >>> accuracy(torch.eye(6), np.arange(6))
    {'top1': 1.0, 'top5': 1.0}
    """
    truth, classes = torch.from_numpy(labels), logits.shape[1]
    if classes == 1:  # cars of a single make, say
        return {f"top{k}": 1.0 for k in ranks}
    return {
        f"top{k}": multiclass_accuracy(logits, truth, classes, average="micro", top_k=min(k, classes)).item()
        for k in ranks
    }


def macro_accuracy(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The mean over classes of the share of their images that is answered right, of answers [N] and labels [N].

    Only classes with images count; torchmetrics counts those that were merely answered as well, with 0.

    >>> macro_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2]))
    0.5
    """
    images = np.bincount(labels)
    right = np.bincount(labels[answers == labels], minlength=len(images))
    return float((right[images > 0] / images[images > 0]).mean())


def make_accuracy(answers: NDArray[np.int64], labels: NDArray[np.int64], make_of: NDArray[np.int64]) -> float:
    """The share of images whose answer is of the right make, whatever the model; make_of: [C], the make of a label.

    >>> make_accuracy(np.array([0, 1, 2]), np.array([1, 1, 1]), np.array([7, 7, 8]))
    0.6666666666666666
    """
    return float((make_of[answers] == make_of[labels]).mean())
