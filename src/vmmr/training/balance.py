"""Which losses of a run are weighed against each other, by what rule, and where their gradients are compared.

Rules are those of `vmmr.balancing`. Losses with one purpose are summed before they are weighed: by task, which for PMAL
are recognition, restoration and recognition of the restored, or by level, make against model. Gradients are compared at
the last weight of the trunk that these sums share.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmmr.balancing import BALANCERS, Weighting
from vmmr.config import TrainConfig
from vmmr.errors import ConfigError
from vmmr.models import Backbone

__all__ = ["balancer", "grouped", "last_weight", "shared_weights", "tasks"]

_TASKS = {
    "noisy": "recognition",
    "head": "recognition",
    "trunk": "recognition",
    "restore": "restoration",
    "restored": "restored",
    "features": "features",
    "logits": "logits",
    "labels": "labels",
}
"""What the names of losses begin with -> the task they serve; other names stand for themselves."""


def tasks(config: TrainConfig) -> tuple[str, ...]:
    """All names that `grouped` can give in a run.

    >>> tasks(TrainConfig(method="pmal", noise="strong"))
    ('recognition', 'restoration', 'restored')
    """
    levels = (*config.levels, *(["marginal"] if config.marginal_weight else []))
    if config.method == "plain":
        return (*(levels or ("classify",)), *(["consistency"] if config.consistency else []))
    if config.method == "pmal":
        by_task: tuple[str, ...] = ("recognition", "restoration", "restored")
        return (*levels, "restoration") if config.balance_over == "levels" else by_task
    return (*levels, "features") if config.balance_over == "levels" else ("features", "logits", "labels")


def grouped(losses: Mapping[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """Losses summed by task, or by level where the settings say so.

    >>> losses = {"head_1_make": torch.tensor(1.0), "trunk_make": torch.tensor(2.0), "restore_1": torch.tensor(4.0)}
    >>> grouped(losses, TrainConfig(method="pmal", noise="strong", levels=["make"]))
    {'recognition': tensor(3.), 'restoration': tensor(4.)}
    """
    levels = (*config.levels, "marginal")
    sums: dict[str, Tensor] = {}
    for name, loss in losses.items():
        level = next((level for level in levels if name == level or name.endswith(f"_{level}")), None)
        task = _TASKS.get(name.split("_")[0], name)
        group = level if level is not None and (config.balance_over == "levels" or name == level) else task
        sums[group] = sums[group] + loss if group in sums else loss
    return sums


def balancer(config: TrainConfig) -> Weighting | None:
    """The rule of the settings, or None where losses are simply summed. A run that only measures has fixed weights.

    Raises ConfigError for options that the rule does not have.
    """
    if config.balancer == "none" and not config.measure_every:
        return None
    name = "fixed" if config.balancer == "none" else config.balancer
    try:
        return BALANCERS[name](tasks(config), **config.balancer_options)
    except TypeError as error:
        raise ConfigError(f"the rule {name!r} has no such option", got=error, do="see docs/balancing.md") from error


def last_weight(backbone: Backbone, size: int, depth: int | None = None) -> nn.Parameter:
    """The last weight of the trunk before the map at `depth`, or, without one, before the pooled features.

    size: side of the input in pixels. The last of those that a gradient of the features reaches, as they are defined.
    """
    weights = [p for p in backbone.model.parameters() if p.ndim > 1 and p.requires_grad]
    head = {id(p) for p in backbone.classifier_parameters()}
    was_training = backbone.training
    backbone.eval()  # one image, and no running statistics
    try:
        image = torch.zeros(1, 3, size, size, device=weights[0].device)
        with torch.enable_grad():
            seen = backbone(image)["logits_0"] if depth is None else backbone.features(image, depth)
        reached = torch.autograd.grad(seen.sum(), weights, allow_unused=True)
    finally:
        backbone.train(was_training)
    found: list[nn.Parameter] = [
        weight
        for weight, gradient in zip(weights, reached, strict=True)
        if gradient is not None and id(weight) not in head
    ]
    return found[-1]


def shared_weights(
    backbone: Backbone, config: TrainConfig, *depths: int | None
) -> dict[int | None, tuple[nn.Parameter, ...]]:
    """`last_weight` at these depths; nothing at all where no gradients are compared."""
    if config.balancer == "none" and not config.measure_every:
        return dict.fromkeys(depths, ())
    return {depth: (last_weight(backbone, config.size, depth),) for depth in depths}
