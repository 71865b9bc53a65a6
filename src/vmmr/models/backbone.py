"""Any timm network that gives feature maps, tapped at its last three levels, able to stop after each.

The timm model itself is never changed: `Backbone.model` is the plain network, with the plain network's parameters,
that a student is exported as.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import vmmr.torchvision_ops  # noqa: F401  (before timm)
from vmmr.errors import ConfigError

import timm  # isort: skip

__all__ = ["Backbone", "load_weights"]

DEPTHS = (1, 2, 3)


class Backbone(nn.Module):
    """A classifier from timm, tapped at its last three feature levels: at strides 8, 16 and 32 in a pyramid, after the
    last three blocks in a transformer of one stride.

    name: any timm name, passed through unchanged. classes: width of the classifier; with 0 there is
    none, and logits_0 are the pooled features. weights: a local `.safetensors`
    file in timm's layout; pretrained: let timm load its own weights (hub, `hf-hub:` and `local-dir:` names included).
    mean, std: the input statistics the network expects, per channel on [0, 1]; callers always pass images in [-1, 1].
    standardise: instead, shift and scale every image to mean 0 and standard deviation 1 over its pixels and channels.
    options: further arguments of `timm.create_model`, for example {"pad_type": "same"}.
    Raises ConfigError for unknown names, networks without three feature levels, or weights that do not fit.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        name: str,
        classes: int,
        *,
        weights: str | os.PathLike[str] | None = None,
        pretrained: bool = False,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        standardise: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            self.model: Any = timm.create_model(name, pretrained=pretrained, num_classes=classes, **(options or {}))
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"timm cannot build the backbone {name!r}", got=error, do="pick a name from timm.list_models()"
            ) from error
        levels = list(getattr(self.model, "feature_info", None) or [])
        if len(levels) < 3 or not hasattr(self.model, "forward_intermediates"):
            raise ConfigError(
                f"the backbone {name!r} has no three feature levels",
                got=f"{len(levels)} levels",
                do="pick another network",
            )
        self.levels = tuple(range(len(levels) - 3, len(levels)))
        self.channels: tuple[int, ...] = tuple(int(levels[i]["num_chs"]) for i in self.levels)
        self.reductions: tuple[int, ...] = tuple(int(levels[i]["reduction"]) for i in self.levels)
        # From [-1, 1] to the network's own statistics: x * scale + shift.
        scale = torch.tensor([0.5 / s for s in std]).view(1, 3, 1, 1)
        shift = torch.tensor([(0.5 - m) / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
        self.rescales = any(value != 0.5 for value in (*mean, *std))  # of numbers: holds on the meta device too
        self.standardise = standardise
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        if weights is not None:
            load_weights(self.model, weights)

    @property
    def width(self) -> int:
        """How many pooled features enter the classifier."""
        return int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)

    def own_space(self, x: Tensor) -> Tensor:
        """An image in [-1, 1] -> the network's input statistics."""
        if self.standardise:
            centred = x - x.mean((1, 2, 3), keepdim=True)
            return centred * (centred.square().mean((1, 2, 3), keepdim=True) + 1e-4).rsqrt()
        return x * self.scale + self.shift if self.rescales else x

    def features(self, x: Tensor, depth: int) -> Tensor:
        """The map at `depth` (1, 2 or 3), computing nothing behind it: [B, channels[depth-1], H/s, W/s], s being
        reductions[depth-1]."""
        maps: list[Tensor] = self.model.forward_intermediates(
            self.own_space(x), indices=[self.levels[depth - 1]], stop_early=True, intermediates_only=True
        )
        return maps[0]

    def forward(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> logits_0 [B, classes] and features_1, features_2, features_3.

        pooled: also `pooled` [B, width], what enters the classifier.
        """
        final, maps = self.model.forward_intermediates(self.own_space(x), indices=list(self.levels))
        outputs = {f"features_{depth}": fmap for depth, fmap in zip(DEPTHS, maps, strict=True)}
        outputs["logits_0"] = self.model.forward_head(final)
        if pooled:
            outputs["pooled"] = self.model.forward_head(final, pre_logits=True)
        return outputs

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The classifier's logits, [B, classes]."""
        return outputs["logits_0"]

    def answer(self, x: Tensor) -> Tensor:
        """The same of images."""
        return self.answer_of(self(x))

    def classifier_parameters(self) -> list[nn.Parameter]:
        """The parameters of the last linear layer: what training treats as a head rather than as trunk."""
        return list(self.model.get_classifier().parameters())


def load_weights(model: nn.Module, file: str | os.PathLike[str]) -> list[str]:
    """Load a safetensors state dict into a timm model; a classifier of another width keeps its fresh values, and that
    of the file is left where the model has none.

    Returns the names that were left fresh. Every other key and shape must match: ConfigError names the first that
    does not.
    """
    path = Path(file)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ConfigError("weights must be a .safetensors file", got=str(path), do="convert or download it first")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"cannot read the weights {path.name}", got=error, do="download the file again") from error
    own = model.state_dict()
    head = getattr(model, "default_cfg", {}).get("classifier", ())
    heads = (head,) if isinstance(head, str) else tuple(head)
    fresh = (
        [k for k in own if k.startswith(heads) and (k not in state or state[k].shape != own[k].shape)] if heads else []
    )
    wrong = [k for k in own if k not in fresh and (k not in state or state[k].shape != own[k].shape)]
    bare = bool(heads) and not any(k.startswith(heads) for k in own)  # pooled features, no classifier
    wrong += [k for k in state if k not in own and not (bare and k.startswith(heads))]
    if wrong:
        raise ConfigError(
            f"the weights {path.name} do not fit this backbone",
            got=f"{len(wrong)} keys missing, unknown or of another shape, first {wrong[0]!r}",
            do="check the backbone's name against the file",
        )
    model.load_state_dict({k: v for k, v in state.items() if k not in fresh}, strict=False)
    return fresh
