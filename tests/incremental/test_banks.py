"""Banks against the plain network, all at once against one by one, and what they may not touch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vmmr.errors import BundleError, ConfigError
from vmmr.incremental.banks import BankedNetwork, affine
from vmmr.models import Backbone

Make = Callable[..., Backbone]
NAMES = ("test_resnet", "test_efficientnet")


def shaken(network: BankedNetwork, seed: int = 1) -> BankedNetwork:
    """The network with banks and heads that differ from one another."""
    random = torch.Generator().manual_seed(seed)
    for name, value in network._tensors().items():
        draw = torch.rand(value.shape, generator=random)
        if name.endswith("running_var"):
            value.mul_(0.5 + draw)
        else:
            value.add_(0.1 * (draw - 0.5))
    return network


def several(backbone: Backbone, *classes: int, **options: bool) -> BankedNetwork:
    network = BankedNetwork(backbone, **options)
    for count in classes:
        network.add_bank(count, generator=torch.Generator().manual_seed(count))
    return shaken(network)


def picture(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_base_network_answers_as_before(name: str, tiny: Make) -> None:
    base = tiny(5, name=name)
    before = deepcopy(base.state_dict())
    with torch.no_grad():
        wanted = base.answer(picture())
        for extended in (True, False):
            network = BankedNetwork(base, base_unknown=extended)
            logits = network.logits(picture(), 0)
            assert logits.shape[1] == 5 + extended == network.widths[0]
            torch.testing.assert_close(logits[:, :5], wanted, rtol=0, atol=1e-6)
            if extended:
                torch.testing.assert_close(logits[:, 5], wanted.mean(dim=1), rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert base.model.get_classifier().out_features == 5


@pytest.mark.parametrize("name", NAMES)
def test_all_at_once_is_one_by_one(name: str, tiny: Make) -> None:
    network = several(tiny(3, name=name), 2, 4)
    with torch.no_grad():
        one = [network.features(picture(), task) for task in range(3)]
        logits = torch.cat([network.logits(picture(), task) for task in range(3)], dim=1)
        for batched in (True, False, None):
            found = network(picture(), batched=batched)
            torch.testing.assert_close(found["features"], torch.stack(one, dim=1), rtol=0, atol=1e-6)
            torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-6)
    assert logits.shape == (3, 4 + 3 + 5)
    assert min(float((one[0] - other).abs().max()) for other in one[1:]) > 1e-3
    assert (network.classes, network.offsets, network.widths) == ((3, 2, 4), (0, 3, 5, 9), (4, 3, 5))


def test_exported_tasks_pass_in_turns(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has convolutions of its own, which its BatchNorms fold into; by itself a small image passes them once."""
    network = several(tiny(3), 2, 4)
    program = torch.export.export(network, (picture(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    targets = [str(node.target) for node in program.graph.nodes]
    layers = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert sum("conv2d" in target for target in targets) == 3 * layers
    assert sum("batch_norm" in target for target in targets) == 3 * len(network.norms)

    passes: list[int] = []
    features = network.features

    def counted(x: Tensor, task: int) -> Tensor:
        passes.append(task)
        return features(x, task)

    monkeypatch.setattr(network, "features", counted)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(picture(5))["logits"], network(picture(5))["logits"])
        assert passes == []
        large = torch.rand(1, 3, 288, 288) * 2 - 1  # 746,496 numbers for three tasks
        torch.testing.assert_close(network(large)["logits"], network(large, batched=True)["logits"])
        assert passes == [0, 1, 2]


def test_a_bank_is_the_network_with_its_batchnorms(tiny: Make) -> None:
    """Written into the plain network, layer by layer, a bank gives the same features."""
    base = tiny(3, name="test_efficientnet")
    network = several(base, 2)
    plain = deepcopy(base)
    for layer, module in plain.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            values = network.tensors()
            module.load_state_dict(
                {key.rpartition(".")[2]: v for key, v in values.items() if key.startswith(f"banks.1.{layer}.")},
                strict=False,
            )
    with torch.no_grad():
        wanted = plain(picture(), pooled=True)["pooled"]
        torch.testing.assert_close(network.features(picture(), 1), wanted, rtol=0, atol=1e-6)
        assert not torch.allclose(network.features(picture(), 0), wanted, atol=1e-3)


def test_a_new_bank_starts_from_the_base_or_from_the_last(tiny: Make) -> None:
    network = several(tiny(3), 2)
    network.add_bank(2)
    network.add_bank(2, init="previous")
    values = network.tensors()
    own = [key for key in values if key.startswith("banks.0.")]
    base = BankedNetwork(tiny(3)).tensors()
    for key in own:
        second, third, last = (values[key.replace("banks.0.", f"banks.{t}.")] for t in (1, 2, 3))
        assert torch.equal(third, base[key])
        assert torch.equal(last, third)
        assert not torch.equal(second, third)
    with pytest.raises(ConfigError, match="a task has classes"):
        network.add_bank(0)


def test_a_backbone_without_classifier_begins_without_tasks(tiny: Make) -> None:
    network = BankedNetwork(tiny(0))
    assert (len(network), network.classes, network.offsets) == (0, (), (0,))
    assert network.add_bank(4) == 0
    assert network.widths == (5,)
    again = BankedNetwork.from_tensors(tiny(0), network.tensors(), [4])
    with torch.no_grad():
        assert torch.equal(again(picture())["logits"], network(picture())["logits"])


def test_the_last_task_can_be_dropped(tiny: Make) -> None:
    network = several(tiny(3), 2)
    before = network.tensors()
    network.add_bank(5)
    network.drop_bank()
    after = network.tensors()
    assert network.classes == (3, 2)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    network.drop_bank()
    with pytest.raises(ConfigError, match="the only task"):
        network.drop_bank()


def test_only_what_learns_has_gradients_and_training_mode(tiny: Make) -> None:
    network = several(tiny(3), 2)
    network.train()
    assert not any(module.training for module in network.modules() if module is not network)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with network.learning(1) as parameters:
        channels = sum(norm.origin.num_features for norm in network.norms.values())
        assert sum(p.numel() for p in parameters) == 2 * channels
        assert [p for p in network.parameters() if p.requires_grad] == parameters
        training = {id(module) for module in network.modules() if module.training} - {id(network)}
        assert training == {id(norm.banks[1]) for norm in network.norms.values()}
        network.logits(picture(), 1).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(module.training for module in network.modules())
    head = sum(p.numel() for p in network.head_parameters(1))
    assert head == (network.width + 1) * (2 + 1)


def test_banks_come_back_from_their_tensors(tiny: Make, tmp_path: Path) -> None:
    base = tiny(3)
    for options in ({}, {"base_unknown": False}):
        network = several(base, 2, 4, **options)
        save_file(network.tensors(), tmp_path / "tasks.safetensors")
        read = BankedNetwork.from_tensors(base, load_file(tmp_path / "tasks.safetensors"), (3, 2, 4), **options)
        with torch.no_grad():
            assert torch.equal(read(picture())["logits"], network(picture())["logits"])
        assert (read.classes, read.widths) == (network.classes, network.widths)


def test_tensors_are_copies(tiny: Make) -> None:
    network = several(tiny(3), 2)
    values = network.tensors()
    for value in values.values():
        value.fill_(7.0)
    assert not any((value == 7.0).any() for value in network.tensors().values())


def test_tensors_of_another_network_are_refused(tiny: Make) -> None:
    base = tiny(3)
    good = several(base, 2).tensors()
    variance = next(key for key in good if key.endswith("running_var"))
    altered: list[tuple[dict[str, Tensor], str]] = [
        ({key: value for key, value in good.items() if key != "heads.1.bias"}, "heads.1.bias is missing"),
        (good | {"heads.2.bias": torch.zeros(3)}, "heads.2.bias is not known"),
        (good | {"heads.1.bias": torch.zeros(4)}, "another network; got torch.float32 .4."),
        (good | {"heads.1.bias": torch.zeros(3, dtype=torch.float64)}, "torch.float64"),
        (good | {"heads.1.bias": torch.full((3,), torch.nan)}, "no finite number"),
        (good | {variance: -good[variance]}, "variance below 0"),
    ]
    for tensors, words in altered:
        with pytest.raises(BundleError, match=words):
            BankedNetwork.from_tensors(base, tensors, (3, 2))
    for classes in ((3, 3), (3,), (3, 2, 2)):
        with pytest.raises(BundleError):
            BankedNetwork.from_tensors(base, good, classes)
    for classes in ((), (3, 0)):
        with pytest.raises(BundleError, match="tasks with classes"):
            BankedNetwork.from_tensors(base, good, classes)


def test_merging_averages_what_layers_do_and_pools_what_they_saw(tiny: Make) -> None:
    base = tiny(3)
    network = several(base, 2, 4)
    before = network.tensors()
    network.merge(1, (30, 10))
    after = network.tensors()
    assert (network.classes, network.widths) == ((3, 6), (4, 7))

    def stats(values: dict[str, Tensor], task: int, layer: str) -> dict[str, Tensor]:
        names = ("weight", "bias", "running_mean", "running_var")
        found = {name: values[f"banks.{task}.{layer}.{name}"].double() for name in names}
        return found | {"eps": torch.tensor(network.norms[layer].origin.eps)}

    for layer in network.norms:
        one, two, new = stats(before, 1, layer), stats(before, 2, layer), stats(after, 1, layer)
        for wanted_one, wanted_two, found in zip(affine(one), affine(two), affine(new), strict=True):
            torch.testing.assert_close(found, 0.75 * wanted_one + 0.25 * wanted_two, rtol=1e-4, atol=1e-5)
        mean = 0.75 * one["running_mean"] + 0.25 * two["running_mean"]
        second = sum(
            share * (part["running_var"] + part["running_mean"] ** 2) for share, part in ((0.75, one), (0.25, two))
        )
        torch.testing.assert_close(new["running_mean"], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(new["running_var"], second - mean**2, rtol=1e-4, atol=1e-5)
    first, second_head, merged = before["heads.1.weight"], before["heads.2.weight"], after["heads.1.weight"]
    assert torch.equal(merged[:6], torch.cat([first[:2], second_head[:4]]))
    torch.testing.assert_close(merged[6], (first[2] + second_head[4]) / 2)
    for key in before:
        if key.startswith(("banks.0.", "heads.0.")):
            assert torch.equal(before[key], after[key])
    read = BankedNetwork.from_tensors(base, after, (3, 6))
    with torch.no_grad():
        assert torch.equal(read(picture())["logits"], network(picture())["logits"])
    network.merge(0, (1, 1))
    again = BankedNetwork.from_tensors(base, network.tensors(), (9,))
    with torch.no_grad():
        assert torch.equal(again(picture())["logits"], network(picture())["logits"])


def test_merging_with_a_task_that_saw_nothing_changes_nothing(tiny: Make) -> None:
    network = several(tiny(3), 2, 4)
    with torch.no_grad():
        before = network.features(picture(), 1)
        network.merge(1, (1.0, 0.0))
        torch.testing.assert_close(network.features(picture(), 1), before, rtol=1e-4, atol=1e-5)
    for task in (-1, 1):
        with pytest.raises(ConfigError, match="no two neighbouring tasks"):
            network.merge(task, (1, 1))
    with pytest.raises(ConfigError, match="shares"):
        network.merge(0, (0, 0))
    kept = several(tiny(3), 2, base_unknown=False)
    with pytest.raises(ConfigError, match="kept as it is"):
        kept.merge(0, (1, 1))


def test_it_exports_with_any_number_of_images(tiny: Make) -> None:
    network = several(tiny(3), 2)
    program = torch.export.export(network, (picture(2),), dynamic_shapes=({0: torch.export.Dim("images")},))
    with torch.no_grad():
        found, wanted = program.module()(picture(5)), network(picture(5))
    for name in ("logits", "features"):
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)


def test_networks_that_cannot_be_banked_are_refused(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="no BatchNorm"):
        BankedNetwork(Backbone("test_convnext", 3))
    odd = tiny(3)
    odd.model.bn1 = nn.BatchNorm2d(odd.model.bn1.num_features, track_running_stats=False)
    with pytest.raises(ConfigError, match="cannot be banked; got bn1: BatchNorm2d"):
        BankedNetwork(odd)
    bent = tiny(3)
    bent.model.fc = nn.Sequential(nn.Linear(bent.width, 3))
    with pytest.raises(ConfigError, match="no linear classifier; got Sequential"):
        BankedNetwork(bent)
