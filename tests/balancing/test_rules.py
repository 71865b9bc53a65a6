from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vmmr.balancing import BALANCERS, DBMTL, DWA, Fixed, GradNorm, RandomWeights, Uncertainty, Weighting
from vmmr.balancing.dwa import dwa
from vmmr.balancing.gradnorm import gradnorm_loss, training_rates
from vmmr.errors import ConfigError

LossesOf = Callable[..., tuple[dict[str, Tensor], Tensor]]
NAMES = ("a", "b", "c")
POSITIVE = st.floats(0.01, 100)


def _values(weights: dict[str, Tensor]) -> list[float]:
    return [weight.item() for weight in weights.values()]


def _scalars(*values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in zip(NAMES, values, strict=False)}


def test_registry() -> None:
    assert list(BALANCERS) == sorted(BALANCERS)
    for name, make in BALANCERS.items():
        if name != "cagrad":  # has a package of its own
            assert isinstance(make(NAMES), Weighting)


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_names_must_be_there_once(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="names"):
        Fixed(names)


def test_losses_must_be_known() -> None:
    with pytest.raises(ConfigError, match="year"):
        Fixed(NAMES)({"year": torch.tensor(1.0)})
    with pytest.raises(ConfigError, match="none"):
        Fixed(NAMES)({})


def test_fixed() -> None:
    rule = Fixed(NAMES, {"c": 0.25})
    assert _values(rule(_scalars(1, 2, 3))) == [1, 1, 0.25]
    assert rule({"c": torch.tensor(1.0)}) == {"c": torch.tensor(0.25)}
    for weights in ({"d": 1.0}, {"a": -1.0}):
        with pytest.raises(ConfigError, match="weights"):
            Fixed(NAMES, weights)


def test_uncertainty_comes_to_rest_where_the_variance_is_the_loss() -> None:
    rule = Uncertainty(NAMES, regression=("a", "b"))
    losses = _scalars(0.5, 3.0, 2.0)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        seen = rule.observe(losses)
        weights = rule(losses)
        (sum(weights[name] * losses[name] for name in losses) + rule.penalty(seen)).backward()
        optimizer.step()
    variance = rule.log_variance.detach().exp().tolist()
    assert variance == pytest.approx([0.5, 3.0, 2 * 2.0], rel=1e-4)  # regression: L; classification: 2 L
    assert _values(rule(losses)) == pytest.approx([1 / (2 * 0.5), 1 / (2 * 3.0), 1 / 4.0], rel=1e-4)
    with pytest.raises(ConfigError, match="regression"):
        Uncertainty(NAMES, regression=("d",))


def test_uncertainty_learns_from_the_losses_that_are_there() -> None:
    rule = Uncertainty(NAMES)
    seen = rule.observe({"b": torch.tensor(3.0)})
    (rule.weigh(seen)[0] * 3.0 + rule.penalty(seen)).backward()
    assert rule.log_variance.grad.tolist() == [0, -3 + 0.5, 0]


@settings(max_examples=30, deadline=None)
@given(means=st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=5), temperature=st.floats(0.5, 5))
def test_dwa_term_by_term(means: list[tuple[float, float]], temperature: float) -> None:
    older, newer = torch.tensor(means, dtype=torch.float64).unbind(1)
    rates = [b / a / temperature for a, b in means]
    powers = [math.exp(rate - max(rates)) for rate in rates]
    weights = dwa(older, newer, temperature)
    assert weights.tolist() == pytest.approx([len(means) * p / sum(powers) for p in powers], rel=1e-9)
    assert weights.sum().item() == pytest.approx(len(means))
    assert dwa(older, 3 * older, temperature).tolist() == pytest.approx([1.0] * len(means))


def test_dwa_over_epochs() -> None:
    rule = DWA(NAMES)
    epochs = [[(4.0, 1.0), (2.0, 3.0)], [(1.0, 1.0), (2.0, 2.0)], [(1.0, 2.0)]]
    seen = []
    for epoch in epochs:
        seen.append([_values(rule(_scalars(*losses))) for losses in epoch])
        rule.end_epoch()
    assert seen[0] == seen[1] == [[1, 1], [1, 1]]
    slow, fast = math.exp(1.5 / 2 / 2), math.exp(1.5 / 3 / 2)  # means 3, 2 and then 1.5, 1.5
    assert seen[2][0] == pytest.approx([2 * fast / (slow + fast), 2 * slow / (slow + fast)])
    rule.end_epoch()  # without a batch: nothing is forgotten
    slow, fast = math.exp(2 / 1.5 / 2), math.exp(1 / 1.5 / 2)
    assert _values(rule(_scalars(1.0, 1.0))) == pytest.approx([2 * fast / (slow + fast), 2 * slow / (slow + fast)])
    assert _values(rule(_scalars(1.0, 1.0, 1.0)))[2] > 0  # one that no epoch has seen stands still
    with pytest.raises(ConfigError, match="temperature"):
        DWA(NAMES, temperature=0)


def test_random_weights_have_mean_one_over_the_number() -> None:
    rule = RandomWeights(NAMES, seed=3)
    draws = torch.tensor([_values(rule(_scalars(1, 2, 3))) for _ in range(1000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(1000))
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.03)
    assert len(draws.unique(dim=0)) == 1000


def test_random_weights_come_from_seed_and_batch() -> None:
    first, second, other = RandomWeights(NAMES), RandomWeights(NAMES), RandomWeights(NAMES, seed=1)
    losses = _scalars(1, 2, 3)
    torch.manual_seed(5)
    runs = [_values(first(losses)) for _ in range(2)]
    torch.manual_seed(6)
    assert _values(second(losses)) == runs[0] != runs[1]
    assert _values(second(losses)) == runs[1]
    assert _values(other(losses)) != runs[0]
    a, b = _values(RandomWeights(NAMES)({n: losses[n] for n in "ab"}))
    assert a / b == pytest.approx(runs[0][0] / runs[0][1], rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(tasks=st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE, POSITIVE), min_size=1, max_size=4), a=st.floats(0, 2))
def test_gradnorm_term_by_term(tasks: list[tuple[float, ...]], a: float) -> None:
    weights, norms, losses, first = torch.tensor(tasks, dtype=torch.float64).unbind(1)
    rates = training_rates(losses, first)
    shares = [loss / start for _, _, loss, start in tasks]
    mean_share = sum(shares) / len(shares)
    assert rates.tolist() == pytest.approx([share / mean_share for share in shares])
    lengths = [w * n for w, n, _, _ in tasks]
    mean = sum(lengths) / len(lengths)
    naive = sum(abs(g - mean * (s / mean_share) ** a) for g, s in zip(lengths, shares, strict=True)) / mean
    assert gradnorm_loss(weights, norms, rates, a).item() == pytest.approx(naive, rel=1e-9, abs=1e-9)


def test_gradnorm_moves_as_autograd_says(losses_of: LossesOf) -> None:
    rule = GradNorm(NAMES, asymmetry=1.5, rate=0.1)
    losses, shared = losses_of([[1, 0], [0, 3]], [2.0, 4.0])
    assert _values(rule(losses, [shared])) == [1, 1]
    # Lengths 1 and 3, mean 2, rates 1: both softmax terms pull s_a up and s_b down, (1 + 3) / 2 x 1 / 2 x ...
    slope = (-1 * (1 - 0.5) - 3 * 0.5) / 2  # d/ds_a of (-w_a 1 + w_b 3) / 2 with w = 2 softmax(s)
    assert rule.scores.tolist() == pytest.approx([-0.1 * slope, 0.1 * slope, 0])
    losses, shared = losses_of([[1, 0], [0, 3]], [1.0, 4.0])  # a has halved: its length is to be shorter
    rule(losses, [shared])
    assert rule.first[:2].tolist() == [2, 4]


def test_gradnorm_without_asymmetry_rests_at_equal_lengths(losses_of: LossesOf) -> None:
    rule = GradNorm(NAMES, asymmetry=0, rate=0.01)
    losses, shared = losses_of([[1, 0], [0, 3], [2, 2]])
    for _ in range(400):
        weights = _values(rule(losses, [shared]))
    lengths = [w * n for w, n in zip(weights, (1, 3, math.sqrt(8)), strict=True)]
    assert lengths == pytest.approx([sum(lengths) / 3] * 3, rel=0.03)
    assert sum(weights) == pytest.approx(3)
    with pytest.raises(ConfigError, match="GradNorm"):
        GradNorm(NAMES, rate=0)


@settings(max_examples=30, deadline=None)
@given(
    tasks=st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=3),
    beta=st.sampled_from([0.0, 0.9]),
    seed=st.integers(0, 99),
)
def test_db_mtl_gives_all_log_losses_the_longest_length(
    tasks: list[tuple[float, float]], beta: float, seed: int, losses_of: LossesOf
) -> None:
    rows = torch.randn(len(tasks), 4, generator=torch.Generator().manual_seed(seed))
    rows = torch.tensor([[length] for length, _ in tasks]) * torch.nn.functional.normalize(rows, dim=1)
    values = [value for _, value in tasks]
    losses, shared = losses_of(rows, values)
    weights = _values(DBMTL(NAMES, beta=beta)(losses, [shared]))  # the first batch: no average yet
    longest = max(length / value for length, value in tasks)
    assert [w * n for w, (n, _) in zip(weights, tasks, strict=True)] == pytest.approx([longest] * len(tasks), rel=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_db_mtl_averages_by_name(sigma: float, losses_of: LossesOf) -> None:
    rule = DBMTL(NAMES, beta=0.9, sigma=sigma)
    batches = [([[1.0, 0.0], [0.0, 4.0]], [1.0, 2.0]), ([[0.0, 2.0]], [4.0]), ([[3.0, 0.0], [5.0, 0.0]], [1.0, 1.0])]
    for rows, values in batches:
        losses, shared = losses_of(rows, values)
        weights = _values(rule(losses, [shared]))
    a, b = torch.zeros(2), torch.zeros(2)
    for t, fresh in enumerate(([1.0, 0.0], [0.0, 2.0 / 4.0], [3.0, 0.0]), start=1):
        stays = 0.9 / t**sigma if t > 1 else 0.0
        a = stays * a + (1 - stays) * torch.tensor(fresh)
    for t, fresh in enumerate(([0.0, 4.0 / 2.0], [5.0, 0.0]), start=1):
        stays = 0.9 / t**sigma if t > 1 else 0.0
        b = stays * b + (1 - stays) * torch.tensor(fresh)
    longest = max(a.norm().item(), b.norm().item())
    assert weights == pytest.approx([longest / a.norm().item(), longest / b.norm().item()], rel=1e-5)


def test_db_mtl_refuses_what_it_cannot_average(losses_of: LossesOf) -> None:
    weight = torch.ones(2, requires_grad=True)
    features = 2 * weight
    losses = {"a": features.sum(), "b": features.square().sum()}
    with pytest.raises(ConfigError, match="features"):
        DBMTL(NAMES)(losses, [features])
    assert _values(DBMTL(NAMES, beta=0)(losses, [features]))[0] > 0
    rule = DBMTL(NAMES)
    rule(losses, [weight])
    losses, shared = losses_of([[1.0, 2.0, 3.0]])
    with pytest.raises(ConfigError, match="3 values"):
        rule(losses, [shared])
    with pytest.raises(ConfigError, match="out of range"):
        DBMTL(NAMES, beta=1)
