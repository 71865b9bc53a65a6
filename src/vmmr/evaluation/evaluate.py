"""One bundle on one split of a manifest: clean, and under every condition asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.evaluation.classify import accuracy, predict_logits
from vmmr.evaluation.robustness import condition
from vmmr.export.bundle import Bundle
from vmmr.models import ProgressiveNetwork
from vmmr.training.samples import open_side

__all__ = ["evaluate"]


def evaluate(
    bundle: Bundle,
    manifest: Manifest,
    *,
    wanted: Iterable[str] = ("clean",),
    seed: int = 0,
    device: torch.device | str = "cpu",
    memory_gib: float = 4.0,
    pixels: Pixels | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Accuracy of a bundle on all rows of the manifest.

    wanted: names of conditions, see `vmmr.evaluation.robustness.condition`. pixels: images already decoded for this
    manifest and this bundle's preprocessing. Returns {"images", "classes", "parameters", "conditions": {name:
    {"top1", "top5"}}}. Raises ManifestError for classes that the bundle does not know.
    """
    manifest = manifest.with_taxonomy(bundle.taxonomy)
    # The network brings its own statistics; noise is defined on images in [-1, 1].
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    if pixels is None:
        pixels = open_side(manifest, preprocess, memory_gib=memory_gib, progress=progress).pixels
    network = bundle.network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def answer(image: torch.Tensor) -> torch.Tensor:
        if isinstance(network, ProgressiveNetwork):
            return network.answer(image)
        logits: torch.Tensor = network(image)["logits_0"]
        return logits

    table = {}
    for name in wanted:
        degrade = condition(name, seed=seed, device=device)
        logits = predict_logits(answer, network, pixels, preprocess, device=device, degrade=degrade)
        table[name] = accuracy(logits, manifest.labels)
    return {
        "images": len(manifest),
        "classes": len(bundle.taxonomy),
        "parameters": sum(p.numel() for p in network.parameters()),
        "conditions": table,
    }
