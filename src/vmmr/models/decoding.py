"""Logits of every level -> one answer: which make, which model, how sure of each, and how far down to say.

    independent   every level by itself: make and model may contradict each other
    marginal      p(make) = sum of p(model): the make that a network without a make head tells for free
    consistent    k* = argmax_k log p(k) + beta * sum over coarser levels c of log p_c(parent of k), and k*'s make

beta = 0 is the finest level alone, beta to infinity decides for the make first (Manole and Diosan, arXiv 2603.01746,
leave the decoding open; this reading is ours). `vmmr.evaluation.hierarchy` fits beta and thresholds on validation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vmmr.errors import ConfigError
from vmmr.levels import NUMBERS, Levels
from vmmr.models.heads.hierarchy import log_marginal

__all__ = ["NEVER", "back_off", "confidences_by_level", "independent", "joint_scores", "tree_log_probabilities"]

NEVER = 2.0
"""A threshold that no confidence reaches."""


def independent(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The answer of each level by itself: int64 [B], or the number itself, float [B], where the level is one."""
    return {level: found[:, 0] if level in NUMBERS else found.argmax(dim=1) for level, found in logits.items()}


def joint_scores(logits: Mapping[str, Tensor], levels: Levels, beta: float) -> Tensor:
    """Scores [B, classes] of the finest level of the tree under all its levels: log p(k) + beta * sum log p_c(k's c).

    Their argmax is the consistent answer, their softmax its distribution; at beta 0 they are the finest level's own
    log-probabilities. Raises ConfigError for a negative beta.
    """
    if not beta >= 0:
        raise ConfigError("beta must not be negative", got=beta, do="0 is the finest level alone")
    # In float32 at least, whatever precision the network answered in.
    logits = {level: logits[level].to(torch.promote_types(logits[level].dtype, torch.float32)) for level in levels.tree}
    scores = logits[levels.finest].log_softmax(dim=1)
    if beta == 0:
        return scores
    for coarse in levels.tree[:-1]:
        parents = torch.from_numpy(levels.parents(levels.finest, coarse).copy()).to(scores.device)
        scores = scores + beta * logits[coarse].log_softmax(dim=1)[:, parents]
    return scores


def tree_log_probabilities(scores: Tensor, levels: Levels) -> dict[str, Tensor]:
    """Scores [B, classes] of the finest level -> log-probabilities [B, width] of every level of the tree: a make is as
    likely as its classes together. With the finest level's own scores this is the marginal decoding."""
    log_p = scores.log_softmax(dim=1)
    found = {}
    for level in levels.tree:
        parents = torch.from_numpy(levels.parents(levels.finest, level).copy()).to(scores.device)
        found[level] = log_marginal(log_p, parents, levels.widths[level])
    return found


def confidences_by_level(scores: Tensor, levels: Levels) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores [B, classes] -> the likeliest label, int64 [B], of every level of the tree, and its probability, [B].

    Probabilities only grow from fine to coarse. The likeliest make may not be that of the likeliest model: it is what
    to say where no model is said.
    """
    best = {level: log_p.exp().max(dim=1) for level, log_p in tree_log_probabilities(scores, levels).items()}
    return {k: v.indices for k, v in best.items()}, {k: v.values.clamp(max=1.0) for k, v in best.items()}


def back_off(confidences: Mapping[str, Tensor], thresholds: Mapping[str, float]) -> Tensor:
    """How far down to say: the place, int64 [B], of the finest level whose confidence reaches its threshold; -1 where
    not even the coarsest does. confidences: [B] by level, from coarse to fine; each level has a threshold.

    >>> sure = {"make": torch.tensor([0.9, 0.9, 0.4]), "model": torch.tensor([0.8, 0.3, 0.2])}
    >>> back_off(sure, {"make": 0.7, "model": 0.5}).tolist()
    [1, 0, -1]
    """
    said = torch.full((len(next(iter(confidences.values()))),), -1)
    for place, (level, confidence) in enumerate(confidences.items()):
        said = said.to(confidence.device).masked_fill(confidence >= thresholds[level], place)
    return said
