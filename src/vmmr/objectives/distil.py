"""What a student is asked to copy: feature maps at each depth and the mean of the teacher's logits.

Source: PMD, the distillation half of Liu 2024, arXiv 2401.14336. The published loss sums MSE(s, t_j) over the teacher's
four logit vectors; that sum has the gradient of 4 * MSE(s, mean_j t_j), so one term does.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["ensemble_mse", "feature_mse", "relative_feature_mse"]


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps [B, C, H, W]; PMD weighs it with 100."""
    return functional.mse_loss(student, teacher)


def relative_feature_mse(student: Tensor, teacher: Tensor, eps: float = 1e-12) -> Tensor:
    """`feature_mse` over the teacher's mean square: 1 for an all-zero student on any backbone.

    Ours: the published weight 100 presumes the feature magnitudes of one backbone.
    """
    return functional.mse_loss(student, teacher) / (teacher.square().mean() + eps)


def ensemble_mse(student: Tensor, teachers: list[Tensor]) -> Tensor:
    """J * MSE(student, mean of J teachers): the gradient of sum_j MSE(student, teachers[j]), all [B, N].

    >>> import torch
    >>> s, t = torch.tensor([[1.0]]), [torch.tensor([[0.0]]), torch.tensor([[2.0]])]
    >>> ensemble_mse(s, t).item()
    0.0
    """
    mean = sum(teachers[1:], teachers[0]) / len(teachers)
    return len(teachers) * functional.mse_loss(student, mean)
