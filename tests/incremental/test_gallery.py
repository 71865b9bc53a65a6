"""Offset and scale against naive re-computation, and what a gallery answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from vmmr.discriminants import discriminants, moments
from vmmr.errors import DataError
from vmmr.incremental.gallery import (
    CONFIDENCE,
    Gallery,
    crossfit,
    exceeding,
    fit_likelihoods,
    fit_offset,
    fit_scale,
    fold_of,
    margins,
)
from vmmr.incremental.network import GalleryNetwork
from vmmr.levels import Levels
from vmmr.models.heads.hierarchy import split_levels
from vmmr.taxonomy import Taxonomy

CLASSES, WIDTH = 4, 6


def test_crossfit_is_fitting_without_the_fold(cloud: tuple[Tensor, Tensor]) -> None:
    features, labels = cloud
    fold = fold_of(labels, np.arange(40), 5)
    scores = crossfit(features, labels, CLASSES, fold)
    for name in range(5):
        out = fold == name
        weight, bias = discriminants(moments(features[~out], labels[~out], CLASSES))
        unit = torch.nn.functional.normalize(features[out].double(), dim=1)
        torch.testing.assert_close(scores[out], unit @ weight.T + bias)


def test_folds_hold_groups_together_and_deal_each_class_evenly() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert fold_of(labels, np.arange(8), 2).tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert fold_of(labels, np.array([7, 7, 8, 8, 1, 2, 3, 1]), 2).tolist() == [0, 0, 1, 1, 0, 1, 0, 0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=60), st.floats(0, 0.5))
def test_an_offset_keeps_its_promise(values: list[int], bound: float) -> None:
    lead = torch.tensor(values, dtype=torch.float64)
    offset, promised = fit_offset(lead, bound, None)
    over = int((lead > offset).sum())
    assert over + 1 <= promised * (len(values) + 1) + 1e-9
    assert promised <= max(bound, 1 / (len(values) + 1)) + 1e-9
    lower = lead[lead < offset]
    if len(lower):  # the next lower value would let too many through
        assert (int((lead > lower.max()).sum()) + 1) / (len(values) + 1) > max(bound, 1 / (len(values) + 1)) - 1e-9


@given(st.integers(1, 3000), st.floats(0, 0.5))
def test_a_confident_promise_is_an_exact_binomial_limit(images: int, bound: float) -> None:
    """Clopper and Pearson: with that share, m or fewer of N exceed in a tenth of draws; one more is not allowed."""
    most, share = exceeding(images, bound)
    assert binom.cdf(most, images, share) == pytest.approx(1 - CONFIDENCE, abs=1e-6)
    assert share <= bound + 1e-6 or most == 0
    if most + 1 < images:
        assert binom.cdf(most + 1, images, bound) > 1 - CONFIDENCE - 1e-6
    assert most <= exceeding(images, bound, None)[0]


def test_the_promise_holds_for_others_that_are_drawn_alike() -> None:
    random = torch.Generator().manual_seed(0)
    mean, kept = [], []
    for _ in range(2000):
        lead = torch.rand(99, generator=random)  # of another one the probability above an offset is 1 - offset
        mean.append(1 - fit_offset(lead, 0.05, None)[0])
        offset, promised = fit_offset(lead, 0.05)
        kept.append(1 - offset <= promised)
    assert np.mean(mean) == pytest.approx(0.05, abs=0.002)  # the mean over draws is the promise
    assert np.mean(kept) == pytest.approx(CONFIDENCE, abs=0.02)  # that is kept by so many of them


@pytest.mark.parametrize("bound", [-0.1, 1.0])
def test_no_bound_without_sense(bound: float) -> None:
    with pytest.raises(DataError, match="bound"):
        fit_offset(torch.zeros(3), bound)


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_no_confidence_without_sense(confidence: float) -> None:
    with pytest.raises(DataError, match="confidence"):
        fit_offset(torch.zeros(3), 0.1, confidence)


def test_the_scale_is_the_likeliest() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 3, generator=random)
    new = torch.arange(200) < 100
    margin = torch.where(new, 1.0, -1.0)[:, None] + torch.randn(200, 1, generator=random)
    labels = torch.where(new, 3, logits.argmax(dim=1))

    def unlikely(scale: float) -> float:
        wide = torch.cat([logits, logits.amax(dim=1, keepdim=True) + scale * (margin - 0.2)], dim=1)
        return float(torch.nn.functional.cross_entropy(wide.double() / 1.5, labels))

    found = fit_scale(logits, margin, labels, 0.2, 1.5)
    assert unlikely(found) == pytest.approx(min(unlikely(s) for s in np.geomspace(0.01, 50, 4000)), abs=1e-5)
    sure = fit_scale(logits[:100], margin[:100].abs(), labels[:100], 0.0, 1.5)  # nothing is ever wrong
    assert sure * margin[:100].abs().max().item() <= 40 * 1.5 * 1.01


def gallery_of(cloud: tuple[Tensor, Tensor], old: int) -> Gallery:
    features, labels = cloud
    weight, bias = discriminants(moments(features, labels, CLASSES))
    gallery = Gallery(old, CLASSES - old, WIDTH)
    parts = {"reference": weight[:old], "reference_bias": bias[:old], "weight": weight[old:], "bias": bias[old:]}
    scalars = {"scale": torch.tensor(0.3), "offset": torch.tensor(0.4)}
    gallery.load_state_dict({name: value.float() for name, value in {**parts, **scalars}.items()})
    return gallery


def test_a_new_class_is_answered_beyond_the_offset_and_only_there(cloud: tuple[Tensor, Tensor]) -> None:
    features, labels = cloud
    gallery = gallery_of(cloud, 2)
    weight, bias = discriminants(moments(features, labels, CLASSES))
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    wanted = margins(unit @ weight.T + bias, 2)
    found = gallery.margins(features)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)
    logits = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    wide = gallery(logits, found)
    assert torch.equal(wide[:, :2], logits)
    answers = wide.argmax(dim=1)
    for row in range(40):
        led = [k for k in range(2) if found[row, k] > gallery.offset]
        best = max(led, key=lambda k: float(found[row, k])) + 2 if led else int(logits[row].argmax())
        assert int(answers[row]) == best


class Fixed(torch.nn.Module):
    """A network that answers what it is given."""

    def forward(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        return {"logits_0": x[:, :-WIDTH], "pooled": x[:, -WIDTH:]}

    def answer_of(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["logits_0"]


def test_coarser_levels_count_new_classes_for_their_parents(cloud: tuple[Tensor, Tensor]) -> None:
    old = Taxonomy.from_rows(["VW", "BMW"], ["Golf", "M3"])  # makes BMW, VW
    both = old.merge(Taxonomy.from_rows(["VW", "Audi"], ["Polo", "A4"]))  # makes Audi, BMW, VW; classes + A4, Polo
    bodies = {"body": ("SUV", "Sedan", "Van")}
    before, after = (Levels(t, ("make", "class", "body"), bodies) for t in (old, both))
    network = GalleryNetwork(Fixed(), gallery_of(cloud, 2), before, after)
    logits = torch.randn(40, 2 + 2 + 3, generator=torch.Generator().manual_seed(0))
    wide = network.answer(torch.cat([logits, cloud[0]], dim=1))
    found, was = split_levels(wide, after.widths), split_levels(logits, before.widths)
    assert torch.equal(found["body"], was["body"])
    classes = network.gallery(was["class"], network.gallery.margins(cloud[0])).softmax(dim=1)
    torch.testing.assert_close(found["class"].softmax(dim=1), classes)
    bmw, vw = was["make"].softmax(dim=1).T
    kept = classes[:, :2].sum(dim=1)
    audi, bmw_now, vw_now = found["make"].softmax(dim=1).T
    torch.testing.assert_close(audi, classes[:, 2])  # a make that is new
    torch.testing.assert_close(bmw_now, kept * bmw)
    torch.testing.assert_close(vw_now, kept * vw + classes[:, 3])  # a new model of a known make


def test_likelihoods_of_discriminants_are_the_likeliest_there_are() -> None:
    """Scores that are log-probabilities times a number get them back; where all is right, the factor has an end."""
    random = torch.Generator().manual_seed(0)
    told = (2 * torch.randn(4000, 5, generator=random, dtype=torch.float64)).log_softmax(dim=1)
    labels = torch.multinomial(told.exp(), 1, generator=random)[:, 0]
    assert fit_likelihoods(50 * told, labels) == pytest.approx(1 / 50, rel=0.05)
    sure = 1e6 * torch.eye(3, dtype=torch.float64)
    found = fit_likelihoods(sure, torch.arange(3))
    assert 10 < found * 1e6 <= 100.001
