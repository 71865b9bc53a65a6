"""A network in two: a stem that every task shares, and a rest whose BatchNorms may be banked.

The published method banks every BatchNorm, and an answer costs a whole pass for each task. With `BankedNetwork(rest)`
the stem is computed once for all tasks, and may be computed once for all epochs. The variant is ours.

stem, rest = split_at(backbone, "blocks.5")
network = BankedNetwork(rest)
logits = network(stem(image))["logits"]
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from vmmr.errors import ConfigError
from vmmr.models.backbone import Backbone

__all__ = ["Stem", "split_at"]


class Stem(nn.Module):
    """The first layers of a backbone, frozen and in evaluation mode: images [B, 3, H, W] in [-1, 1] -> maps."""

    def __init__(self, backbone: Backbone, layers: list[nn.Module]) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone)
        self.backbone.model = nn.Sequential(*deepcopy(layers))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Stem:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.backbone.model(self.backbone.own_space(x))
        return found


def split_at(backbone: Backbone, layer: str) -> tuple[Stem, Backbone]:
    """The layers before `layer`, and a backbone that begins there: its images are the stem's maps.

    layer: a child of the timm model or of one of its sequences, "layer4" or "blocks.5". Both parts are copies;
    rest(stem(x)) gives the logits of backbone(x). Raises ConfigError for a layer that there is not, and where layers do
    not follow one another in a line.
    """
    rest = deepcopy(backbone).eval()
    rest.standardise = rest.rescales = False
    first, taken = [], False
    for name, child in rest.model.named_children():
        inside = layer.startswith(f"{name}.")
        parts = [(f"{name}.{own}", part) for own, part in child.named_children()] if inside else [(name, child)]
        for path, part in parts:
            taken = taken or path == layer
            if not taken:
                parent, _, own = path.rpartition(".")
                first.append(part)
                setattr(rest.model.get_submodule(parent), own, nn.Identity())
    if not taken or not first:
        names = [name for name, _ in backbone.model.named_children()]
        raise ConfigError("the network has no such layer to split at", got=repr(layer), do=f"of {', '.join(names)}")
    stem = Stem(backbone, first)
    probe = torch.linspace(-1, 1, 3 * 64 * 64, device=backbone.scale.device).reshape(1, 3, 64, 64)
    with torch.no_grad():
        wanted = deepcopy(backbone).eval().answer(probe)
        try:
            found = rest.model(stem(probe))
        except RuntimeError as error:
            raise ConfigError(f"the network cannot be split at {layer!r}", got=error) from error
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise ConfigError(f"the network cannot be split at {layer!r}: its layers do not stand in a line")
    return stem, rest
