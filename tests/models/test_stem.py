"""A network in two parts is the network; banks of the second part leave the first alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from vmmr.errors import ConfigError
from vmmr.incremental.banks import BankedNetwork
from vmmr.models import Backbone
from vmmr.models.stem import split_at, take_stem


def tiny() -> Backbone:
    torch.manual_seed(0)
    return Backbone("test_resnet", 3).eval()


def picture() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer3"), ("test_efficientnet", "blocks.2")])
def test_the_two_parts_are_the_whole(name: str, layer: str) -> None:
    torch.manual_seed(0)
    base = Backbone(name, 3, standardise=True).eval()
    stem, rest = split_at(base, layer)
    with torch.no_grad():
        maps = stem(picture())
        torch.testing.assert_close(rest.answer(maps), base.answer(picture()), rtol=0, atol=1e-5)
        assert maps.shape[1] > 3
        network = BankedNetwork(rest)
        network.add_bank(2)
        torch.testing.assert_close(network(maps)["logits"][:, :3], base.answer(picture()), rtol=0, atol=1e-5)
    assert set(network.norms) < set(BankedNetwork(base).norms)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in stem.modules())
    assert norms + len(network.norms) == len(BankedNetwork(base).norms)
    assert not any(p.requires_grad for p in stem.parameters())
    assert not any(module.training for module in stem.train().modules())


def test_what_is_left_learns_as_in_the_whole() -> None:
    """Gradients behind the stem are those of the whole network whose first layers stand still."""
    torch.manual_seed(0)
    whole = Backbone("test_resnet", 3, standardise=True)
    rest = deepcopy(whole)
    before = dict(rest.named_parameters())
    stem = take_stem(rest, "layer3")
    assert rest.training
    assert all(parameter is before[name] for name, parameter in rest.named_parameters())
    labels = torch.tensor([0, 1, 2])
    nn.functional.cross_entropy(rest.answer(stem(picture())), labels).backward()
    for name, module in whole.model.named_children():
        module.train(name in ("layer3", "layer4", "fc"))
    nn.functional.cross_entropy(whole.answer(picture()), labels).backward()
    found = {name: p.grad for name, p in rest.named_parameters()}
    assert 0 < len(found) < len(before)
    for name, parameter in whole.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["conv1", "layer9", "layer3.", "", "layer3.1.conv1"])
def test_where_it_cannot_be_cut(layer: str) -> None:
    with pytest.raises(ConfigError, match="no such layer to split at"):
        split_at(tiny(), layer)


def test_layers_that_stand_in_no_line_are_refused() -> None:
    base = tiny()
    base.model.spare = nn.Conv2d(64, 64, 1)  # a child that the network's pass does not use
    base.model.last = nn.Identity()
    with pytest.raises(ConfigError, match="cannot be split at 'last'"):
        split_at(base, "last")
