"""Learning a task: its bank of BatchNorms and its head, then all heads together on a few images of every class.

network = BankedNetwork(backbone)                          # task 0, if the backbone has a classifier
memory = remember(network, items, labels, Memory(2000))    # of its classes
memory = learn_task(network, items, labels, memory)        # and so on, task after task

Stage 1: the new bank and an auxiliary head are trained on the images of the task and on memory, whose images are
"unknown". Stage 2: banks are frozen, and all heads are trained on memory and as many images of the new classes; to head
j the classes of all other tasks are "unknown". Nothing but the new bank and the heads changes.

Source: Zhou et al., arXiv 2411.00430, as its authors' code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmmr.errors import ConfigError, DataError
from vmmr.incremental.banks import BankedNetwork, redraw
from vmmr.incremental.memory import Memory, per_class

__all__ = [
    "Features",
    "Plan",
    "Progress",
    "TaskNorm",
    "View",
    "align",
    "alignment_loss",
    "as_images",
    "bank_features",
    "learn_bank",
    "learn_task",
    "local_targets",
    "remember",
    "shuffled_batches",
]

View = Callable[[Tensor, torch.Generator | None], Tensor]
"""items [B, ...] -> images [B, 3, H, W] in [-1, 1]: as training varies them, drawn from a generator; without one, as
they are answered."""

Features = Callable[[Tensor, Sequence[int]], Tensor]
"""items [N, ...] and tasks -> features [N, len(tasks), D] of their banks: `bank_features`, or who kept them."""

Progress = Callable[[str, int, int, float], None]
"""Called after every epoch: the stage, epochs done, epochs in all, the mean loss of this one."""


def as_images(items: Tensor, generator: torch.Generator | None) -> Tensor:
    """The view of items that are images already, never varied."""
    return items


@dataclass(frozen=True)
class Plan:
    """How a stage descends. milestones: the shares of the epochs after which the rate falls to a tenth.

    Raises ConfigError for numbers out of range.
    """

    epochs: int
    lr: float
    milestones: tuple[float, ...] = ()
    batch_size: int = 128
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise ConfigError("a plan needs a rate above 0, images in a batch, and no negative number", got=self)

    def rate(self, epoch: int) -> float:
        """The rate of an epoch, from 0.

        >>> [round(Plan(10, 1.0, (0.5,)).rate(epoch), 3) for epoch in (4, 5)]
        [1.0, 0.1]
        """
        return self.lr * 0.1 ** sum(epoch >= max(1, round(share * self.epochs)) for share in self.milestones)


@dataclass(frozen=True)
class TaskNorm:
    """The settings; the defaults are those of the authors' code for CUB-200.

    stage1: SGD with momentum 0.9. stage2: Adam. init: see `BankedNetwork.add_bank`. head: where stage 2 starts the new
    head, at fresh values or at those of the auxiliary head; the first task always has the latter. aligned: what stage 2
    trains, heads as they are or the unknown output of each alone, which is ours: what a head says of its own classes
    stays as its task has taught it, bit for bit, so that nothing is forgotten that comes to the right head; heads then
    start from auxiliary ones (ConfigError otherwise). drop_absent: a head has a loss only in batches with an image of
    its task. reduction: heads' losses are summed, or averaged. first_unknown: whether the unknown output takes part in
    the loss of stage 1 where there is no image of another task, which only pushes it down. augment_alignment: whether
    stage 2 sees varied images; if not, each is computed once.
    """

    stage1: Plan = field(default_factory=lambda: Plan(200, 0.01, (0.35, 0.65, 0.85), weight_decay=1e-4))
    stage2: Plan = field(default_factory=lambda: Plan(100, 0.01, (0.55, 0.8)))
    init: Literal["base", "previous"] = "base"
    head: Literal["random", "auxiliary"] = "random"
    aligned: Literal["heads", "unknown"] = "heads"
    drop_absent: bool = True
    reduction: Literal["sum", "mean"] = "sum"
    first_unknown: bool = True
    augment_alignment: bool = True

    def __post_init__(self) -> None:
        if self.aligned == "unknown" and self.head != "auxiliary":
            do = "start it at the auxiliary one's: head='auxiliary'"
            raise ConfigError("of a head at fresh values the classes have to be aligned too", got=self.head, do=do)


def local_targets(labels: Tensor, start: int, classes: int) -> Tensor:
    """Labels as the head of a task has them: from 0, and `classes`, "unknown", for those of other tasks.

    >>> local_targets(torch.tensor([0, 3, 4, 5]), start=3, classes=2)
    tensor([2, 0, 1, 2])
    """
    own = labels - start
    return torch.where((own >= 0) & (own < classes), own, classes)


def alignment_loss(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    widths: Sequence[int],
    *,
    drop_absent: bool = True,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Cross-entropies of the heads on one batch: logits [B, sum of widths] side by side, labels int64 [B] -> a scalar.

    Each head's is a mean over the batch. A head without an unknown output has none.
    """
    found = []
    starts = accumulate(classes[:-1], initial=0)
    for block, start, count in zip(torch.split(logits, [*widths], dim=1), starts, classes, strict=True):
        target = local_targets(labels, start, count)
        absent = drop_absent and not bool((target < count).any())
        if block.shape[1] > count and not absent:
            found.append(functional.cross_entropy(block, target))
    total = sum(found, logits.sum() * 0)
    return total / max(len(found), 1) if reduction == "mean" else total


def shuffled_batches(count: int, size: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Every row once, in random order, in batches of at most `size`, as even as can be: none is left with one image,
    which BatchNorm could not learn from.

    >>> sorted(len(rows) for rows in shuffled_batches(9, 4, None))
    [3, 3, 3]
    """
    return torch.randperm(count, generator=generator).tensor_split(max(1, math.ceil(count / size)))


def learn_bank(
    network: BankedNetwork,
    task: int,
    items: Tensor,
    labels: Tensor,
    view: View = as_images,
    *,
    settings: TaskNorm | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> None:
    """Stage 1 for a bank that is there: items and labels [N] of its task, and of memory.

    Changes this bank alone, and its head where `settings.head` says so, or where it is the first.
    """
    settings = settings or TaskNorm()
    start, classes = network.offsets[task], network.classes[task]
    auxiliary = nn.Linear(network.width, classes + 1).to(network.backbone.scale)
    redraw(auxiliary, generator)
    targets = local_targets(labels, start, classes)
    outputs = classes + (settings.first_unknown or bool((targets == classes).any()))
    plan = settings.stage1
    with network.learning(task) as parameters:
        optimizer = torch.optim.SGD(
            [*parameters, *auxiliary.parameters()], lr=plan.lr, momentum=0.9, weight_decay=plan.weight_decay
        )

        def loss(rows: Tensor) -> Tensor:
            features = network.features(view(items[rows], generator), task)
            return functional.cross_entropy(auxiliary(features)[:, :outputs], targets[rows])

        descend("bank", plan, optimizer, len(labels), loss, generator, progress)
    if settings.head == "auxiliary" or task == 0:
        network.heads[task].load_state_dict(auxiliary.state_dict())


def align(
    network: BankedNetwork,
    items: Tensor,
    labels: Tensor,
    view: View = as_images,
    *,
    settings: TaskNorm | None = None,
    features: Features | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> None:
    """Stage 2: all heads that have an unknown output, on items and labels [N] of all tasks, as many of each class.

    Changes heads alone, or their unknown outputs, see `TaskNorm`. Where nothing is varied every image goes through the
    network once; features: who knows them.
    """
    settings = settings or TaskNorm()
    plan = settings.stage2
    varied = settings.augment_alignment and view is not as_images
    give = features or partial(bank_features, network, view=view)
    known = None if varied or not plan.epochs else give(items, range(len(network)))
    trained = [t for t, w in enumerate(network.widths) if w > network.classes[t]]
    heads = [parameter for task in trained for parameter in network.head_parameters(task)]

    def loss(rows: Tensor) -> Tensor:
        if known is None:
            with torch.no_grad():
                seen = network(view(items[rows], generator))["features"]
        else:
            seen = known[rows]
        return alignment_loss(
            network.head_logits(seen),
            labels[rows],
            network.classes,
            network.widths,
            drop_absent=settings.drop_absent,
            reduction=settings.reduction,
        )

    hooks = []

    def unknown_alone(slope: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(slope[:-1]), slope[-1:]])

    try:
        for parameter in heads:
            parameter.requires_grad_(True)
            if settings.aligned == "unknown":  # Adam leaves what never had a slope where it is, to the bit
                hooks.append(parameter.register_hook(unknown_alone))  # type: ignore[no-untyped-call]
        descend("heads", plan, torch.optim.Adam(heads, lr=plan.lr), len(labels), loss, generator, progress)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in heads:
            parameter.requires_grad_(False).grad = None


def learn_task(
    network: BankedNetwork,
    items: Tensor,
    labels: Tensor,
    memory: Memory,
    view: View = as_images,
    *,
    settings: TaskNorm | None = None,
    features: Features | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Memory:
    """Add a task to a network, in both stages; the memory with its classes.

    items [N, ...] and labels int64 [N]: its training images; labels go on where those of the last task ended, without a
    gap (DataError otherwise). memory: exemplars of all tasks before. features: who keeps those of earlier banks and
    images, which never change. generator: draws everything there is to draw.
    """
    settings = settings or TaskNorm()
    start = network.offsets[-1]
    found = torch.unique(labels)
    if not len(found) or found.tolist() != [*range(start, start + len(found))]:
        raise DataError(
            "labels of a task go on where the last one ended, without a gap",
            got=f"{found.tolist()[:8]}",
            do=f"begin at {start}",
        )
    if len(network) and not memory.quota:
        raise DataError(
            "the memory holds no image of old classes, which heads are told apart by",
            got=f"a budget of {memory.budget} for {memory.classes} classes",
            do="raise the budget; a network that came trained begins with `remember`",
        )
    task = network.add_bank(len(found), init=settings.init, generator=generator)
    together = _joined(memory, items, labels)
    learn_bank(network, task, *together, view, settings=settings, generator=generator, progress=progress)
    give = features or partial(bank_features, network, view=view)
    own = give(items, [task])[:, 0]
    if task:
        rows = per_class(labels, own, memory.quota, memory.pick)
        balanced = _joined(memory, items[rows], labels[rows])
        align(network, *balanced, view, settings=settings, features=give, generator=generator, progress=progress)
    return memory.with_classes(items, labels, own)


def remember(network: BankedNetwork, items: Tensor, labels: Tensor, memory: Memory, view: View = as_images) -> Memory:
    """The memory with the classes of the network's last task: what a base network that came trained begins with."""
    return memory.with_classes(items, labels, bank_features(network, items, [len(network) - 1], view)[:, 0])


@torch.no_grad()
def bank_features(
    network: BankedNetwork, items: Tensor, tasks: Sequence[int], view: View = as_images, batch_size: int = 64
) -> Tensor:
    """Features [N, len(tasks), D] of these banks, as the images are answered."""
    found = []
    for part in torch.split(items, batch_size):
        image = view(part, None)
        found.append(torch.stack([network.features(image, task) for task in tasks], dim=1))
    return torch.cat(found)


def _joined(memory: Memory, items: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if not len(memory):
        return items, labels
    return torch.cat([memory.items, items]), torch.cat([memory.labels, labels])


def descend(
    stage: str,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    count: int,
    loss: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
    progress: Progress | None,
) -> None:
    """Epochs of shuffled batches; loss: rows -> scalar."""
    group: dict[str, Any]
    for epoch in range(plan.epochs):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(epoch)
        seen = 0.0
        for rows in shuffled_batches(count, plan.batch_size, generator):
            optimizer.zero_grad()
            value = loss(rows)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen += float(value.detach()) * len(rows)
        if progress is not None:
            progress(stage, epoch + 1, plan.epochs, seen / max(count, 1))
