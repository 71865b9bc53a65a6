from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vmmr.config import TrainConfig
from vmmr.errors import ConfigError
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.models.heads import Decoder
from vmmr.training.method import Batch, total
from vmmr.training.progressive import Progressive, restore_losses
from vmmr.training.sam import frozen_statistics

CLASSES = 8
FAMILIES = ("test_resnet", "mobilenetv2_035", "test_convnext", "pvt_v2_b0", "tresnet_m")


def _network(name: str, form: str = "lean") -> ProgressiveNetwork:
    torch.manual_seed(0)
    network = ProgressiveNetwork(Backbone(name, CLASSES), CLASSES, form)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():  # away from zeros that would hide gradients
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def _batch(dtype: torch.dtype = torch.float32, count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    target = 2 * torch.rand(count, 3, 32, 32, generator=generator, dtype=dtype) - 1
    noisy = target + 0.1 * torch.randn(target.shape, generator=generator, dtype=dtype)
    return {"image": target, "target": target, "noisy": noisy, "label": torch.arange(count)}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ProgressiveNetwork:
    return _network(request.param).double()


def test_stopping_at_a_stage_changes_neither_losses_nor_gradients(family: ProgressiveNetwork) -> None:
    batch = _batch(torch.float64)
    large = sum(p.numel() for p in family.parameters()) > 10**7
    for depth in (2,) if large else (1, 2, 3):
        found: list[tuple[dict[str, Tensor], dict[str, Tensor | None]]] = []
        for stop in (True, False):
            family.zero_grad(set_to_none=True)
            losses = restore_losses(family, batch, depth, stop=stop)
            total(losses).backward()
            found.append((losses, {n: p.grad for n, p in family.named_parameters()}))
        (ours, our_gradients), (whole, whole_gradients) = found
        assert list(ours) == [f"noisy_{depth}", f"restore_{depth}", f"restored_{depth}"]
        for name in ours:
            torch.testing.assert_close(ours[name], whole[name], rtol=1e-9, atol=1e-9)
        for name, gradient in our_gradients.items():
            assert (gradient is None) == (whole_gradients[name] is None), name
            if gradient is not None:
                torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-9, atol=1e-9)


def test_outputs_at_a_depth_are_those_of_the_whole(family: ProgressiveNetwork) -> None:
    x = _batch(torch.float64)["noisy"]
    with torch.no_grad(), frozen_statistics(family):
        outputs = family(x)
        assert sorted(outputs) == sorted([f"logits_{j}" for j in range(4)] + [f"features_{k}" for k in (1, 2, 3)])
        for depth in (1, 2, 3):
            for stop in (True, False):
                part = family.at_depth(x, depth, stop=stop)
                assert list(part) == [f"features_{depth}", f"logits_{depth}"]
                for key, value in part.items():
                    torch.testing.assert_close(value, outputs[key], rtol=1e-12, atol=1e-12)


def _norms(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm)}


def _moved(network: ProgressiveNetwork, act: object) -> set[str]:
    """Names of the BatchNorm layers whose running statistics an action changes."""
    before = {n: copy.deepcopy(m.state_dict()) for n, m in _norms(network).items()}
    act()  # type: ignore[operator]
    return {
        n
        for n, m in _norms(network).items()
        if any(not torch.equal(v, before[n][k]) for k, v in m.state_dict().items())
    }


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_035"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_stopping_leaves_the_statistics_behind_it_alone(name: str, depth: int) -> None:
    network, x = _network(name), _batch()["noisy"]
    called: set[str] = set()
    hooks = [
        m.register_forward_hook(lambda *_, n=n: called.add(n))  # type: ignore[misc]
        for n, m in _norms(network).items()
    ]
    network.at_depth(x, depth, stop=True)
    for hook in hooks:
        hook.remove()
    everything = set(_norms(network))
    moved = _moved(network, lambda: network.at_depth(x, depth, stop=True))
    assert moved == called < everything
    assert not any(n.startswith("heads.") and not n.startswith(f"heads.{depth - 1}.") for n in moved)
    assert _moved(network, lambda: network.at_depth(x, depth, stop=False)) == everything
    with frozen_statistics(network):
        assert _moved(network, lambda: network.at_depth(x, depth, stop=False)) == set()
    assert _moved(network, lambda: network(x)) == everything  # unfrozen again


@pytest.mark.parametrize("mode", ["published", "fast"])
@pytest.mark.parametrize("updates", ["all", "whole"])
def test_norm_updates_decides_whether_partial_passes_count(mode: str, updates: str) -> None:
    network = _network("test_resnet")
    config = TrainConfig(
        method="pmal",
        mode=mode,  # type: ignore[arg-type]
        noise="published",
        norm_updates=updates,  # type: ignore[arg-type]
    )
    method, batch = Progressive(network, config), _batch()
    for step in method.steps(0, 0):
        counters = {n: m.num_batches_tracked.clone() for n, m in _norms(network).items()}  # type: ignore[operator]
        step.losses(batch)
        seen = {n: int(m.num_batches_tracked - counters[n]) for n, m in _norms(network).items()}
        if step.name == "clean":
            assert set(seen.values()) == {1}
        elif mode == "published":  # the noisy and the restored image, both through the whole network
            assert set(seen.values()) == ({2} if updates == "all" else {0})
        elif updates == "whole":
            assert set(seen.values()) == {1}
        else:
            assert set(seen.values()) == {1, 2}  # the restored image stops early
            assert {n for n, times in seen.items() if times == 2 and "heads" in n} == {
                n for n in seen if n.startswith("heads.0.")
            }
    assert all(m.track_running_stats for m in _norms(network).values())


def test_frozen_statistics_equal_a_momentum_of_zero() -> None:
    x = torch.randn(4, 3, 8, 8)
    layer = nn.BatchNorm2d(3)
    layer(x)
    other = copy.deepcopy(layer)
    other.momentum = 0.0
    with frozen_statistics(layer):
        ours = layer(x + 1)
    torch.testing.assert_close(ours, other(x + 1), rtol=0, atol=0)
    assert torch.equal(layer.running_mean, other.running_mean)  # type: ignore[arg-type]
    assert torch.equal(layer.running_var, other.running_var)  # type: ignore[arg-type]
    layer.eval()
    with frozen_statistics(layer):  # in evaluation mode the running statistics must stay in use
        torch.testing.assert_close(layer(x), other.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (65, 47)])
@pytest.mark.parametrize("form", ["published", "lean", "slim"])
def test_any_input_size_is_restored_to_itself(size: tuple[int, int], form: str) -> None:
    network = _network("test_convnext", form).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        outputs = network(x)
        for depth in (1, 2, 3):
            assert network.restore(x, outputs[f"features_{depth}"], depth).shape == x.shape
    assert network.answer(x).shape == (2, CLASSES)


@pytest.mark.parametrize("depth", [0, 4, -1])
@pytest.mark.parametrize("stop", [True, False])
def test_other_depths_are_refused(depth: int, stop: bool) -> None:
    with pytest.raises(ConfigError, match="depth"):
        _network("test_convnext").at_depth(torch.zeros(2, 3, 32, 32), depth, stop=stop)


def test_other_forms_are_refused() -> None:
    with pytest.raises(ConfigError, match="form"):
        _network("test_convnext", "thick")


def test_lean_is_much_smaller_than_published() -> None:
    with torch.device("meta"):
        sizes = {
            form: sum(
                p.numel()
                for n, p in ProgressiveNetwork(Backbone("resnet50", 196), 196, form).named_parameters()  # type: ignore[arg-type]
                if not n.startswith("backbone.")
            )
            for form in ("published", "lean")
        }
    assert sizes["lean"] < 0.2 * sizes["published"]


@pytest.mark.parametrize(("channels", "scale", "rounded"), [(20, 4, 32), (6, 2, 8), (7, 1, 7), (16, 4, 16)])
def test_channels_that_no_shuffle_divides_are_rounded_up(channels: int, scale: int, rounded: int) -> None:
    decoder = Decoder(channels, scale, "lean")
    first = decoder.restoration[0]
    if rounded == channels:
        assert isinstance(first, nn.PixelShuffle)
    else:
        assert isinstance(first, nn.Conv2d)
        assert (first.in_channels, first.out_channels, first.kernel_size) == (channels, rounded, (1, 1))
    side = 8 // scale
    assert decoder(torch.zeros(1, 3, 64, 64), torch.zeros(1, channels, side, side)).shape == (1, 3, 64, 64)
