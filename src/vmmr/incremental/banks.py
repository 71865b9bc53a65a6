"""One set of convolutions, and for each task a set of BatchNorms and a head of its own.

A task is classes that came together. Its head has an output for each of them and a last one, "unknown": of another
task. Whatever is no BatchNorm is shared by all tasks and never changes. Labels are contiguous by task, in their order.

Source: Zhou et al., arXiv 2411.00430.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import accumulate
from typing import Literal, Self

import torch
from torch import Tensor, nn

import vmmr.torchvision_ops  # noqa: F401  (before timm)
from vmmr.errors import BundleError, ConfigError
from vmmr.models.backbone import Backbone

from timm.layers.norm_act import BatchNormAct2d  # isort: skip

__all__ = ["NAMES", "BankedNetwork", "BankedNorm", "Choice", "bank_norms", "redraw", "require_bank"]

NAMES = ("weight", "bias", "running_mean", "running_var")
"""What a bank holds of a layer."""
_SMALL = 600_000  # numbers at the input, of all tasks: what lies between layers then stays in a processor's cache


class Choice:
    """Whose bank all layers of a network apply in the pass that is under way: one for all images, or int64 [B], one for
    each; None: those of all."""

    def __init__(self) -> None:
        self.bank: int | Tensor | None = None


class BankedNorm(nn.Module):
    """One BatchNorm of a network with a bank for each task: gamma, beta, running mean and variance, [C] each.

    norm: the one whose place it takes, kept as `origin`: new banks start from it, and answers do not use it. choice:
    whose bank is applied to x [B, C, H, W]; of None, all of them, each to its part of x [T*B, C, H, W], task after
    task. Where that is not one bank for all, running statistics are used.
    """

    def __init__(self, norm: nn.BatchNorm2d, choice: Choice) -> None:
        super().__init__()
        self.origin = _plain(norm)
        self.banks = nn.ModuleList()
        # timm's BatchNorm brings the activation behind it.
        self.tail: nn.Module = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        bank = self.choice.bank
        if isinstance(bank, int):
            moved: Tensor = self.banks[bank](x)
        elif bank is not None:
            scale, shift = (value[bank][:, :, None, None] for value in affine(self.stacked()))
            moved = torch.addcmul(shift, x, scale)
        else:
            scale, shift = (value[:, None, :, None, None] for value in affine(self.stacked()))
            parts = x.reshape(len(self.banks), -1, *x.shape[1:])
            moved = torch.addcmul(shift, parts, scale).flatten(0, 1)
        found: Tensor = self.tail(moved)
        return found

    def stacked(self) -> dict[str, Tensor]:
        """weight, bias, running_mean, running_var [T, C] of all banks, and eps [T, 1]."""
        values = {name: torch.stack([getattr(bank, name) for bank in self.banks]) for name in NAMES}
        return values | {"eps": values["weight"].new_full((len(self.banks), 1), self.origin.eps)}


def affine(stats: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What BatchNorm does by running statistics: x * scale + shift, of tensors named as those of `BankedNorm.stacked`.

    >>> one = {"weight": 6.0, "bias": 1.0, "running_mean": 2.0, "running_var": 8.0, "eps": 1.0}
    >>> affine({name: torch.tensor(value) for name, value in one.items()})
    (tensor(2.), tensor(-3.))
    """
    scale = stats["weight"] * (stats["running_var"] + stats["eps"]).rsqrt()
    return scale, stats["bias"] - stats["running_mean"] * scale


class BankedNetwork(nn.Module):
    """A backbone whose BatchNorms are banked, and the heads [K_t + 1] of its tasks.

    backbone: copied, never changed. Its classifier becomes the head of task 0 and its BatchNorms the first bank; a
    backbone without classifier begins without tasks. base_unknown: give that head an unknown output too, which says
    the mean of its classes until it is trained; without one the head is kept as it is, and answers of task 0 with it.

    Everything is frozen and in evaluation mode, whatever `train()` says, but for the task that is `learning`. Raises
    ConfigError for backbones without BatchNorm, with one of another kind or without statistics, or with a classifier
    that is not linear.
    """

    def __init__(self, backbone: Backbone, *, base_unknown: bool = True) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone)
        self.heads = nn.ModuleList()
        self.classes: tuple[int, ...] = ()
        self._learning: int | None = None
        model = self.backbone.model
        self.width = backbone.width
        classifier = model.get_classifier()
        self.base_unknown = base_unknown or not isinstance(classifier, nn.Linear)
        if isinstance(classifier, nn.Linear):
            model.reset_classifier(0)
        elif classifier is not None and not isinstance(classifier, nn.Identity):
            raise ConfigError(
                "the base network has no linear classifier",
                got=type(classifier).__name__,
                do="pick a backbone with one, or classes=0",
            )
        self._choice = Choice()
        self.norms = bank_norms(model, self._choice)
        self.requires_grad_(False)
        if isinstance(classifier, nn.Linear):
            self._grow(classifier.out_features, "base", _head_of(classifier, base_unknown))
        self.eval()

    def __len__(self) -> int:
        """How many tasks there are."""
        return len(self.heads)

    @property
    def widths(self) -> tuple[int, ...]:
        """The outputs of each head: K_t + 1, or K_0 where the base has no unknown output."""
        return tuple(head.out_features for head in self._linears())

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first label of each task, and after the last one the number of all classes: [T + 1]."""
        return tuple(accumulate(self.classes, initial=0))

    def add_bank(
        self, classes: int, *, init: Literal["base", "previous"] = "base", generator: torch.Generator | None = None
    ) -> int:
        """A task of so many new classes, untrained; its number.

        init: where its bank starts: the BatchNorms of the base network, as published, or the bank of the task before.
        generator: draws the head, as torch draws linear layers.
        """
        if classes < 1:
            raise ConfigError("a task has classes", got=classes)
        head = nn.Linear(self.width, classes + 1, device=self.backbone.scale.device)
        redraw(head, generator)
        return self._grow(classes, init if len(self) else "base", head)

    def drop_bank(self) -> None:
        """Forget the last task: the rest of the network is as it was before, but for heads aligned since."""
        if len(self) < 2:
            raise ConfigError("the only task cannot be dropped", got=f"{len(self)} tasks")
        del self.heads[-1]
        for norm in self.norms.values():
            del norm.banks[-1]
        self.classes = self.classes[:-1]

    def merge(self, task: int, shares: tuple[float, float]) -> None:
        """Make one task of `task` and the one behind it. shares: how many images each learned from.

        In every layer, what the two banks do to a channel is averaged by shares, x * scale + shift; running statistics
        become those of both tasks' images together. The head has the outputs of both; its unknown output is the mean
        of theirs. Each old bank saw its own features, so the head is to be aligned again on memory
        (`vmmr.incremental.task_norm.align`), and accuracy to be looked at. Answers cost one pass less.

        The rule is ours: banks that began alike and learned a little are averaged like weights of fine-tuned networks
        (Wortsman et al., arXiv 2203.05482).
        """
        if not 0 <= task < len(self) - 1:
            raise ConfigError("no two neighbouring tasks", got=f"task {task} of {len(self)}")
        if min(shares) < 0 or not 0 < sum(shares) < math.inf:
            raise ConfigError("shares are not negative, and one of them is above 0", got=shares)
        if task == 0 and not self.base_unknown:
            raise ConfigError("a base head without an unknown output is kept as it is", got="task 0")
        one, two = self._linears()[task : task + 2]
        head = nn.Linear(self.width, one.out_features + two.out_features - 1, device=one.weight.device)
        with torch.no_grad():
            for name in ("weight", "bias"):
                first, second = getattr(one, name), getattr(two, name)
                unknown = (first[-1:] + second[-1:]) / 2
                getattr(head, name).copy_(torch.cat([first[:-1], second[:-1], unknown]))
            for norm in self.norms.values():
                _average(norm, task, shares)
        self.heads[task] = head.requires_grad_(False)
        del self.heads[task + 1]
        self.classes = (*self.classes[:task], sum(self.classes[task : task + 2]), *self.classes[task + 2 :])

    def features(self, x: Tensor, task: int) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> pooled features [B, D] by the bank of one task."""
        try:
            self._choice.bank = range(len(self))[task]
            return self._pooled(self.backbone.own_space(x))
        finally:
            self._choice.bank = None

    def logits(self, x: Tensor, task: int) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the logits [B, K_t + 1] of one task."""
        found: Tensor = self.heads[task](self.features(x, task))
        return found

    def head_logits(self, features: Tensor) -> Tensor:
        """Features of all banks [B, T, D] -> the logits of all heads side by side, [B, sum of widths]."""
        return torch.cat([head(features[:, task]) for task, head in enumerate(self.heads)], dim=1)

    def forward(self, x: Tensor, *, batched: bool | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> `logits` [B, sum of widths], side by side, and `features` [B, T, D].

        batched: one pass over T copies of the images, or a pass a task, with the same result; None: one pass on a GPU
        and of what is small, else passes in turn. Exported graphs hold passes in turn, where each BatchNorm can fold
        into the convolution before it. `vmmr.incremental.routing` makes answers of them.
        """
        small = not torch.compiler.is_exporting() and len(self) * x.numel() <= _SMALL
        if (x.is_cuda or small) if batched is None else batched:
            # `cat` keeps the memory format of x, `repeat` does not.
            found = self._pooled(torch.cat([self.backbone.own_space(x)] * len(self)))
            features = found.reshape(len(self), -1, self.width).transpose(0, 1)
        else:
            features = torch.stack([self.features(x, task) for task in range(len(self))], dim=1)
        return {"logits": self.head_logits(features), "features": features}

    def bank_parameters(self, task: int) -> list[nn.Parameter]:
        """Gamma and beta of every layer for one task: 2 * (sum of the layers' channels) numbers."""
        return [p for norm in self.norms.values() for p in norm.banks[task].parameters()]

    def head_parameters(self, task: int) -> list[nn.Parameter]:
        """The head of one task: (D + 1) * (K_t + 1) numbers."""
        return list(self.heads[task].parameters())

    @contextmanager
    def learning(self, task: int) -> Iterator[list[nn.Parameter]]:
        """Within, the bank of this task is in training mode, and gamma and beta have gradients; they are given back for
        an optimiser. All else stays frozen, heads too."""
        parameters = self.bank_parameters(task)
        self._learning = range(len(self))[task]
        self.train()
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield parameters
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False).grad = None
            self._learning = None
            self.eval()

    def train(self, mode: bool = True) -> Self:
        """Training mode for the bank that is `learning`, evaluation mode for the rest."""
        super().train(False)
        if mode and self._learning is not None:
            for norm in self.norms.values():
                norm.banks[self._learning].train()
        self.training = mode
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all banks and heads by name: `banks.<task>.<layer>.weight`, `bias`, `running_mean`, `running_var`,
        and `heads.<task>.weight`, `bias`. With the base network, that is all there is."""
        return {name: value.clone() for name, value in self._tensors().items()}

    @classmethod
    def from_tensors(
        cls, backbone: Backbone, tensors: Mapping[str, Tensor], classes: Sequence[int], *, base_unknown: bool = True
    ) -> Self:
        """The inverse of `tensors`. backbone: the base network; classes: K_t of the tasks, and base_unknown as it was.

        The tensors may come from a stranger's file: BundleError names the first that is missing, is not known, has
        another shape or type, holds what is no finite number, or is a variance below 0.
        """
        network = cls(backbone, base_unknown=base_unknown)
        if not classes or min(classes) < 1:
            raise BundleError("banks are of tasks with classes", got=list(classes))
        network._clear()
        for task, count in enumerate(classes):
            width = count + (task > 0 or network.base_unknown)
            network._grow(count, "base", nn.Linear(network.width, width).to(network.backbone.scale))
        own = network._tensors()
        for name in sorted({*own, *tensors}):
            if name not in own or name not in tensors:
                raise BundleError(
                    "banks of another network", got=f"{name} is {'missing' if name in own else 'not known'}"
                )
            value, wanted = tensors[name], own[name]
            require_bank(name, value, wanted)
            wanted.copy_(value)
        return network

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for layer, norm in self.norms.items():
            for task, bank in enumerate(norm.banks):
                found |= {f"banks.{task}.{layer}.{name}": getattr(bank, name) for name in NAMES}
        for task, head in enumerate(self._linears()):
            found |= {f"heads.{task}.weight": head.weight, f"heads.{task}.bias": head.bias}
        return {name: value.detach() for name, value in found.items()}

    def _clear(self) -> None:
        self.heads, self.classes = nn.ModuleList(), ()
        for norm in self.norms.values():
            norm.banks = nn.ModuleList()

    def _linears(self) -> list[nn.Linear]:
        return [head for head in self.heads if isinstance(head, nn.Linear)]

    def _grow(self, classes: int, init: Literal["base", "previous"], head: nn.Linear) -> int:
        for norm in self.norms.values():
            start = norm.origin if init == "base" else norm.banks[-1]
            norm.banks.append(deepcopy(start))
        self.heads.append(deepcopy(head).requires_grad_(False))
        self.classes = (*self.classes, classes)
        self.eval()
        return len(self) - 1

    def _pooled(self, x: Tensor) -> Tensor:
        model = self.backbone.model
        found: Tensor = model.forward_head(model.forward_features(x), pre_logits=True)
        return found


def bank_norms(model: nn.Module, choice: Choice) -> dict[str, BankedNorm]:
    """Put a `BankedNorm` without banks in the place of every BatchNorm of a model, and give them by name, in the order
    in which the model names them. ConfigError where there is none, or one of another kind or without statistics."""
    norms: dict[str, BankedNorm] = {}
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            known = isinstance(module, nn.BatchNorm2d) and type(module) in (nn.BatchNorm2d, BatchNormAct2d)
            if not known or not (module.affine and module.track_running_stats):
                raise ConfigError("a BatchNorm of the network cannot be banked", got=f"{name}: {type(module).__name__}")
            parent, _, own = name.rpartition(".")
            norms[name] = BankedNorm(module, choice)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), own, norms[name])
    if not norms:
        raise ConfigError("the network has no BatchNorm", do="pick a backbone with BatchNorm")
    return norms


def require_bank(name: str, value: Tensor, wanted: Tensor) -> None:
    """BundleError, which names the tensor, unless it is of the shape and type that is wanted, finite, and no variance
    below 0."""
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        raise BundleError(
            f"{name} is of another network",
            got=f"{value.dtype} {list(value.shape)}",
            do=f"need {wanted.dtype} {list(wanted.shape)}",
        )
    if not value.isfinite().all() or (name.endswith(".running_var") and (value < 0).any()):
        raise BundleError(f"{name} holds what is no finite number, or a variance below 0")


def redraw(head: nn.Linear, generator: torch.Generator | None) -> None:
    """Fresh values for a linear layer, drawn as torch draws them: uniform within 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(head.in_features)
    with torch.no_grad():
        for parameter in head.parameters():
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(values)


def _plain(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A BatchNorm alone, without what timm puts behind it."""
    found = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    state = norm.state_dict()
    found.load_state_dict({name: state[name] for name in found.state_dict()})
    return found.to(norm.weight)


def _head_of(classifier: nn.Linear, unknown: bool) -> nn.Linear:
    """The classifier as a head; unknown: with a last output that is the mean of the others."""
    found = nn.Linear(classifier.in_features, classifier.out_features + unknown, device=classifier.weight.device)
    with torch.no_grad():
        bias = classifier.weight.new_zeros(classifier.out_features) if classifier.bias is None else classifier.bias
        for parameter, rows in zip((found.weight, found.bias), (classifier.weight, bias), strict=True):
            parameter.copy_(torch.cat([rows, rows.mean(dim=0, keepdim=True)]) if unknown else rows)
    return found


def _average(norm: BankedNorm, task: int, shares: tuple[float, float]) -> None:
    """Bank `task` becomes the mean of itself and the next, which goes."""
    pair = {name: value[task : task + 2] for name, value in norm.stacked().items()}
    weight = pair["weight"].new_tensor(shares)[:, None] / sum(shares)
    scale, shift = ((weight * part).sum(dim=0) for part in affine(pair))
    mean = (weight * pair["running_mean"]).sum(dim=0)
    spread = pair["running_var"] + (pair["running_mean"] - mean).square()
    variance = (weight * spread).sum(dim=0)
    bank = norm.banks[task]
    gamma = scale * (variance + norm.origin.eps).sqrt()
    for name, value in zip(NAMES, (gamma, shift + mean * scale, mean, variance), strict=True):
        getattr(bank, name).copy_(value)
    del norm.banks[task + 1]
