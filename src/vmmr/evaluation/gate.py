"""What a bundle's detector makes of known images, and how it was set, in numbers and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vmmr.evaluation.openset import auroc, taken_for_unknown
from vmmr.export.bundle import Bundle, Network
from vmmr.models.decoding import back_off, confidences_by_level
from vmmr.unknown.detector import Detector

__all__ = ["SIGNS", "answer_and_signs", "gate_part", "gate_scores"]

SIGNS = 3
"""Columns of `Detector.signs`."""


def answer_and_signs(bundle: Bundle, network: Network, detector: Detector) -> Callable[[Tensor], Tensor]:
    """images [B, 3, H, W] -> what the network answers and then the detector's signs, float32 [B, outputs + 3], on the
    processor."""

    def answer(image: Tensor) -> Tensor:
        outputs = network(image, pooled=True)
        wide, features = (part.float().cpu() for part in (network.answer_of(outputs), outputs["pooled"]))
        return torch.cat([wide, detector.signs(features, bundle.class_scores(wide), image.float().cpu())], dim=1)

    return answer


def gate_scores(bundle: Bundle, detector: Detector, scores: Tensor, signs: Tensor) -> dict[str, Any]:
    """What is said of known images: `taken_for_unknown`, the share that is stranger than the gate allows, good picture
    or bad; `reasons`, the share of each. scores [N, classes], signs [N, 3]. No picture counts as too small."""
    sure = torch.ones(len(scores), dtype=torch.bool)
    levels, spec = bundle.levels, bundle.spec.hierarchy
    if levels is not None and spec is not None:
        thresholds = spec.thresholds or dict.fromkeys(levels.tree, 0.0)
        sure = back_off(confidences_by_level(scores, levels)[1], thresholds) >= 0
    found = Counter(
        str(detector.reason(row, sure=told)) for row, told in zip(signs.tolist(), sure.tolist(), strict=True)
    )
    return {
        "taken_for_unknown": taken_for_unknown(signs[:, 0].numpy(), detector.gate.known),
        "reasons": {reason: count / len(scores) for reason, count in sorted(found.items())},
    }


def gate_part(detector: Detector, known: Tensor, hidden: Tensor) -> str:
    """What a card says about a detector. known, hidden [N]: the scores of the validation images that its gate was set
    by, and of the same images with their own class hidden."""
    gate = detector.gate
    accepted = 1 - taken_for_unknown(known.numpy(), gate.known)
    return "\n\n".join(
        [
            "## Unknown vehicles",
            f"Told by {detector.score}: known up to {gate.known:.4g}, which {100 * accepted:.1f} % of {len(known):,} "
            f"validation images are; a vehicle up to {gate.vehicle:.4g}. AUROC of {100 * auroc(known, hidden):.1f} % "
            "between those images and the same with their own class hidden, which are no true strangers."
            + (f" Nothing is said below {gate.shortest} pixels." if gate.shortest else ""),
        ]
    )
