"""One softmax that grows: the plain way to learn new classes, and what other ways are compared with.

Trained on new images alone it is fine-tuning, on those and memory replay, on all images there ever were joint training.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmmr.errors import ConfigError, DataError
from vmmr.incremental.banks import redraw
from vmmr.incremental.task_norm import Plan, Progress, View, as_images, shuffled_batches
from vmmr.models.backbone import Backbone

__all__ = ["GrowingNetwork", "Loss", "learn_classes"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""logits [B, C], labels [B], and what the network said of its old classes before, [B, old] -> a scalar."""


class GrowingNetwork(nn.Module):
    """A backbone, copied, and a linear layer for all classes seen.

    Raises ConfigError for a classifier that is not linear.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone)
        classifier = self.backbone.model.get_classifier()
        if not isinstance(classifier, nn.Linear) or classifier.bias is None:
            raise ConfigError("the network has no linear classifier with a bias", got=type(classifier).__name__)
        self.head = classifier
        self.backbone.model.reset_classifier(0)

    def grow(self, classes: int, generator: torch.Generator | None = None) -> None:
        """Outputs for all of so many classes; those that were there keep their values, the others are drawn."""
        old = self.head
        self.head = nn.Linear(old.in_features, classes).to(old.weight)
        redraw(self.head, generator)
        with torch.no_grad():
            self.head.weight[: old.out_features] = old.weight
            self.head.bias[: old.out_features] = old.bias

    def features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> pooled features [B, D]."""
        model = self.backbone.model
        found: Tensor = model.forward_head(model.forward_features(self.backbone.own_space(x)), pre_logits=True)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> logits [B, C]."""
        found: Tensor = self.head(self.features(x))
        return found


def learn_classes(
    network: GrowingNetwork,
    items: Tensor,
    labels: Tensor,
    view: View = as_images,
    *,
    plan: Plan,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the whole network on items [N, ...] and labels int64 [N], after it has grown to the largest of them.

    loss: cross-entropy where there is none; only where there is one, a copy of the network as it was says what it gives
    old classes. SGD with momentum 0.9. Raises DataError where there is no image.
    """
    if not len(labels):
        raise DataError("nothing to learn from", got="no image")
    before = network.head.out_features
    teacher = None if loss is None else deepcopy(network).eval()
    network.grow(max(before, int(labels.max()) + 1), generator)
    descent = torch.optim.SGD(network.parameters(), lr=plan.lr, momentum=0.9, weight_decay=plan.weight_decay)
    network.train()
    try:
        for epoch in range(plan.epochs):
            for group in descent.param_groups:
                group["lr"] = plan.rate(epoch)
            total = 0.0
            for rows in shuffled_batches(len(labels), plan.batch_size, generator):
                image, truth = view(items[rows], generator), labels[rows]
                descent.zero_grad()
                logits = network(image)
                if loss is None or teacher is None:
                    value = functional.cross_entropy(logits, truth)
                else:
                    with torch.no_grad():
                        old = teacher(image)
                    value = loss(logits, truth, old)
                value.backward()  # type: ignore[no-untyped-call]
                descent.step()
                total += float(value.detach()) * len(rows)
            if progress is not None:
                progress("classes", epoch + 1, plan.epochs, total / len(labels))
    finally:
        network.eval()
