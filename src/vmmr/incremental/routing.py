"""Which task is an image of, and which class? Answers from the logits of all heads.

logits [B, sum of widths] are those of a `BankedNetwork`, classes and widths its own. With p_j = softmax of head j and
u_j its last entry, "unknown", the task is argmin u_j and the class the likeliest of that head; min u_j is how unknown
an image is to all of them. Source: Zhou et al., arXiv 2411.00430.

A head that has no unknown output takes what the others refuse: u_0 = 1 - prod of the other u_j. The rule is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from vmmr.errors import DataError

__all__ = [
    "Calibration",
    "Routed",
    "class_log_likelihoods",
    "fit_calibration",
    "route",
    "route_by_max_softmax",
    "route_to",
    "task_of",
    "unknown_by_head",
]


class Routed(NamedTuple):
    """Answers: label int64 [B], task int64 [B], score [B] the probability of the class, in [0, 1], the unknown output
    among what it is shared by; unknown [B], higher = stranger: min u_j."""

    label: Tensor
    task: Tensor
    score: Tensor
    unknown: Tensor


@dataclass(frozen=True)
class Calibration:
    """Makes the unknown probabilities of different heads comparable: logit u_j becomes scale_j * logit u_j + offset_j,
    both float [T]."""

    scale: Tensor
    offset: Tensor


def task_of(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """The task of each label.

    >>> task_of(torch.tensor([0, 2, 3, 4]), (3, 1, 2))
    tensor([0, 0, 1, 2])
    """
    ends = torch.tensor([*accumulate(classes)], device=labels.device)
    return torch.bucketize(labels.contiguous(), ends, right=True)


def unknown_by_head(
    logits: Tensor, classes: Sequence[int], widths: Sequence[int], calibration: Calibration | None = None
) -> Tensor:
    """u [B, T] in [0, 1]: for each head, how surely an image is of no class of its task.

    >>> unknown_by_head(torch.tensor([[0.0, 0.0, 5.0, 5.0]]), classes=(1, 1), widths=(2, 2))
    tensor([[0.5000, 0.5000]])
    """
    u = _unknown_logits(logits, classes, widths, calibration).sigmoid()
    if widths[0] == classes[0]:
        u = torch.cat([1 - u[:, 1:].prod(dim=1, keepdim=True), u[:, 1:]], dim=1)
    return u


def route(
    logits: Tensor, classes: Sequence[int], widths: Sequence[int], *, calibration: Calibration | None = None
) -> Routed:
    """The answer of the head that is least "unknown".

    >>> route(torch.tensor([[2.0, 1.0, 0.0, 3.0, -4.0]]), classes=(2, 1), widths=(3, 2)).label
    tensor([2])
    """
    u = unknown_by_head(logits, classes, widths, calibration)
    return _answers(logits, classes, widths, u, u.argmin(dim=1))


def route_by_max_softmax(logits: Tensor, classes: Sequence[int], widths: Sequence[int]) -> Routed:
    """The answer of the head whose likeliest class is the likeliest of all: what routing by "unknown" must beat."""
    u = unknown_by_head(logits, classes, widths)
    likeliest, _ = _inside(logits, classes, widths)
    return _answers(logits, classes, widths, u, (likeliest * (1 - u)).argmax(dim=1))


def route_to(tasks: Tensor, logits: Tensor, classes: Sequence[int], widths: Sequence[int]) -> Routed:
    """The answer of the head of a task that is known from elsewhere, int64 [B]: as accurate as routing could be."""
    return _answers(logits, classes, widths, unknown_by_head(logits, classes, widths), tasks)


def class_log_likelihoods(
    logits: Tensor, classes: Sequence[int], widths: Sequence[int], *, calibration: Calibration | None = None
) -> Tensor:
    """log((1 - u_j) p_jk) of every class k of every head j, [B, C]: as one more opinion about all classes, which may be
    added to the log-likelihoods of others (a product of experts). p_jk is among the classes of the head alone.

    >>> class_log_likelihoods(torch.tensor([[0.0, 0.0, 5.0, 5.0]]), classes=(1, 1), widths=(2, 2)).exp()
    tensor([[0.5000, 0.5000]])
    """
    odds = _unknown_logits(logits, classes, widths, calibration)
    known = functional.logsigmoid(-odds)
    if widths[0] == classes[0]:  # 1 - u_0 is the product of the others' u
        known = torch.cat([functional.logsigmoid(odds[:, 1:]).sum(dim=1, keepdim=True), known[:, 1:]], dim=1)
    blocks = torch.split(logits, [*widths], dim=1)
    inside = [block[:, :count].log_softmax(dim=1) for block, count in zip(blocks, classes, strict=True)]
    return torch.cat([part + known[:, task : task + 1] for task, part in enumerate(inside)], dim=1)


def fit_calibration(logits: Tensor, labels: Tensor, classes: Sequence[int], widths: Sequence[int]) -> Calibration:
    """Platt's scaling of each head, on images whose labels are known: at best validation images, or exemplars.

    A head with few classes has seen other odds of "unknown" than one with many, and so has an older one: what each says
    is put on the scale of how often it is right. Maximum likelihood with Platt's smoothed targets (1999), so that
    exemplars which a head tells perfectly leave its numbers finite. Raises DataError where a task has no image.
    """
    tasks = task_of(labels, classes)
    odds = _unknown_logits(logits, classes, widths).double().cpu().numpy()
    found = np.array([[1.0, 0.0]] * len(classes))
    for task in range(len(classes)):
        foreign = (tasks != task).cpu().numpy()
        if len(classes) == 1 or (task == 0 and widths[0] == classes[0]):
            continue
        if foreign.all() or not foreign.any():
            raise DataError("calibration takes images of every task", got=f"none of task {task}, or of another")
        found[task] = _platt(odds[:, task], foreign)
    scale, offset = torch.from_numpy(found).to(logits).unbind(dim=1)
    return Calibration(scale, offset)


def _platt(odds: NDArray[np.float64], foreign: NDArray[np.bool_]) -> NDArray[np.float64]:
    """scale and offset under which sigmoid(scale * odds + offset) is the chance of being foreign."""
    most = int(foreign.sum())
    target = np.where(foreign, (most + 1) / (most + 2), 1 / (len(foreign) - most + 2))
    inputs = np.stack([odds, np.ones_like(odds)], axis=1)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved = inputs @ parameters
        value = (np.logaddexp(0, moved) - target * moved).mean()
        sigmoid = np.exp(-np.logaddexp(0, -moved))
        return float(value), inputs.T @ (sigmoid - target) / len(target)

    best: NDArray[np.float64] = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return best


def _answers(logits: Tensor, classes: Sequence[int], widths: Sequence[int], u: Tensor, task: Tensor) -> Routed:
    likeliest, label = _inside(logits, classes, widths)
    at = task[:, None]
    score = (likeliest * (1 - u)).gather(1, at)[:, 0]
    return Routed(label.gather(1, at)[:, 0], task, score, u.amin(dim=1))


def _inside(logits: Tensor, classes: Sequence[int], widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The likeliest class of each head: its probability among the classes of that head, and its label, both [B, T]."""
    blocks = torch.split(logits, [*widths], dim=1)
    pairs = [block[:, :count].softmax(dim=1).max(dim=1) for block, count in zip(blocks, classes, strict=True)]
    starts = accumulate(classes[:-1], initial=0)
    labels = [start + pair.indices for start, pair in zip(starts, pairs, strict=True)]
    return torch.stack([pair.values for pair in pairs], dim=1), torch.stack(labels, dim=1)


def _unknown_logits(
    logits: Tensor, classes: Sequence[int], widths: Sequence[int], calibration: Calibration | None = None
) -> Tensor:
    """logit u [B, T]: the unknown output less the log-sum-exp of the classes; 0 where there is no such output."""
    blocks = torch.split(logits, [*widths], dim=1)
    found = [
        block[:, count] - block[:, :count].logsumexp(dim=1) if width > count else torch.zeros_like(block[:, 0])
        for block, count, width in zip(blocks, classes, widths, strict=True)
    ]
    odds = torch.stack(found, dim=1)
    return odds if calibration is None else odds * calibration.scale + calibration.offset
