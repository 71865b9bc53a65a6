from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vmmr.errors import ConfigError
from vmmr.objectives import (
    OBJECTIVES,
    RESTORATION,
    charbonnier,
    ensemble_mse,
    feature_mse,
    jensen_shannon,
    relative_feature_mse,
    smoothed_kl,
)
from vmmr.objectives.classify import SmoothedKL
from vmmr.objectives.restore import Charbonnier


def _logits(seed: int, batch: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,), generator=generator)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), batch=st.integers(1, 5), classes=st.integers(2, 12), smoothing=st.floats(0, 0.9))
def test_smoothed_kl_term_by_term(seed: int, batch: int, classes: int, smoothing: float) -> None:
    logits, labels = _logits(seed, batch, classes)
    naive = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(v) for v in row))
        for j, value in enumerate(row):
            q = 1 - smoothing if j == label else smoothing / (classes - 1)
            if q > 0:
                naive += q * (math.log(q) - value + normaliser) / batch
    loss = smoothed_kl(logits, labels, smoothing).item()
    assert loss == pytest.approx(naive, rel=1e-9, abs=1e-9)
    assert loss >= -1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(2, 12), smoothing=st.floats(0.01, 0.9))
def test_smoothed_kl_has_its_least_value_zero_at_q(seed: int, classes: int, smoothing: float) -> None:
    _, labels = _logits(seed, 3, classes)
    q = torch.full((3, classes), smoothing / (classes - 1), dtype=torch.float64)
    q.scatter_(1, labels[:, None], 1 - smoothing)
    logits = (q.log() + 5).requires_grad_()  # a shift of all logits says nothing
    loss = smoothed_kl(logits, labels, smoothing)
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_without_smoothing_it_is_cross_entropy() -> None:
    logits, labels = _logits(0, 6, 9)
    torch.testing.assert_close(smoothed_kl(logits, labels, 0.0), functional.cross_entropy(logits, labels))


def test_one_class_leaves_nothing_to_learn() -> None:
    assert smoothed_kl(torch.randn(3, 1), torch.zeros(3, dtype=torch.long), 0.1) == 0


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, math.nan])
def test_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="smoothing"):
        smoothed_kl(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), smoothing)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=12),
    eps=st.sampled_from([1e-6, 1e-3, 0.5]),
)
def test_charbonnier_lies_between_the_absolute_error_and_that_plus_eps(
    values: list[tuple[float, float]], eps: float
) -> None:
    a, b = torch.tensor(values, dtype=torch.float64).unbind(1)
    loss = charbonnier(a, b, eps).item()
    naive = sum(math.sqrt((x - y) ** 2 + eps**2) for x, y in values) / len(values)
    assert loss == pytest.approx(naive, rel=1e-12)
    absolute = functional.l1_loss(a, b).item()
    assert absolute - 1e-12 <= loss <= absolute + eps + 1e-12
    assert loss == charbonnier(b, a, eps).item()


def test_charbonnier_is_smooth_where_both_agree() -> None:
    a = torch.zeros(5, requires_grad=True)
    gradient = torch.autograd.grad(charbonnier(a, torch.zeros(5)), a)[0]
    assert torch.equal(gradient, torch.zeros(5))  # no nan, unlike the root of a square


def test_restoration_losses_by_name() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert RESTORATION["charbonnier"](a, b) == charbonnier(a, b)
    torch.testing.assert_close(RESTORATION["mse"](a, b), (a - b).square().mean())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ensemble_error_has_the_gradient_of_the_sum(count: int) -> None:
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teachers = [torch.randn(3, 5, dtype=torch.float64) for _ in range(count)]
    explicit = torch.stack([(student - t).square().mean() for t in teachers]).sum()
    wanted, found = (torch.autograd.grad(f, student)[0] for f in (explicit, ensemble_mse(student, teachers)))
    torch.testing.assert_close(found, wanted)
    assert ensemble_mse(student, teachers) <= explicit + 1e-12  # less by the teachers' spread
    order = list(reversed(teachers))
    torch.testing.assert_close(ensemble_mse(student, order), ensemble_mse(student, teachers))


def test_feature_errors() -> None:
    s, t = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(feature_mse(s, t), (s - t).square().sum() / s.numel())
    torch.testing.assert_close(relative_feature_mse(s, t), (s - t).square().sum() / t.square().sum())
    assert relative_feature_mse(s, torch.zeros_like(t)).isfinite()


def test_modules_say_what_functions_say() -> None:
    logits, labels = _logits(3, 4, 6)
    assert SmoothedKL(0.2)(logits, labels) == smoothed_kl(logits, labels, 0.2)
    a, b = torch.randn(4), torch.randn(4)
    assert Charbonnier(0.1)(a, b) == charbonnier(a, b, 0.1)


def test_registry() -> None:
    assert list(OBJECTIVES) == sorted(OBJECTIVES)
    assert OBJECTIVES["smoothed_kl"] is smoothed_kl


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), views=st.integers(1, 4), classes=st.integers(2, 8))
def test_jensen_shannon_term_by_term(seed: int, views: int, classes: int) -> None:
    logits = [_logits(seed + view, 3, classes)[0] for view in range(views)]
    naive = 0.0
    for row in range(3):
        p = [[math.exp(v) / sum(map(math.exp, view[row].tolist())) for v in view[row].tolist()] for view in logits]
        mean = [sum(column) / views for column in zip(*p, strict=True)]
        naive += sum(a * math.log(a / m) for one in p for a, m in zip(one, mean, strict=True)) / views / 3
    found = jensen_shannon(logits).item()
    assert found == pytest.approx(naive, rel=1e-9, abs=1e-12)
    assert -1e-12 <= found <= math.log(views) + 1e-12
    assert jensen_shannon(logits[::-1]).item() == pytest.approx(found)


def test_equal_views_have_no_divergence_and_no_gradient() -> None:
    logits = _logits(0, 4, 5)[0].requires_grad_()
    loss = jensen_shannon([logits, logits.detach() + 7])
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12
