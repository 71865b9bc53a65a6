"""Any timm network that gives feature maps is a backbone: what its three taps give, and what stopping there spares.

python examples/own_backbone.py [TIMM_NAME ...]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from vmmr.models import Backbone
from vmmr.models.backbone import DEPTHS


@dataclass(frozen=True)
class Tap:
    """One depth of a backbone; share: of the whole network's multiplications, when it stops there."""

    depth: int
    stride: int
    shape: tuple[int, ...]
    share: float


def taps(name: str, size: int = 64) -> list[Tap]:
    """The three taps of a freshly initialised timm network."""
    backbone = Backbone(name, classes=10).eval()
    image = torch.zeros(1, 3, size, size)  # in [-1, 1]; the backbone brings its own input statistics
    with torch.no_grad():
        with FlopCounterMode(display=False) as whole:
            outputs = backbone(image)
        found = []
        for depth in DEPTHS:
            with FlopCounterMode(display=False) as part:
                features = backbone.features(image, depth)
            # Stopping early changes what is computed, never what comes out.
            assert torch.equal(features, outputs[f"features_{depth}"])
            share = part.get_total_flops() / whole.get_total_flops()
            found.append(Tap(depth, backbone.reductions[depth - 1], tuple(features.shape), share))
    return found


def main(names: list[str]) -> None:
    """Print the taps of each network."""
    for name in names:
        print(name)
        for tap in taps(name):
            print(f"  depth {tap.depth}: stride {tap.stride:2}, map {tap.shape}, {tap.share:.0%} of the computation")


if __name__ == "__main__":
    main(sys.argv[1:] or ["mobilenetv2_100", "resnet18"])
