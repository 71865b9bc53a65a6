"""Heads that answer every level of the tree, and side attributes, from the pooled features of one trunk.

Source: Manole and Diosan, arXiv 2603.01746 (parallel and cascaded multi-task heads for make and model). The parts that
its abstract leaves open are options here. Four forms:

    parallel          every level is a linear layer of its own
    coarse_to_fine    a level of the tree also sees what the coarser one answered: make -> model
    fine_to_coarse    the other way: model -> make
    conditional       log p(model) = log p(make) + log p(model | make), a softmax among the models of each make

Side attributes stand beside the tree in all of them. Any trunk will do, convolutional or transformer: what enters is
timm's `forward_head(pre_logits=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vmmr.errors import ConfigError
from vmmr.levels import Feed, HierarchyForm
from vmmr.taxonomy import TREE

__all__ = ["HierarchyHead", "join_levels", "log_marginal", "split_levels"]


def log_marginal(scores: Tensor, parents: Tensor, groups: int) -> Tensor:
    """Scores of the finer level, float [B, K], and the parent of each, int64 [K] -> log of the summed exp of the scores
    in each group, [B, groups]. Every group needs a member. Log-probabilities give the log-probabilities of the parents.

    >>> p = torch.tensor([[0.5, 0.2, 0.3]])
    >>> log_marginal(p.log(), torch.tensor([0, 0, 1]), 2).exp()
    tensor([[0.7000, 0.3000]])
    """
    rows = scores.shape[0]  # unlike len(), left open when the network is exported
    place = parents.expand(rows, -1)
    peak = scores.new_full((rows, groups), -torch.inf).scatter_reduce(1, place, scores.detach(), "amax")
    sums = scores.new_zeros(rows, groups).scatter_add(1, place, (scores - peak.gather(1, place)).exp())
    return peak + sums.log()


class HierarchyHead(nn.Module):
    """Pooled features [B, channels] -> {"logits_<level>": [B, width]} in the order of `levels`.

    levels: width of each level; those of `vmmr.taxonomy.TREE` form the chain, all others stand beside it.
    feed: what a cascade passes on, as logits, probabilities, or an embedding E softmax of `embedding` numbers.
    stop_gradient: the next level's loss does not reach the level that feeds it. teacher_forcing: in training, a level
    is fed the one-hot truth where it is known. dropout: share of the features dropped, drawn for each level anew.
    parents: for the conditional form, the parent of each label of a level at the next coarser one of the chain.
    Raises ConfigError for options that contradict each other.

    >>> head = HierarchyHead(8, {"make": 2, "model": 3}, form="coarse_to_fine")
    >>> {name: tuple(logits.shape) for name, logits in head(torch.zeros(4, 8)).items()}
    {'logits_make': (4, 2), 'logits_model': (4, 3)}
    """

    def __init__(
        self,
        channels: int,
        levels: Mapping[str, int],
        *,
        form: HierarchyForm = "parallel",
        feed: Feed = "softmax",
        stop_gradient: bool = False,
        teacher_forcing: bool = False,
        dropout: float = 0.0,
        embedding: int = 64,
        parents: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        super().__init__()
        if form not in get_args(HierarchyForm) or feed not in get_args(Feed):
            raise ConfigError("no such hierarchy", got=f"form={form!r}, feed={feed!r}")
        if teacher_forcing and (feed == "logits" or not form.endswith(("_fine", "_coarse"))):
            raise ConfigError(
                "teacher forcing feeds probabilities to the next level of a cascade",
                got=f"form={form!r}, feed={feed!r}",
                do="use a cascade with feed='softmax' or 'embedding'",
            )
        self.levels, self.form, self.feed = dict(levels), form, feed
        self.stop_gradient, self.teacher_forcing = stop_gradient, teacher_forcing
        chain = [level for level in TREE if level in levels]
        order = chain[::-1] if form == "fine_to_coarse" else chain
        self.feeds = {} if form == "parallel" else dict(zip(order[1:], order, strict=False))
        """The level that each level is fed by."""
        self.order = (*order, *(level for level in levels if level not in chain))
        self.drop = nn.Dropout(dropout)
        self.embed = nn.ModuleDict()
        self.linear = nn.ModuleDict()
        for level in self.order:
            into = channels
            if level in self.feeds and form != "conditional":
                source = self.feeds[level]
                if feed == "embedding":
                    self.embed[source] = nn.Linear(levels[source], embedding, bias=False)
                into += embedding if feed == "embedding" else levels[source]
            self.linear[level] = nn.Linear(into, levels[level])
            if level in self.feeds and form == "conditional":
                self.register_buffer(f"parents_{level}", _parents(parents, level, levels), persistent=False)

    def forward(self, pooled: Tensor, labels: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """[B, channels] -> logits of every level. labels: int64 [B] by level, -1 for unknown; for teacher forcing."""
        found: dict[str, Tensor] = {}
        for level in self.order:
            seen = self.drop(pooled)
            if level in self.feeds and self.form != "conditional":
                source = self.feeds[level]
                seen = torch.cat([seen, self._passed_on(source, found[source], labels)], dim=1)
            found[level] = self.linear[level](seen)
            if level in self.feeds and self.form == "conditional":
                found[level] = self._joint(level, _at_least_single(found[level]), found[self.feeds[level]])
        return {f"logits_{level}": found[level] for level in self.levels}

    def _passed_on(self, source: str, logits: Tensor, labels: Mapping[str, Tensor] | None) -> Tensor:
        if self.stop_gradient:
            logits = logits.detach()
        if self.feed == "logits":
            return logits
        shown = logits.softmax(dim=1)
        if self.teacher_forcing and self.training and labels is not None and source in labels:
            truth = labels[source]
            told = functional.one_hot(truth.clamp(min=0), logits.shape[1]).to(shown.dtype)
            shown = torch.where((truth >= 0)[:, None], told, shown)
        if self.feed == "embedding":
            shown = self.embed[source](shown)
        return shown

    def _joint(self, level: str, scores: Tensor, coarse: Tensor) -> Tensor:
        parents = self.get_buffer(f"parents_{level}")
        if self.stop_gradient:
            coarse = coarse.detach()
        above = coarse.to(scores.dtype).log_softmax(dim=1) - log_marginal(scores, parents, coarse.shape[1])
        return scores + above.gather(1, parents.expand(scores.shape[0], -1))


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parents(given: Mapping[str, NDArray[np.int64]] | None, level: str, levels: Mapping[str, int]) -> Tensor:
    if given is None or level not in given or len(given[level]) != levels[level]:
        raise ConfigError(
            "the conditional form needs the parents of every label", got=f"none for {level!r}", do="pass parents"
        )
    return torch.from_numpy(np.array(given[level], dtype=np.int64))  # a copy: ours may not be written to


def join_levels(outputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of all levels side by side, [B, sum of widths]: what travels as one tensor through means and files."""
    return torch.cat(list(outputs.values()), dim=1)


def split_levels(wide: Tensor, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The logits of each level out of [B, sum of widths], in the order of `widths`.

    >>> split_levels(torch.tensor([[1.0, 2.0, 3.0]]), {"make": 1, "model": 2})
    {'make': tensor([[1.]]), 'model': tensor([[2., 3.]])}
    """
    return dict(zip(widths, torch.split(wide, list(widths.values()), dim=1), strict=True))
