"""Networks that answer every level: a plain trunk, or a progressive one, with hierarchy heads.

Logits of the levels travel side by side in one tensor, so that means, files and averages need not know of them;
`split_levels` parts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from vmmr.levels import HierarchySpec, Levels
from vmmr.models.assemble import ProgressiveNetwork
from vmmr.models.backbone import DEPTHS, Backbone
from vmmr.models.heads import HeadForm, HierarchyHead, RecognitionHead
from vmmr.models.heads.hierarchy import join_levels, split_levels
from vmmr.taxonomy import TREE

__all__ = ["HierarchicNetwork", "HierarchicProgressiveNetwork", "tapped_levels", "trunk_state"]


def _head(channels: int, levels: Levels, names: tuple[str, ...], spec: HierarchySpec, options: Any) -> HierarchyHead:
    tree = [name for name in names if name in TREE]
    parents = {fine: levels.parents(fine, coarse) for coarse, fine in pairwise(tree)}
    widths = {name: levels.widths[name] for name in names}
    return HierarchyHead(channels, widths, form=spec.form, feed=spec.feed, parents=parents, **options)


def trunk_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a progressive network -> that of the plain network it was built around: a `Backbone`'s or, where
    there are levels, a `HierarchicNetwork`'s. What belongs to the heads at the three depths is left behind."""
    head = {f"head.{k.removeprefix('level_heads.0.')}": v for k, v in state.items() if k.startswith("level_heads.0.")}
    trunk = {key: value for key, value in state.items() if key.startswith("backbone.")}
    return trunk | head if head else {key.removeprefix("backbone."): value for key, value in trunk.items()}


class HierarchicNetwork(nn.Module):
    """A backbone without a classifier, and a hierarchy head on its pooled features.

    Named outputs: logits_0 [B, sum of widths], features_1..3. options: those of the head that only training reads
    (stop_gradient, teacher_forcing, dropout).
    """

    def __init__(self, backbone: Backbone, levels: Levels, spec: HierarchySpec, **options: Any) -> None:
        super().__init__()
        self.levels = levels
        self.backbone = backbone
        self.head = _head(backbone.width, levels, levels.names, spec, options)

    def forward(
        self, x: Tensor, labels: Mapping[str, Tensor] | None = None, *, pooled: bool = False
    ) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> logits_0 and features_1..3. labels: by level, for teacher forcing.
        pooled: see `Backbone.forward`."""
        outputs: dict[str, Tensor] = self.backbone(x, pooled=pooled)
        outputs["logits_0"] = join_levels(self.head(outputs["logits_0"], labels))
        return outputs

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of all levels side by side, [B, sum of widths]."""
        return outputs["logits_0"]

    def answer(self, x: Tensor) -> Tensor:
        """The same of images."""
        return self.answer_of(self(x))

    def by_level(self, outputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """{"0": logits by level} of the outputs."""
        return {"0": split_levels(outputs["logits_0"], self.levels.widths)}


def tapped_levels(levels: Levels, spec: HierarchySpec) -> tuple[tuple[str, ...], ...]:
    """The levels that the trunk's own head (0) and the heads at depths 1, 2 and 3 answer.

    `all`: each of them all. `shallow_first`: depth 1 the coarsest of the tree, depth 2 the two coarsest, the others
    all.
    """
    if spec.taps == "all":
        return (levels.names,) * 4
    return levels.names, levels.tree[:1], levels.tree[:2], levels.names


class HierarchicProgressiveNetwork(ProgressiveNetwork):
    """A progressive network whose heads at each depth answer levels: see `tapped_levels`.

    Outputs as `ProgressiveNetwork`; logits_j hold the levels of `taps[j]` side by side.
    """

    def __init__(
        self, backbone: Backbone, levels: Levels, spec: HierarchySpec, form: HeadForm = "published", **options: Any
    ) -> None:
        super().__init__(backbone, 0, form)
        self.levels = levels
        self.taps = tapped_levels(levels, spec)
        widths = (backbone.width, *(RecognitionHead.width for _ in DEPTHS))
        self.level_heads = nn.ModuleList(
            _head(width, levels, names, spec, options) for width, names in zip(widths, self.taps, strict=True)
        )

    def forward(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> logits_0..3 and features_1..3. pooled: see `Backbone.forward`."""
        return self._answered(super().forward(x, pooled=pooled))

    def at_depth(self, x: Tensor, depth: int, *, stop: bool) -> dict[str, Tensor]:
        """The outputs features_k and logits_k for k = depth, see `ProgressiveNetwork.at_depth`."""
        seen = super().at_depth(x, depth, stop=stop)
        return self._answered(seen) if stop else seen

    def by_level(self, outputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Logits by level of each head among the outputs: {"0": {...}, "1": {...}, ...}."""
        return {
            str(j): split_levels(outputs[f"logits_{j}"], {name: self.levels.widths[name] for name in names})
            for j, names in enumerate(self.taps)
            if f"logits_{j}" in outputs
        }

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """For each level the mean of the logits of the heads that answer it, side by side: [B, sum of widths]."""
        heads = self.by_level(outputs).values()
        means = {}
        for name in self.levels.names:
            found = [logits[name] for logits in heads if name in logits]
            means[name] = sum(found[1:], found[0]) / len(found)
        return join_levels(means)

    def _answered(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        for j, head in enumerate(self.level_heads):
            if f"logits_{j}" in outputs:
                outputs[f"logits_{j}"] = join_levels(head(outputs[f"logits_{j}"]))
        return outputs
