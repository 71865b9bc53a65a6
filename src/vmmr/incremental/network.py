"""Networks that learned new classes, as a bundle answers with them: old classes first, new ones behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.gallery import Gallery
from vmmr.incremental.routing import Calibration, class_log_likelihoods
from vmmr.levels import Levels
from vmmr.models.backbone import Backbone
from vmmr.models.heads.hierarchy import join_levels, log_marginal, split_levels

__all__ = ["Answering", "Discriminants", "GalleryNetwork", "TaskNetwork", "routed_logits"]


class Answering(Protocol):
    """What a gallery can stand on: any network of a bundle."""

    def __call__(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [-1, 1] -> named outputs, with `pooled` [B, width] where asked for."""

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Those -> logits [B, outputs]."""


class GalleryNetwork(nn.Module):
    """A network, unchanged, and the classes of a gallery. Its answer has the outputs of `after`, or C + K logits.

    before, after: the levels without and with the new classes, where the network answers levels. A new class counts
    for its parents: with p the probabilities of old and new classes of the finest level, those of a coarser one are

        p_coarse(n) = p(any old class) * old p_coarse(n) + sum of p(k) over new classes k below n

    so a new model of a known make speaks for that make. What stands beside the tree stays as it is.
    """

    def __init__(
        self, network: nn.Module, gallery: Gallery, before: Levels | None = None, after: Levels | None = None
    ) -> None:
        super().__init__()
        self.network: Answering = network  # type: ignore[assignment]
        self.gallery = gallery
        self.before, self.after = before, after
        if before is None or after is None:
            return
        old = len(before.taxonomy)
        for level in before.tree:
            place = {name: label for label, name in enumerate(_nodes(after, level))}
            kept = [place[name] for name in _nodes(before, level)]
            above = after.parents(after.finest, level)[old:].tolist()
            self.register_buffer(f"parents_{level}", torch.tensor([*kept, *above]), persistent=False)

    @property
    def backbone(self) -> Backbone:
        """That of the network."""
        inner = self.network
        return inner if isinstance(inner, Backbone) else inner.backbone  # type: ignore[attr-defined]

    def forward(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        """The network's outputs, always with `pooled`, from which the new classes are answered."""
        return self.network(x, pooled=True)

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of old and new classes; of all levels side by side where there are levels."""
        return self.widened(self.network.answer_of(outputs), self.gallery.margins(outputs["pooled"]))

    def answer(self, x: Tensor) -> Tensor:
        """The same of images."""
        return self.answer_of(self(x))

    def widened(self, logits: Tensor, margin: Tensor) -> Tensor:
        """What the network without the gallery answers, [B, outputs], and margins [B, K] -> what this one answers."""
        before, after = self.before, self.after
        if before is None or after is None:
            found: Tensor = self.gallery(logits, margin)
            return found
        levels = split_levels(logits, before.widths)
        old = before.widths[before.finest]
        both = self.gallery(levels[before.finest], margin).log_softmax(dim=1)
        rest = both[:, :old].logsumexp(dim=1, keepdim=True)
        for level in before.tree:
            scores = torch.cat([levels[level].log_softmax(dim=1) + rest, both[:, old:]], dim=1)
            levels[level] = log_marginal(scores, getattr(self, f"parents_{level}"), after.widths[level])
        return join_levels(levels)


def _nodes(levels: Levels, level: str) -> list[object]:
    """What a level's labels stand for, so that two taxonomies can be compared: names of models may be alike."""
    taxonomy = levels.taxonomy
    return list({"make": taxonomy.makes, "model": taxonomy.models, "class": taxonomy.classes}[level])


def routed_logits(
    logits: Tensor, classes: Sequence[int], widths: Sequence[int], scale: Tensor, offset: Tensor
) -> Tensor:
    """Heads side by side [B, sum of widths] -> logits of all classes [B, C], whose largest is the answer of the head
    that is least "unknown", as `vmmr.incremental.routing.route` gives it.

    Within a head the class logits z, so that the best one counts the log-odds of "known": z - max z - (scale_t u_t +
    offset_t), u_t = z_unknown - lse(z), scale and offset [T] as of `routing.Calibration`. A first head without an
    unknown output knows what the others refuse.
    """
    blocks = torch.split(logits, [*widths], dim=1)
    odds: list[Tensor] = []
    for task, (block, count) in enumerate(zip(blocks, classes, strict=True)):
        if block.shape[1] > count:
            odds.append((block[:, count] - block[:, :count].logsumexp(dim=1)) * scale[task] + offset[task])
    if widths[0] == classes[0]:
        # 1 - u_0 is the product of the others' u
        refused = sum((functional.logsigmoid(other) for other in odds[1:]), functional.logsigmoid(odds[0]))
        refused = refused.clamp(max=-1e-6)
        odds.insert(0, (1 - refused.exp()).clamp(min=1e-12).log() - refused)
    found = []
    for block, count, unknown in zip(blocks, classes, odds, strict=True):
        own = block[:, :count]
        found.append(own - own.amax(dim=1, keepdim=True) - unknown[:, None])
    return torch.cat(found, dim=1)


class Discriminants(NamedTuple):
    """weight [C, D] and bias [C]: log-likelihoods of all classes, but for what they share, of features of length 1."""

    weight: Tensor
    bias: Tensor


class TaskNetwork(nn.Module):
    """Banks and heads of all tasks over the shared convolutions, routed. scale, offset: float [T], see
    `routed_logits`. Pooled features are those of the first bank, as the network before gave them.

    discriminants: a second opinion on all classes, of the pooled features. With it the likeliest class of the product
    of both answers (`vmmr.incremental.routing.class_log_likelihoods`), instead of that of the least "unknown" head.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, banked: BankedNetwork, scale: Tensor, offset: Tensor, discriminants: Discriminants | None = None
    ) -> None:
        super().__init__()
        self.banked = banked
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.register_buffer("weight", discriminants and discriminants.weight)
        self.register_buffer("bias", discriminants and discriminants.bias)

    @property
    def discriminants(self) -> Discriminants | None:
        """As they were given."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        return None if weight is None else Discriminants(weight, bias)

    @property
    def backbone(self) -> Backbone:
        """The shared one, without a classifier."""
        return self.banked.backbone

    def forward(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> heads [B, sum of widths] side by side and pooled [B, D]."""
        found = self.banked(x)
        return {"heads": found["logits"], "pooled": found["features"][:, 0]}

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of all classes, [B, C]."""
        return self.scores(outputs["heads"], outputs["pooled"])

    def scores(self, heads: Tensor, pooled: Tensor) -> Tensor:
        """The same of heads [B, sum of widths] side by side and pooled features [B, D]."""
        shape, discriminants = (self.banked.classes, self.banked.widths), self.discriminants
        if discriminants is None:
            return routed_logits(heads, *shape, self.scale, self.offset)
        told = class_log_likelihoods(heads, *shape, calibration=Calibration(self.scale, self.offset))
        return told + functional.linear(functional.normalize(pooled, dim=1), *discriminants)

    def answer(self, x: Tensor) -> Tensor:
        """The same of images."""
        return self.answer_of(self(x))
