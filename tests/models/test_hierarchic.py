"""Networks with hierarchy heads: plain and progressive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vmmr.levels import HierarchySpec, Levels
from vmmr.models import Backbone, HierarchicNetwork, HierarchicProgressiveNetwork, load_weights
from vmmr.models.heads.hierarchy import split_levels
from vmmr.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(["Audi", "Audi", "Audi", "VW"], ["A4", "A4", "A6", "Golf"], [2008, 2012, 2012, 2012])
BODIES = {"body": ("SUV", "Sedan")}
SPEC = HierarchySpec(("make", "model", "class", "body"), BODIES, form="coarse_to_fine")


def _levels(spec: HierarchySpec = SPEC) -> Levels:
    return spec.levels(CARS)


def _image(count: int = 3) -> Tensor:
    return 2 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1


def _plain(name: str = "test_resnet", **options: Any) -> HierarchicNetwork:
    torch.manual_seed(0)
    return HierarchicNetwork(Backbone(name, 0), _levels(), SPEC, **options)


def _progressive(taps: Any = "all", form: Any = "lean") -> HierarchicProgressiveNetwork:
    torch.manual_seed(0)
    spec = HierarchySpec(SPEC.names, BODIES, taps=taps)
    return HierarchicProgressiveNetwork(Backbone("test_resnet", 0), _levels(spec), spec, form).eval()


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_convnext", "pvt_v2_b0"])
def test_a_plain_trunk_with_every_level(name: str) -> None:
    network = _plain(name).eval()
    with torch.no_grad():
        outputs = network(_image())
        pooled = network.backbone.model.forward_head(network.backbone.model.forward_features(_image()), pre_logits=True)
        expected = network.head(pooled)
    assert sorted(outputs) == ["features_1", "features_2", "features_3", "logits_0"]
    assert outputs["logits_0"].shape == (3, 2 + 3 + 4 + 2)
    for level, logits in network.by_level(outputs)["0"].items():
        torch.testing.assert_close(logits, expected[f"logits_{level}"])


def test_its_trunk_starts_from_weights_with_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = Backbone("test_resnet", 7).model
    save_file({k: v.clone() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    network = _plain()
    assert load_weights(network.backbone.model, tmp_path / "w.safetensors") == []
    for name, value in network.backbone.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_labels_reach_the_head() -> None:
    network = _plain(teacher_forcing=True).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    told = network.by_level(network(_image(), {"make": torch.tensor([1, 1, 0])}))["0"]
    other = network.by_level(network(_image(), {"make": torch.tensor([0, 1, 0])}))["0"]
    changed = (told["model"] != other["model"]).any(dim=1)
    assert changed.tolist() == [True, False, False]
    assert torch.equal(told["make"], other["make"])


@pytest.mark.parametrize("form", ["lean", "published"])
@pytest.mark.parametrize("taps", ["all", "shallow_first"])
def test_heads_at_each_depth_answer_their_levels(form: str, taps: str) -> None:
    network = _progressive(taps, form)
    with torch.no_grad():
        outputs = network(_image())
        heads = network.by_level(outputs)
        for depth in (1, 2, 3):
            for stop in (True, False):
                part = network.at_depth(_image(), depth, stop=stop)
                for key, value in part.items():
                    torch.testing.assert_close(value, outputs[key])
                assert list(network.by_level(part)) == [str(depth)]
        answer = split_levels(network.answer(_image()), network.levels.widths)
    names = {j: list(found) for j, found in heads.items()}
    full = ["make", "model", "class", "body"]
    shallow = {"0": full, "1": ["make"], "2": ["make", "model"], "3": full}
    assert names == (dict.fromkeys("0123", full) if taps == "all" else shallow)
    for level in full:
        votes = [found[level] for found in heads.values() if level in found]
        torch.testing.assert_close(answer[level], torch.stack(votes).mean(0))


def test_a_progressive_trunk_learns_from_every_level_at_every_depth() -> None:
    network = _progressive().train()
    heads = network.by_level(network(_image()))
    stem = next(network.backbone.model.parameters())
    for found in heads.values():
        for level, logits in found.items():
            [gradient] = torch.autograd.grad(logits.square().sum(), stem, retain_graph=True)
            assert gradient.any(), level
