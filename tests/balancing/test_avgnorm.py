from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vmmr.balancing import AvgNorm
from vmmr.balancing.avgnorm import SCALES, avgnorm
from vmmr.balancing.rule import gram_matrix, observe, task_gradients
from vmmr.errors import ConfigError

LossesOf = Callable[..., tuple[dict[str, Tensor], Tensor]]
NAMES = ("a", "b", "c", "d")
SEEDS = st.integers(0, 9999)


def _net(seed: int, tasks: int) -> tuple[dict[str, Tensor], nn.Linear, list[nn.Linear]]:
    """Losses of heads on one trunk, whose last layer is shared."""
    torch.manual_seed(seed)
    first, last = nn.Linear(6, 8), nn.Linear(8, 5)
    heads = [nn.Linear(5, 3) for _ in range(tasks)]
    features = last(first(torch.randn(7, 6)).tanh()).tanh()
    labels = torch.randint(3, (tasks, 7))
    losses = [(10**i) * nn.functional.cross_entropy(head(features), labels[i]) for i, head in enumerate(heads)]
    return dict(zip(NAMES, losses, strict=False)), last, heads


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, tasks=st.integers(1, 4))
def test_every_weighted_gradient_has_the_length_of_the_sum(seed: int, tasks: int) -> None:
    losses, last, _ = _net(seed, tasks)
    weights = AvgNorm(NAMES)(losses, [last.weight])
    rows = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].double() for loss in losses.values()]
    size = sum(rows).norm().item()
    for row, name in zip(rows, losses, strict=True):
        assert weights[name] * row.norm().item() == pytest.approx(size, rel=1e-5)
        assert not weights[name].requires_grad
    if tasks == 1:
        assert weights["a"].item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 0], [1, 0]], [2, 2]),
        ([[1, 0], [0, 10]], [math.sqrt(101), math.sqrt(101) / 10]),
        ([[1, 0], [10, 0]], [11, 1.1]),
        ([[1, 0], [-10, 0]], [9, 0.9]),
        ([[1, 0], [-1, 0]], [0, 0]),
        ([[1, 2], [1, 2], [1, 2]], [3, 3, 3]),
        ([[3, 4]], [1]),
    ],
)
def test_by_hand(rows: list[list[float]], expected: list[float], losses_of: LossesOf) -> None:
    losses, shared = losses_of(rows)
    weights = AvgNorm(NAMES)(losses, [shared])
    assert [w.item() for w in weights.values()] == pytest.approx(expected, rel=1e-6)


def test_partial_gradients_are_those_of_the_whole(losses_of: LossesOf) -> None:
    losses, last, heads = _net(0, 3)
    rows = task_gradients(list(losses.values()), [last.weight, last.bias])
    assert rows.shape == (3, 45)
    assert last.weight.grad is None
    for row, loss in zip(rows, losses.values(), strict=True):
        last.zero_grad()
        loss.backward(retain_graph=True)
        assert torch.equal(row, torch.cat([last.weight.grad.flatten(), last.bias.grad]))
    assert not task_gradients([losses["a"]], [heads[1].weight]).any()  # a loss that does not reach there


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, factor=st.sampled_from([1e-3, 1e3]), scale=st.sampled_from(sorted(SCALES)))
def test_scaling_a_loss_acts_through_the_common_length_alone(seed: int, factor: float, scale: str) -> None:
    losses, last, _ = _net(seed, 3)
    gradients = task_gradients(list(losses.values()), [last.weight])
    weights = AvgNorm(NAMES, scale)(losses, [last.weight])
    scaled = AvgNorm(NAMES, scale)(losses | {"b": factor * losses["b"]}, [last.weight])
    before = torch.stack(list(weights.values()))[:, None] * gradients
    after = torch.stack(list(scaled.values()))[:, None] * gradients * torch.tensor([[1], [factor], [1]])
    ratio = after.norm() / before.norm()
    torch.testing.assert_close(after, ratio * before, rtol=2e-4, atol=1e-6 * after.abs().max().item())
    if scale == "fixed_1":
        assert ratio.item() == pytest.approx(1, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    norms=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    power=st.floats(0, 1),
    scale=st.sampled_from([*SCALES]),
)
def test_closed_forms(norms: list[float], power: float, scale: str) -> None:
    weights = avgnorm(torch.tensor(norms), torch.tensor(3.0), scale, power).tolist()
    size = {"fixed_1": 1.0, "max_norm": max(norms), "mean_of_norms": sum(norms) / len(norms), "sum_norm": 3.0}
    if scale == "normalise_to_T":
        assert sum(weights) == pytest.approx(len(norms), rel=1e-4)
        products = [w * n**power for w, n in zip(weights, norms, strict=True)]
        assert products == pytest.approx([products[0]] * len(norms), rel=1e-3)
    else:
        assert weights == pytest.approx([(size[scale] / n) ** power for n in norms], rel=1e-4)


@pytest.mark.parametrize("scale", sorted(SCALES))
def test_a_loss_without_a_gradient_keeps_weight_one(scale: str, losses_of: LossesOf) -> None:
    losses, shared = losses_of([[2, 0], [0, 0], [0, 4]])
    weights = AvgNorm(NAMES, scale)(losses, [shared])
    others = AvgNorm(NAMES, scale)({name: losses[name] for name in "ac"}, [shared])
    assert weights["b"] == 1
    assert (weights["a"], weights["c"]) == (others["a"], others["c"])
    nothing, shared = losses_of([[0, 0], [0, 0]])
    assert [w.item() for w in AvgNorm(NAMES, scale)(nothing, [shared]).values()] == [1, 1]


def test_memory_is_an_exponential_mean_by_name(losses_of: LossesOf) -> None:
    rule = AvgNorm(NAMES, "fixed_1", memory=0.9)
    for lengths in ([1.0, 2.0], [3.0], [5.0, 4.0]):  # the second batch has no b
        losses, shared = losses_of([[length] for length in lengths])
        weights = rule(losses, [shared])
    mean_a = (0.1 * 5 + 0.09 * 3 + 0.081 * 1) / (0.1 + 0.09 + 0.081)
    mean_b = (0.1 * 4 + 0.09 * 2) / (0.1 + 0.09)
    assert weights["a"].item() == pytest.approx(1 / mean_a, rel=1e-5)
    assert weights["b"].item() == pytest.approx(1 / mean_b, rel=1e-5)


def test_clamp(losses_of: LossesOf) -> None:
    losses, shared = losses_of([[1e-6, 0], [0, 1], [0, 1e6]])
    weights = AvgNorm(NAMES, "fixed_1", clamp=(0.1, 10))(losses, [shared])
    assert [w.item() for w in weights.values()] == pytest.approx([10, 1, 0.1])


def test_frozen_after_warm_up(losses_of: LossesOf) -> None:
    rule = AvgNorm(NAMES, "fixed_1", freeze_after=2)
    for length in (1.0, 4.0):
        losses, shared = losses_of([[length], [2.0]])
        assert rule.needs_gradients
        rule(losses, [shared])
    assert not rule.needs_gradients
    losses, _ = losses_of([[7.0], [7.0], [7.0]])
    weights = rule(losses)  # nothing to compare
    assert [w.item() for w in weights.values()] == [(1 + 1 / 4) / 2, 1 / 2, 1]
    again = AvgNorm(NAMES, "fixed_1", freeze_after=2)
    again.load_state_dict(rule.state_dict())
    assert not again.needs_gradients


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_cosines_and_norms(seed: int) -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    shared = torch.zeros(5, requires_grad=True)
    seen = observe({name: row @ shared for name, row in zip("abc", rows, strict=True)}, "abcd", [shared])
    torch.testing.assert_close(seen.norms, rows.norm(dim=1))
    torch.testing.assert_close(seen.sum_norm, rows.sum(0).norm(), rtol=1e-4, atol=1e-5)
    unit = nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(seen.cosines, unit @ unit.T)


def test_lengths_stay_exact_under_autocast() -> None:
    rows = torch.randn(2, 257, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gram = gram_matrix(rows)
    torch.testing.assert_close(gram, rows @ rows.T, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{"scale": "median"}, {"power": 1.1}, {"memory": 1.0}, {"clamp": (2, 1)}, {"freeze_after": 0}, {"power": math.nan}],
)
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="AvgNorm"):
        AvgNorm(NAMES, **options)


def test_what_cannot_be_compared_is_refused(losses_of: LossesOf) -> None:
    losses, _ = losses_of([[1.0], [2.0]])
    with pytest.raises(ConfigError, match="shared layer"):
        AvgNorm(NAMES)(losses)
    with pytest.raises(ConfigError, match="frozen"):
        AvgNorm(NAMES)(losses, [torch.zeros(1)])
