"""HIMPLoS by hand, its limits, and the checks that its description calls for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError
from vmmr.unknown import SCORES, Fitted, gather
from vmmr.unknown.energy import energy
from vmmr.unknown.himplos import HIMPLoSFitted, fit_himplos, himplos
from vmmr.unknown.max_logit import max_logit
from vmmr.unknown.msp import msp
from vmmr.unknown.react import ReActFitted, react


def by_hand() -> tuple[Tensor, Tensor, HIMPLoSFitted]:
    """d = 4, C = 2: features, logits, and what is fitted with p = 50 and a cut at 1.5."""
    weight = torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.0, 2.0, -0.5, 1.0]])
    bias = torch.tensor([0.1, -0.2])
    features = torch.tensor([[2.0, 0.5, 1.0, 0.0]])
    prototype = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    # Row 0 sorted: -1, 0, 0.5, 1; the median is 0.25, so 0.5 and 1 are kept.
    fitted = HIMPLoSFitted(weight, bias, torch.tensor([0.5, 1.0]), prototype, torch.tensor(1.5))
    return features, functional.linear(features, weight, bias), fitted


def test_by_hand() -> None:
    features, logits, fitted = by_hand()
    # Logits 2 - 0.5 + 0.5 + 0.1 = 2.1 and 0 + 1 - 0.5 + 0 - 0.2 = 0.3: class 0. Mask 1 0 1 0: (2, 0, 1, 0), cut to
    # (1.5, 0, 1, 0). Logits 1.5 + 0.5 + 0.1 = 2.1 and -0.5 - 0.2 = -0.7. Cosine 3 / sqrt(5.25 * 2).
    cosine = 3 / math.sqrt(10.5)
    expected = -math.log(math.exp(2.1 * cosine) + math.exp(-0.7 * cosine))
    assert himplos(features, logits, fitted).item() == pytest.approx(expected, abs=1e-6)
    bare = -math.log(math.exp(2.1) + math.exp(-0.7))
    assert himplos(features, logits, fitted, smooth=False).item() == pytest.approx(bare, abs=1e-6)
    assert himplos(features, logits, fitted, end=max_logit).item() == pytest.approx(-2.1 * cosine, abs=1e-6)
    sure = 1 / (1 + math.exp(-2.8 * cosine))
    assert himplos(features, logits, fitted, end=msp).item() == pytest.approx(1 - sure, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 40), st.integers(0, 99))
def test_each_class_keeps_its_share_of_weights(seed: int, classes: int, width: int, percentile: int) -> None:
    weight = torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(classes)
    fitted = fit_himplos(gather([(torch.ones(classes, width), labels, labels)], weight, weight[:, 0]), percentile)
    kept = (fitted.weight >= fitted.least[:, None]).sum(dim=1)
    # The percentile lies at place p (d - 1) of the sorted row, so from there on upwards: d - ceil(p (d - 1)) of d.
    expected = width - math.ceil(percentile / 100 * (width - 1) - 1e-9)
    assert kept.tolist() == [expected] * classes
    assert abs(expected - (1 - percentile / 100) * width) <= 1
    bound = np.percentile(weight.numpy(), percentile, axis=1, keepdims=True)
    assert np.array_equal((fitted.weight >= fitted.least[:, None]).numpy(), weight.numpy() >= bound)


def test_ties_at_the_bound_are_all_kept() -> None:
    weight = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    labels = torch.tensor([0])
    fitted = fit_himplos(gather([(torch.ones(1, 4), labels, labels)], weight, torch.zeros(1)), 60)
    assert (fitted.weight >= fitted.least[:, None]).tolist() == [[False, True, True, True]]


def test_without_mask_cut_and_smoothing_it_is_energy(world: Any) -> None:
    fitted = fit_himplos(world.statistics, percentile=0, clip_percentile=None)
    assert fitted.clip.item() == math.inf
    found = himplos(world.shown, world.logits, fitted, smooth=False)
    assert torch.equal(found, energy(world.shown, world.logits, Fitted()))


def test_without_mask_and_smoothing_it_is_react(world: Any) -> None:
    fitted = fit_himplos(world.statistics, percentile=0, clip_percentile=80)
    found = himplos(world.shown, world.logits, fitted, smooth=False)
    same = ReActFitted(fitted.weight, fitted.bias, fitted.clip)
    assert torch.equal(found, react(world.shown, world.logits, same))
    assert not torch.allclose(found, energy(world.shown, world.logits, Fitted()))


def test_smoothing_alone_is_energy_at_a_temperature_of_each_image(world: Any) -> None:
    fitted = SCORES["himplos_smooth"].fit(world.statistics)
    cosine = functional.cosine_similarity(world.shown, fitted.prototype[world.logits.argmax(dim=1)])
    found = SCORES["himplos_smooth"].score(world.shown, world.logits, fitted)
    torch.testing.assert_close(found, -(cosine[:, None] * world.logits).logsumexp(dim=1))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 10))
def test_longer_features_have_the_same_cosine_and_another_score(factor: float) -> None:
    """With the answer kept, the score moves as the logits do, and the ratio to the score without smoothing stays."""
    features, _, fitted = by_hand()
    plain = HIMPLoSFitted(fitted.weight, torch.zeros(2), fitted.least, fitted.prototype, torch.tensor(math.inf))

    def ratio(f: Tensor) -> float:
        logits = functional.linear(f, plain.weight)
        ends = [himplos(f, logits, plain, smooth=smooth, end=max_logit).item() for smooth in (True, False)]
        return ends[0] / ends[1]

    assert ratio(factor * features) == pytest.approx(ratio(features), rel=1e-4)
    one = himplos(features, functional.linear(features, plain.weight), plain).item()
    other = himplos(2 * features, functional.linear(2 * features, plain.weight), plain).item()
    assert one != pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("offset", [-50.0, 0.0, 50.0])
def test_away_from_the_prototype_the_score_goes_to_that_of_no_logits(offset: float) -> None:
    """Not to the strangest: with logits far below 0 it comes from above, so "the smaller the cosine, the stranger"
    would be wrong."""
    _, _, fitted = by_hand()
    fitted = HIMPLoSFitted(fitted.weight, fitted.bias + offset, fitted.least, fitted.prototype, fitted.clip)
    for features in (torch.tensor([[0.0, 0.0, 0.0, 3.0]]), torch.tensor([[-1.0, 0.0, 0.0, 0.0]])):
        # Told that it is class 0, whose prototype stands at a right angle to it, or points away.
        found = himplos(features, torch.tensor([[1.0, 0.0]]), fitted)
        assert found.item() == pytest.approx(-math.log(2), abs=1e-6)


def test_the_answer_comes_from_the_logits_as_they_are(world: Any) -> None:
    """The class whose mask and prototype are used is the answer's, whatever the masked logits would say."""
    fitted = fit_himplos(world.statistics, percentile=90)
    logits = torch.zeros_like(world.logits)
    for label in range(5):
        told = logits.clone()
        told[:, label] = 1
        kept = (fitted.weight[label] >= fitted.least[label]).float()
        shown = functional.linear((world.shown * kept).minimum(fitted.clip), fitted.weight, fitted.bias)
        cosine = functional.cosine_similarity(world.shown, fitted.prototype[label][None])
        torch.testing.assert_close(himplos(world.shown, told, fitted), -(cosine[:, None] * shown).logsumexp(dim=1))


def test_prototypes_are_means_of_all_images_of_a_class(world: Any) -> None:
    fitted = fit_himplos(world.statistics)
    wrong = (world.features @ world.weight.T + world.bias).argmax(dim=1) != world.labels
    assert wrong.float().mean() > 0.3  # the classifier is one of chance: those count as well
    expected = torch.stack([world.features[world.labels == c].mean(dim=0) for c in range(5)])
    torch.testing.assert_close(fitted.prototype, expected)


def test_strangers_on_light_features_are_told_better_than_by_energy() -> None:
    """Known images live on the two features that their class weighs most; strangers on all the light ones."""
    random = torch.Generator().manual_seed(0)
    classes, width, images = 4, 24, 400
    labels = torch.arange(images) % classes
    heavy = torch.zeros(classes, width)
    for label in range(classes):
        heavy[label, 2 * label : 2 * label + 2] = 1
    weight = heavy + (1 - heavy) * 0.25 * torch.rand(classes, width, generator=random)
    bias = torch.zeros(classes)
    known = (2.0 * heavy[labels] + 0.5 * torch.randn(images, width, generator=random)).relu()
    strange = (1.6 + 0.5 * torch.randn(images, width, generator=random)).relu()
    strange[:, : 2 * classes] *= 0.4
    statistics = gather([(known, labels, torch.arange(images))], weight, bias)
    fitted = fit_himplos(statistics, percentile=90, clip_percentile=None)
    smoothing = SCORES["himplos_smooth"].fit(statistics)

    def separation(score: Callable[..., Tensor], fitted: Fitted, **options: bool) -> float:
        found = [score(x, functional.linear(x, weight, bias), fitted, **options) for x in (known, strange)]
        return float((found[1][:, None] > found[0][None, :]).double().mean())

    plain = separation(energy, Fitted())
    assert plain < 0.6
    assert separation(himplos, fitted) > 0.95
    assert separation(himplos, fitted, smooth=False) > plain + 0.2
    assert separation(himplos, smoothing) > plain + 0.2


@pytest.mark.parametrize("percentile", [-1, 100, 120])
def test_a_mask_that_keeps_nothing_is_refused(percentile: float, world: Any) -> None:
    with pytest.raises(ConfigError, match="keeps some weights"):
        fit_himplos(world.statistics, percentile)
