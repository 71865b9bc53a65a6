"""What holds of every rule, and the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vmmr.balancing import BALANCERS, AvgNorm, Fixed, Surgery, Uncertainty, Weighting, balanced_backward
from vmmr.training.sam import sharpness_aware

LossesOf = Callable[..., tuple[dict[str, Tensor], Tensor]]
NAMES = ("a", "b", "c")
SEEDS = st.integers(0, 9999)


class Net(nn.Module):
    """A trunk of two layers and three heads; a loss each."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)
        self.heads = nn.ModuleDict({name: nn.Linear(5, 3) for name in NAMES})
        self.x, self.labels = torch.randn(8, 4), torch.randint(3, (3, 8))

    def features(self) -> Tensor:
        return self.last(self.first(self.x).relu()).relu()

    def losses(self, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
        features = self.features()
        return {n: nn.functional.cross_entropy(self.heads[n](features), self.labels[NAMES.index(n)]) for n in names}

    def gradients(self) -> dict[str, Tensor]:
        found = {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}
        self.zero_grad()
        return found


def _make(name: str) -> Weighting:
    if name == "cagrad":
        pytest.importorskip("cvxpy", reason="cagrad needs vmmr[cagrad]")
    return BALANCERS[name](NAMES)


def _assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", sorted(BALANCERS))
def test_it_descends_the_weighted_sum(name: str) -> None:
    net, rule = Net(), _make(name)
    balance = balanced_backward(net.losses(), rule, [net.last.weight])
    found = net.gradients()
    weights = balance["weights"]
    assert weights.keys() == set(NAMES)
    assert not any(w.requires_grad for w in weights.values())
    sum(weights[n] * loss for n, loss in net.losses().items()).backward()
    _assert_alike(found, net.gradients())


@pytest.mark.parametrize("name", sorted(BALANCERS))
def test_its_state_goes_through_a_file(name: str, tmp_path: Path) -> None:
    def batch(rule: Weighting, seed: int, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
        net = Net(seed)
        return balanced_backward(net.losses(names), rule, [net.last.weight])["weights"]

    rule = _make(name)
    for seed in range(3):
        batch(rule, seed, NAMES[: seed + 1])
        rule.end_epoch()
    if isinstance(rule, Uncertainty):
        rule.log_variance.data += torch.arange(3.0)
    save_file(rule.state_dict(), tmp_path / "rule.safetensors")
    again = _make(name)
    again.load_state_dict(load_file(tmp_path / "rule.safetensors"))
    for seed in (3, 4):
        assert batch(rule, seed) == batch(again, seed)


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, order=st.permutations(NAMES))
@pytest.mark.parametrize("name", sorted(set(BALANCERS) - {"pcgrad", "random"}))  # which draw by place
def test_the_order_of_losses_is_no_matter(name: str, seed: int, order: list[str]) -> None:
    net, shuffled = Net(seed), Net(seed)
    rule, other = _make(name), BALANCERS[name](order)
    for _ in range(2):
        weights = rule(net.losses(), [net.last.weight])
        permuted = other({n: shuffled.losses()[n] for n in order}, [shuffled.last.weight])
        for n in NAMES:
            torch.testing.assert_close(permuted[n], weights[n], rtol=5e-3, atol=5e-3)


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, factor=st.sampled_from([0.2, 5.0]))
@pytest.mark.parametrize("name", ["db_mtl", "imtl_g", "nash_mtl"])
def test_the_scale_of_one_loss_changes_no_direction(name: str, seed: int, factor: float) -> None:
    net = Net(seed)
    directions = []
    for factors in ((1.0, 1.0, 1.0), (1.0, factor, 1.0)):
        losses = {n: f * loss for f, (n, loss) in zip(factors, net.losses().items(), strict=True)}
        balanced_backward(losses, _make(name), [net.last.weight])
        directions.append(nn.functional.normalize(net.gradients()["last.weight"].flatten(), dim=0))
    alike = directions[0] @ directions[1]
    # IMTL-G's weights add up to 1: where some are negative, that sum may change its sign, and the direction with it.
    assert (alike.abs() if name == "imtl_g" else alike) > 0.999


@pytest.mark.parametrize("name", sorted(BALANCERS))
def test_a_batch_may_lack_losses(name: str) -> None:
    net, rule = Net(), _make(name)
    for names in (("b",), ("a", "c"), NAMES, ("c",)):
        balance = balanced_backward(net.losses(names), rule, [net.last.weight], measure=True)
        assert balance["weights"].keys() == balance["norms"].keys() == set(names)
        assert all(w.isfinite() for w in balance["weights"].values())
        net.zero_grad()
        rule.end_epoch()


@pytest.mark.parametrize("name", sorted(BALANCERS))
def test_no_gradient_is_no_disaster(name: str, losses_of: LossesOf) -> None:
    losses, shared = losses_of([[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]], [1.0, 0.0, 2.0])
    balance = balanced_backward(losses, _make(name), [shared], measure=True)
    assert all(w.isfinite() for w in balance["weights"].values())
    assert shared.grad.isfinite().all()
    assert balance["cosines"]["a~c"].item() == pytest.approx(-1)
    assert balance["cosines"]["a~b"] == 0


def test_heads_that_a_rule_leaves_alone_descend_their_own_losses() -> None:
    net = Net()
    heads = list(net.heads.parameters())
    sum(net.losses().values()).backward()
    plain = net.gradients()
    rule = Surgery(NAMES, lambda gram: torch.tensor([2.0, 0.0, -1.0]))
    for parameter in net.parameters():  # what is there already stays
        parameter.grad = torch.ones_like(parameter)
    balanced_backward(net.losses(), rule, [net.last.weight], heads=heads)
    found = net.gradients()
    _assert_alike(
        {n: g - 1 for n, g in found.items() if n.startswith("heads")}, {n: plain[n] for n in plain if "heads" in n}
    )
    assert not torch.allclose(found["last.weight"] - 1, plain["last.weight"])
    weighted = Surgery(NAMES, rule.aggregator, weights_heads=True)
    balanced_backward(net.losses(), weighted, [net.last.weight], heads=heads)
    torch.testing.assert_close(net.gradients()["heads.a.weight"], 2 * plain["heads.a.weight"])


def test_the_whole_trunk_can_be_compared() -> None:
    net = Net()
    trunk = [*net.first.parameters(), *net.last.parameters()]
    rows = []
    for name in NAMES:
        net.losses()[name].backward()
        rows.append(torch.cat([p.grad.flatten() for p in trunk]))
        net.zero_grad()
    gradients = torch.stack(rows)
    rule = Surgery(NAMES, "mgda")
    balance = balanced_backward(net.losses(), rule, trunk)
    aggregate = torch.cat([p.grad.flatten() for p in trunk])
    from torchjd.aggregation import MGDA

    torch.testing.assert_close(aggregate, MGDA()(gradients), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.stack([balance["norms"][n] for n in NAMES]), gradients.norm(dim=1))


def test_features_serve_in_the_place_of_a_weight() -> None:
    net = Net()
    features = net.features()
    losses = {n: nn.functional.cross_entropy(net.heads[n](features), y) for n, y in zip(NAMES, net.labels, strict=True)}
    balance = balanced_backward(losses, AvgNorm(NAMES, "fixed_1"), [features])
    for name, labels in zip(NAMES, net.labels, strict=True):
        features = net.features()
        (row,) = torch.autograd.grad(nn.functional.cross_entropy(net.heads[name](features), labels), features)
        assert balance["weights"][name].item() == pytest.approx(1 / row.norm().item(), rel=1e-5)


def test_mixed_precision_compares_in_full() -> None:
    net = Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = net.losses()
    balance = balanced_backward(losses, AvgNorm(NAMES, "fixed_1"), [net.last.weight])
    full = AvgNorm(NAMES, "fixed_1")(net.losses(), [net.last.weight])
    for name, weight in balance["weights"].items():
        assert weight.dtype == torch.float32
        assert weight.item() == pytest.approx(full[name].item(), rel=0.05)
    assert net.last.weight.grad.dtype == torch.float32


def test_sharpness_aware_steps_use_one_set_of_weights() -> None:
    net, rule = Net(), AvgNorm(NAMES, memory=0.5)
    passes: list[dict[str, Tensor]] = []

    def closure() -> None:
        given = passes[0] if passes else None
        passes.append(balanced_backward(net.losses(), rule, [net.last.weight], weights=given)["weights"])

    sharpness_aware(closure, net.parameters(), rho=0.5, networks=(net,))
    assert len(passes) == 2
    assert passes[0] == passes[1]
    assert rule.batches.tolist() == [1, 1, 1]
    found = net.gradients()
    fixed = Fixed(NAMES, {n: w.item() for n, w in passes[0].items()})
    sharpness_aware(lambda: balanced_backward(net.losses(), fixed), net.parameters(), rho=0.5, networks=(net,))
    _assert_alike(found, net.gradients())


def test_learned_weights_learn_in_the_second_pass_too() -> None:
    net, rule = Net(), Uncertainty(NAMES)
    first = balanced_backward(net.losses(), rule)
    gradient = rule.log_variance.grad.clone()
    rule.zero_grad()
    balanced_backward(net.losses(), rule, weights=first["weights"])
    assert torch.equal(rule.log_variance.grad, gradient)
    assert gradient.any()


def test_what_is_measured() -> None:
    net = Net()
    balance = balanced_backward(net.losses(), Fixed(NAMES), [net.last.weight])
    assert balance["norms"] == balance["cosines"] == {}
    balance = balanced_backward(net.losses(), Fixed(NAMES), [net.last.weight], measure=True)
    rows = {
        n: torch.autograd.grad(loss, net.last.weight)[0].flatten() for n, loss in ((n, net.losses()[n]) for n in NAMES)
    }
    assert list(balance["cosines"]) == ["a~b", "a~c", "b~c"]
    for pair, cosine in balance["cosines"].items():
        a, b = pair.split("~")
        assert cosine.item() == pytest.approx(nn.functional.cosine_similarity(rows[a], rows[b], dim=0).item(), abs=1e-5)
        assert balance["norms"][a].item() == pytest.approx(rows[a].norm().item(), rel=1e-5)
