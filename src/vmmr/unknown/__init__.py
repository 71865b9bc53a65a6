"""Is it a vehicle we know? Scores of features and logits, higher = stranger, and what to decide by them.

statistics = gather(batches_of_training_features, weight, bias)
fitted = SCORES["himplos"].fit(statistics)
strange = SCORES["himplos"].score(features, logits, fitted)          # [N]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from vmmr.unknown.ash import ash, fit_head
from vmmr.unknown.decide import Gate, Reason, accept_threshold, decide, fit_gate
from vmmr.unknown.dice import dice, fit_dice
from vmmr.unknown.discriminant_max_logit import discriminant_max_logit, fit_discriminant_max_logit
from vmmr.unknown.energy import energy
from vmmr.unknown.fitted import Fitted, Head
from vmmr.unknown.gen import gen
from vmmr.unknown.guided_max_logit import guided_max_logit
from vmmr.unknown.hidden import hidden_scores
from vmmr.unknown.himplos import HIMPLoSFitted, fit_himplos, himplos
from vmmr.unknown.knn import KNNFitted, fit_knn, knn
from vmmr.unknown.knn_pca import ReducedKNNFitted, fit_knn_pca, knn_pca
from vmmr.unknown.mahalanobis import (
    MahalanobisFitted,
    RelativeMahalanobisFitted,
    fit_mahalanobis,
    fit_relative_mahalanobis,
    mahalanobis,
    relative_mahalanobis,
)
from vmmr.unknown.max_logit import max_logit
from vmmr.unknown.msp import msp
from vmmr.unknown.nnguide import fit_nnguide, nnguide
from vmmr.unknown.react import ReActFitted, fit_react, react
from vmmr.unknown.scale import scale
from vmmr.unknown.statistics import BANK, Statistics, gather
from vmmr.unknown.vim import ViMFitted, fit_vim, vim

__all__ = [
    "BANK",
    "SCORES",
    "Fitted",
    "Gate",
    "Head",
    "Reason",
    "Score",
    "Statistics",
    "accept_threshold",
    "decide",
    "fit_gate",
    "gather",
    "hidden_scores",
]


class Score(NamedTuple):
    """score: features [N, D], logits [N, C] and constants -> [N], higher = stranger. fit: what training images told ->
    those constants. kind: what they are."""

    score: Callable[[Tensor, Tensor, Any], Tensor]
    fit: Callable[..., Fitted]
    kind: type[Fitted]


def _nothing(statistics: Statistics) -> Fitted:
    return Fitted()


SCORES: dict[str, Score] = {
    "ash": Score(ash, fit_head, Head),
    "dice": Score(dice, fit_dice, Head),
    "discriminant_max_logit": Score(discriminant_max_logit, fit_discriminant_max_logit, Head),
    "energy": Score(energy, _nothing, Fitted),
    "gen": Score(gen, _nothing, Fitted),
    "guided_max_logit": Score(guided_max_logit, fit_knn_pca, ReducedKNNFitted),
    "himplos": Score(himplos, fit_himplos, HIMPLoSFitted),
    "himplos_mask": Score(partial(himplos, smooth=False), fit_himplos, HIMPLoSFitted),
    "himplos_max_logit": Score(partial(himplos, end=max_logit), fit_himplos, HIMPLoSFitted),
    "himplos_msp": Score(partial(himplos, end=msp), fit_himplos, HIMPLoSFitted),
    "himplos_smooth": Score(himplos, partial(fit_himplos, percentile=0.0, clip_percentile=None), HIMPLoSFitted),
    "himplos_unclipped": Score(himplos, partial(fit_himplos, clip_percentile=None), HIMPLoSFitted),
    "knn": Score(knn, fit_knn, KNNFitted),
    "knn_pca": Score(knn_pca, fit_knn_pca, ReducedKNNFitted),
    "mahalanobis": Score(mahalanobis, fit_mahalanobis, MahalanobisFitted),
    "max_logit": Score(max_logit, _nothing, Fitted),
    "msp": Score(msp, _nothing, Fitted),
    "nnguide": Score(nnguide, fit_nnguide, KNNFitted),
    "react": Score(react, fit_react, ReActFitted),
    "relative_mahalanobis": Score(relative_mahalanobis, fit_relative_mahalanobis, RelativeMahalanobisFitted),
    "scale": Score(scale, fit_head, Head),
    "vim": Score(vim, fit_vim, ViMFitted),
}
"""Every score by its name."""
