"""Banks for domains: which one answers, what it learned from, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vmmr.errors import ConfigError, DataError
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.domains import (
    DomainBanks,
    adapt,
    domain_banks,
    fit_level,
    gaussian,
    signature,
    signatures,
    tune,
)
from vmmr.incremental.task_norm import Plan
from vmmr.models import Backbone

Net = Callable[..., Backbone]
Draw = Callable[..., Tensor]


def _two(tiny: Net, images: Draw) -> tuple[Backbone, DomainBanks, Tensor, Tensor]:
    """A network with two lights told apart, and images by both."""
    network, labels = tiny(3), torch.arange(60) % 3
    day, night = images(labels, 0), images(labels, 1)
    adapt(network, night)
    banks = domain_banks(network)
    places = [gaussian(signatures(network, shown)) for shown in (day, night)]
    banks.place({name: torch.stack([place[name] for place in places]) for name in places[0]})
    return network, banks, images(labels, 0, seed=1), images(labels, 1, seed=1)


def test_a_signature_is_mean_and_log_deviation_of_each_channel() -> None:
    x = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    for image, found in zip(x.numpy(), signature(x).numpy(), strict=True):
        for channel in range(3):
            assert found[channel] == pytest.approx(image[channel].mean(), abs=1e-6)
            assert found[3 + channel] == pytest.approx(np.log(image[channel].std()), abs=1e-5)


def test_distances_are_those_of_shrunk_gaussians(tiny: Net, images: Draw) -> None:
    network = tiny(3)
    found = signatures(network, images(torch.arange(50) % 3, 0))
    place = {name: value.double() for name, value in gaussian(found).items()}
    values = found.double()
    spread = (values.var(dim=0) + 1e-4 * values.var(dim=0).mean()).sqrt()
    inverse = place["whiten"].T @ place["whiten"]
    covariance = torch.linalg.inv(inverse)
    torch.testing.assert_close(covariance.diagonal().sqrt(), spread, rtol=2e-2, atol=0)  # correlations alone are shrunk
    assert place["level"].item() == pytest.approx(torch.logdet(covariance).item(), rel=1e-3)
    banks = domain_banks(network)
    banks.place({name: value[None].float() for name, value in place.items()})
    apart = values - values.mean(dim=0)
    wanted = (apart @ inverse * apart).sum(dim=1) + place["level"]
    torch.testing.assert_close(banks.distances(found)[:, 0].double(), wanted, rtol=1e-3, atol=1e-2)
    with pytest.raises(DataError, match="two images"):
        gaussian(found[:1])
    with pytest.raises(DataError, match="all alike"):
        gaussian(found[:1].repeat(3, 1))


def test_one_domain_answers_as_before_bit_for_bit(tiny: Net, images: Draw) -> None:
    before, after = tiny(3), tiny(3)
    x = images(torch.arange(6) % 3, 0)
    assert len(domain_banks(after)) == 1
    assert domain_banks(after) is domain_banks(after)
    assert torch.equal(after.answer(x), before.answer(x))


def test_every_image_is_answered_by_the_bank_of_its_domain_in_one_pass(tiny: Net, images: Draw) -> None:
    network, banks, day, night = _two(tiny, images)
    assert (banks.distances(signatures(network, day)).argmin(dim=1) == 0).float().mean() > 0.95
    assert (banks.distances(signatures(network, night)).argmin(dim=1) == 1).float().mean() > 0.95
    mixed = torch.cat([day, night])[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    chosen = banks.distances(signatures(network, mixed)).argmin(dim=1)
    with torch.no_grad():
        found = network.answer(mixed)
        for image, domain, logits in zip(mixed, chosen.tolist(), found, strict=True):
            with banks.told(domain):
                torch.testing.assert_close(network.answer(image[None])[0], logits, rtol=1e-3, atol=1e-4)
    lead = banks.lead(signatures(network, mixed))
    assert torch.equal(lead > 0, chosen == 1)


def test_adapting_takes_the_statistics_of_new_images_and_leaves_the_rest(tiny: Net, images: Draw) -> None:
    network = tiny(3)
    banks = domain_banks(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    night = images(torch.arange(40) % 3, 1)
    assert adapt(network, night) == 1
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    first = next(iter(banks.norms.values()))
    seen: list[Tensor] = []
    hook = banks.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with banks.told(1):
        network.answer(night)
    hook.remove()
    bank = first.banks[1]
    torch.testing.assert_close(bank.running_mean, seen[0].mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.running_var, seen[0].var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert torch.equal(bank.weight, first.banks[0].weight)
    assert bank.momentum == first.banks[0].momentum
    assert not bank.training
    with pytest.raises(DataError, match="two images"):
        adapt(network, night[:1])


def test_tuning_learns_gamma_and_beta_of_one_domain_alone(tiny: Net, images: Draw) -> None:
    network, labels = tiny(3), torch.arange(48) % 3
    night = images(labels, 1)
    domain = adapt(network, night)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    banks = domain_banks(network)

    def right() -> float:
        with torch.no_grad(), banks.told(domain):
            return float((network.answer(night).argmax(dim=1) == labels).double().mean())

    was, losses = right(), []
    tune(
        network,
        domain,
        network.answer,
        night,
        labels,
        plan=Plan(12, 0.1, batch_size=16),
        generator=torch.Generator().manual_seed(0),
        progress=lambda stage, done, epochs, loss: losses.append(loss),
    )
    assert losses[-1] < 0.5 * losses[0]
    assert right() > max(was, 0.9)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".banks.1." in name for name in changed)
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_tensors_come_back(tiny: Net, images: Draw) -> None:
    network, banks, _, night = _two(tiny, images)
    again = tiny(3)
    other = domain_banks(again)
    other.load(other.add(), banks.tensors(1))
    other.place({name: getattr(banks, name) for name in ("centre", "whiten", "level")})
    with torch.no_grad():
        assert torch.equal(again.answer(night), network.answer(night))
    with pytest.raises(ConfigError, match=r"got whiten \[2, 32, 32\]; need \[0, 32, 32\]"):
        other.place(
            {name: getattr(banks, name) for name in ("level", "centre", "whiten")} | {"centre": other.centre[:0]}
        )


def test_levels_keep_the_bound_and_meet_halfway() -> None:
    random = np.random.default_rng(0)
    old, own = torch.from_numpy(random.normal(-3, 1, 199)), torch.from_numpy(random.normal(3, 1, 99))
    offset, promised = fit_level(old, own, 0.05)
    low = sorted(old.tolist(), reverse=True)[9]  # nine of 199 are above
    high = sorted(own.tolist())[4]
    assert promised == pytest.approx(0.05)
    assert offset == pytest.approx((low + high) / 2)
    mingled, _ = fit_level(old, own - 6, 0.05)
    assert mingled == pytest.approx(low)
    assert (old > mingled).sum() == 9


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet26d", "mobilenetv3_small_050"])
def test_the_first_batchnorm_in_name_is_the_first_in_the_pass(name: str) -> None:
    network = Backbone(name, 3).eval()
    order: list[str] = []
    for key, module in network.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_, key=key: order.append(key))
    with torch.no_grad():
        network.answer(torch.zeros(1, 3, 64, 64))
    assert next(iter(domain_banks(deepcopy(network)).norms)) == order[0]


def test_banks_of_tasks_have_no_domains(tiny: Net) -> None:
    with pytest.raises(ConfigError, match="banks of tasks"):
        domain_banks(BankedNetwork(tiny(3)).backbone)
    with pytest.raises(ConfigError, match="no BatchNorm"):
        domain_banks(Backbone("test_convnext", 3))
