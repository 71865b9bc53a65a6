"""A network in two: a stem that stays as it is, and a rest that learns.

Whoever trains the rest alone may compute the stem once for all epochs; whoever has several rests, as several banks of
BatchNorms, once for all of them.

stem, rest = split_at(backbone, "blocks.5")
rest.answer(stem(image))
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from vmmr.errors import ConfigError
from vmmr.models.backbone import Backbone

__all__ = ["Stem", "split_at", "take_stem"]


class Stem(nn.Module):
    """The first layers of a backbone, frozen and in evaluation mode: images [B, 3, H, W] in [-1, 1] -> maps."""

    def __init__(self, backbone: Backbone, layers: list[nn.Module]) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone)
        self.backbone.model = nn.Sequential(*layers)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Stem:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.backbone.model(self.backbone.own_space(x))
        return found


def take_stem(backbone: Backbone, layer: str) -> Stem:
    """Take the layers before `layer` out of the backbone and return them as a stem; what is left, with the parameters
    that it had, begins at `layer`, and its images are the stem's maps.

    layer: a child of the timm model or of one of its sequences, "layer4" or "blocks.5". backbone(stem(x)) gives what
    backbone(x) gave. Raises ConfigError for a layer that there is not, and where layers do not follow one another in a
    line; the backbone is unusable then.
    """
    probe = torch.linspace(-1, 1, 3 * 64 * 64, device=backbone.scale.device).reshape(1, 3, 64, 64)
    was_training = backbone.training
    with torch.no_grad():
        wanted = backbone.eval().answer(probe)
    first, taken = [], False
    for name, child in list(backbone.model.named_children()):
        inside = layer.startswith(f"{name}.")
        parts = [(f"{name}.{own}", part) for own, part in child.named_children()] if inside else [(name, child)]
        for path, part in parts:
            taken = taken or path == layer
            if not taken:
                parent, _, own = path.rpartition(".")
                first.append(part)
                setattr(backbone.model.get_submodule(parent), own, nn.Identity())
    if not taken or not first:
        names = [name for name, _ in backbone.model.named_children()]
        raise ConfigError("the network has no such layer to split at", got=repr(layer), do=f"of {', '.join(names)}")
    stem = Stem(backbone, first)
    backbone.standardise = backbone.rescales = False
    with torch.no_grad():
        try:
            found = backbone.answer(stem(probe))
        except RuntimeError as error:
            raise ConfigError(f"the network cannot be split at {layer!r}", got=error) from error
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise ConfigError(f"the network cannot be split at {layer!r}: its layers do not stand in a line")
    backbone.train(was_training)
    return stem


def split_at(backbone: Backbone, layer: str) -> tuple[Stem, Backbone]:
    """Copies of the layers before `layer`, and of what follows them, in evaluation mode; see `take_stem`."""
    rest = deepcopy(backbone).eval()
    return take_stem(rest, layer), rest
