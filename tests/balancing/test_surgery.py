from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vmmr.balancing import Surgery
from vmmr.balancing.surgery import AGGREGATORS, _project
from vmmr.errors import ConfigError

LossesOf = Callable[..., tuple[dict[str, Tensor], Tensor]]
NAMES = ("a", "b", "c")
SEEDS = st.integers(0, 9999)


def _made(name: str) -> Surgery:
    if name == "cagrad":
        pytest.importorskip("cvxpy", reason="cagrad needs vmmr[cagrad]")
    return Surgery(NAMES, name)


def _weights(rule: Surgery, gradients: Tensor) -> Tensor:
    shared = torch.zeros(gradients.shape[1], requires_grad=True)
    losses = {name: row @ shared for name, row in zip(NAMES, gradients, strict=False)}
    return torch.stack(list(rule(losses, [shared]).values()))


def _rows(seed: int, tasks: int, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, width, generator=generator) * 10 ** torch.randn(tasks, 1, generator=generator).clamp(
        -1, 1
    )


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_the_size_of_all_gradients_changes_no_direction(name: str, scale: float) -> None:
    rows = _rows(3, 3)
    weights, scaled = _weights(_made(name), rows), _weights(_made(name), scale * rows)
    expected = weights * scale ** (2 * AGGREGATORS[name][1])
    torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_one_loss_keeps_its_direction_and_none_is_no_matter(name: str) -> None:
    rule = _made(name)
    rows = _rows(1, 3)
    assert _weights(rule, rows[:1]).item() > 0
    assert _weights(rule, torch.zeros(2, 5)).tolist() == [1, 1]
    some = _weights(rule, torch.stack([rows[0], torch.zeros(5), rows[2]]))
    assert some[1] == 1
    opposed = _weights(rule, torch.stack([rows[0], -rows[0]]))
    assert opposed.isfinite().all()
    if name != "imtl_g":  # whose two equations are then one
        assert (opposed[0] - opposed[1]).abs() <= 1e-2 * opposed.abs().max()
    assert _weights(rule, torch.full((2, 5), math.nan)).tolist() == [1, 1]  # the loop stops at such a loss


def test_the_methods_defined_by_a_cone_do_not_harm_any_loss() -> None:
    for seed in range(10):
        rows = _rows(seed, 3)
        for name in ("mgda", "upgrad"):
            step = _weights(_made(name), rows) @ rows
            assert (rows @ step > -2e-3 * step.norm() * rows.norm(dim=1)).all(), name


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_pcgrad_projects_two_that_conflict_and_leaves_others(seed: int) -> None:
    g, h = rows = _rows(seed, 2)
    step = _weights(Surgery(NAMES, "pcgrad"), rows) @ rows
    clash = (g @ h).clamp_max(0)
    expected = (g - clash / (h @ h) * h) + (h - clash / (g @ g) * g)
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-4 * rows.abs().max().item())


def test_pcgrad_takes_its_orders_from_seed_and_batch() -> None:
    rows = torch.tensor([[1.0, 0.1], [-1.0, 0.2], [0.3, -1.0]])
    possible = []
    for orders in itertools.product(*[itertools.permutations([j for j in range(3) if j != i]) for i in range(3)]):
        total = torch.zeros(2)
        for i, order in enumerate(orders):
            g = rows[i]
            for j in order:
                g = g - min(0.0, float(g @ rows[j])) / (rows[j] @ rows[j]) * rows[j]
            total = total + g
        possible.append(total)
    rule = Surgery(NAMES, "pcgrad")
    state = torch.get_rng_state()
    steps = [_weights(rule, rows) @ rows for _ in range(20)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(min((step - p).norm() for p in possible) < 1e-5 for step in steps)
    assert max((step - steps[0]).norm() for step in steps) > 1e-3  # more than one order
    again = Surgery(NAMES, "pcgrad")
    assert all(torch.equal(_weights(again, rows) @ rows, step) for step in steps)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_mgda_finds_the_shortest_point_between_two(seed: int) -> None:
    g, h = rows = _rows(seed, 2)
    share = (((h - g) @ h) / (g - h).square().sum()).clamp(0, 1)
    weights = _weights(Surgery(NAMES, "mgda"), rows)
    torch.testing.assert_close(weights, torch.stack([share, 1 - share]), rtol=0, atol=2e-3)
    step = weights @ rows
    assert (rows @ step >= -1e-3 * rows.square().sum(1)).all()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_imtl_g_has_equal_projections(seed: int) -> None:
    rows = _rows(seed, 3)
    weights = _weights(Surgery(NAMES, "imtl_g"), rows)
    projections = torch.nn.functional.normalize(rows, dim=1) @ (weights @ rows)
    spread = (projections - projections.mean()).abs().max()
    assert spread < 1e-3 * (weights.abs()[:, None] * rows).norm()
    assert weights.sum().item() == pytest.approx(1, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, factor=st.sampled_from([0.1, 10.0]))
def test_nash_solves_its_system_whatever_the_scale_of_a_loss(seed: int, factor: float) -> None:
    rows = _rows(seed, 3)
    weights = _weights(Surgery(NAMES, "nash_mtl"), rows)
    gram = rows @ rows.T
    products = (gram / gram.norm() @ weights) * weights
    torch.testing.assert_close(products, torch.ones(3), rtol=2e-2, atol=0)
    scaled = rows * torch.tensor([[1.0], [factor], [1.0]])
    steps = [
        torch.nn.functional.normalize(w @ g, dim=0)
        for w, g in ((weights, rows), (_weights(Surgery(NAMES, "nash_mtl"), scaled), scaled))
    ]
    assert steps[0] @ steps[1] > 0.999


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_fairgrad_solves_its_system(seed: int) -> None:
    rows = _rows(seed, 3)
    weights = _weights(Surgery(NAMES, "fairgrad"), rows)
    torch.testing.assert_close((rows @ rows.T) @ weights, weights.pow(-1 / 2), rtol=2e-2, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_aligned_mtl_leaves_gradients_of_one_length_at_right_angles(seed: int) -> None:
    rows = torch.linalg.qr(_rows(seed, 3).T)[0].T * torch.tensor([[3.0], [2.0], [1.0]])
    weights = _weights(Surgery(NAMES, "aligned_mtl"), rows)
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 1 / 2, 1.0]) / 3, rtol=1e-3, atol=1e-4)


def test_cagrad_stays_within_half_the_mean_and_without_radius_at_it() -> None:
    pytest.importorskip("cvxpy", reason="cagrad needs vmmr[cagrad]")
    from torchjd.aggregation import CAGradWeighting

    for seed in range(5):
        rows = _rows(seed, 2)
        mean = rows.mean(0)
        torch.testing.assert_close(_weights(Surgery(NAMES, CAGradWeighting(c=0.0)), rows) @ rows, mean)
        step = _weights(Surgery(NAMES, "cagrad"), rows) @ rows
        assert (step - mean).norm() <= 0.5 * mean.norm() * 1.001
        worst = (rows @ step).min()
        angles = torch.linspace(0, 2 * math.pi, 721)  # the best step lies in the plane of the two
        plane = torch.linalg.qr(rows.T)[0]
        tried = mean + 0.5 * mean.norm() * torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.T
        assert worst >= (tried @ rows.T).min(1).values.max() - 1e-2 * rows.norm() * mean.norm()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_upgrad_is_the_mean_of_projections_on_the_cone(seed: int) -> None:
    g, h = rows = _rows(seed, 2)
    step = _weights(Surgery(NAMES, "upgrad"), rows) @ rows
    clash = (g @ h).clamp_max(0)
    expected = (g - clash / (h @ h) * h) / 2 + (h - clash / (g @ g) * g) / 2
    torch.testing.assert_close(step, expected, rtol=0, atol=2e-2 * rows.abs().max().item())


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_projection_is_least_among_those_allowed(seed: int) -> None:
    gram = _rows(seed, 3) @ _rows(seed, 3).T
    regular = (gram / gram.trace() + 1e-7 * torch.eye(3)).double()
    directions = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed))
    for u, v in zip(directions.double(), _project(directions, gram).double(), strict=True):
        assert (v >= u - 1e-6).all()
        slope = regular @ v  # v' G v falls nowhere but below u
        assert (slope > -1e-5).all()
        assert ((v - u) * slope).abs().max() < 1e-5


def test_a_function_of_ones_own_serves_as_well(losses_of: LossesOf) -> None:
    losses, shared = losses_of([[3.0, 0.0], [0.0, 4.0]])
    weights = Surgery(NAMES, lambda gram: 1 / gram.diagonal())(losses, [shared])
    size = math.hypot(9, 16)
    assert [w.item() for w in weights.values()] == pytest.approx([size / 9, size / 16])


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="aligned_mtl"):
        Surgery(NAMES, "scalpel")

    def missing() -> None:
        raise ImportError("CAGradWeighting requires ['cvxpy']")

    monkeypatch.setitem(AGGREGATORS, "cagrad", (missing, 0.0))
    with pytest.raises(ConfigError, match=r"cvxpy.*vmmr\[cagrad\]"):
        Surgery(NAMES, "cagrad")
