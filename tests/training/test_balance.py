"""What is balanced in a run, and that the loop descends what the rule makes of it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from vmmr.balancing import BALANCERS
from vmmr.config import Balancer, TrainConfig
from vmmr.errors import ConfigError
from vmmr.levels import HierarchySpec, Levels
from vmmr.models import Backbone, HierarchicNetwork, HierarchicProgressiveNetwork, ProgressiveNetwork
from vmmr.training.balance import balancer, grouped, last_weight, tasks
from vmmr.training.loop import fit
from vmmr.training.method import Batch, Method, total
from vmmr.training.multitask import Multitask
from vmmr.training.progressive import Progressive
from vmmr.training.samples import Samples, open_samples

Settings = Callable[..., TrainConfig]
LEVELS = ["make", "class"]


@pytest.fixture(scope="module")
def samples(pictures: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The four colours as two makes of two models."""
    from vmmr.data.manifest import Manifest

    manifest = Manifest.load(pictures)
    makes = [{"Model0": "A", "Model1": "A", "Model2": "B", "Model3": "B"}[str(m)] for m in manifest.column("model")]
    columns = {"path": manifest.table["path"], "model": manifest.column("model"), "split": manifest.splits}
    return open_samples(Manifest.from_columns({**columns, "make": makes}, manifest.root), tiny(levels=LEVELS))


def _multitask(config: TrainConfig, levels: Levels) -> Multitask:
    torch.manual_seed(0)
    return Multitask(HierarchicNetwork(Backbone("test_resnet", 0), levels, HierarchySpec(levels.names)), config)


def _fit(method: Method, samples: Samples, config: TrainConfig, folder: Path, **options: Any) -> dict[str, Tensor]:
    from lightning.fabric import Fabric  # slow to import

    fit(method, samples, config, Fabric(accelerator="cpu", devices=1), folder, progress=False, **options)
    return method.network.state_dict()


def test_settings_name_every_rule() -> None:
    assert set(get_args(Balancer)) == {"none", *BALANCERS}


@pytest.mark.parametrize(
    ("changes", "by_task", "by_level"),
    [
        ({"levels": LEVELS, "marginal_weight": 1.0}, ("make", "class", "marginal"), ("make", "class", "marginal")),
        ({"levels": LEVELS}, ("make", "class"), ("make", "class")),
        (
            {"method": "pmal", "noise": "gaussian", "levels": LEVELS, "marginal_weight": 1.0},
            ("recognition", "restoration", "restored"),
            ("make", "class", "marginal", "restoration"),
        ),
        ({"method": "pmd", "levels": LEVELS}, ("features", "logits", "labels"), ("make", "class", "features")),
    ],
)
def test_what_can_be_balanced(
    changes: dict[str, Any], by_task: tuple[str, ...], by_level: tuple[str, ...], tiny: Settings
) -> None:
    assert tasks(tiny(**changes)) == by_task
    assert tasks(tiny(**changes, balancer="avgnorm", balance_over="levels")) == by_level


def test_losses_of_one_purpose_are_summed(tiny: Settings) -> None:
    names = ["head_1_make", "head_2_class", "trunk_year_value", "restore_2", "restored_2_make", "restored_2_class"]
    losses = {name: torch.tensor(2.0**i) for i, name in enumerate(names)}
    config = tiny(method="pmal", noise="gaussian", levels=["make", "class", "year_value"], balancer="avgnorm")
    assert grouped(losses, config) == {"recognition": 7, "restoration": 8, "restored": 48}
    over = config.with_(balance_over="levels")
    assert grouped(losses, over) == {"make": 17, "class": 34, "year_value": 4, "restoration": 8}
    for settings in (config, over):
        assert set(grouped(losses, settings)) <= set(tasks(settings))
        torch.testing.assert_close(total(grouped(losses, settings)), total(losses))
    flat = tiny(method="pmal", noise="gaussian", balancer="avgnorm")
    found = grouped(
        {"noisy_1": torch.tensor(1.0), "restore_1": torch.tensor(2.0), "restored_1": torch.tensor(4.0)}, flat
    )
    assert found == {"recognition": 1, "restoration": 2, "restored": 4}


def test_every_loss_of_pmal_belongs_to_a_task(samples: Samples, tiny: Settings) -> None:
    assert samples.levels is not None
    for mode, noise in (("fast", "gaussian"), ("published", "published")):
        for over in ("tasks", "levels"):
            config = tiny(method="pmal", mode=mode, noise=noise, levels=LEVELS, balancer="avgnorm", balance_over=over)
            spec = HierarchySpec(tuple(LEVELS))
            network = HierarchicProgressiveNetwork(Backbone("test_resnet", 0), samples.levels, spec, "lean")
            label = torch.tensor([0, 1])
            batch = {"image": torch.zeros(2, 3, 32, 32), "label": label, "label_make": label, "label_class": label}
            for step in Progressive(network, config).steps(0, 1):
                losses = step.losses(step.prepare(batch, torch.Generator()))
                assert set(grouped(losses, config)) <= set(tasks(config))
                # Every group has a gradient where they are compared: it is shared.
                for loss in grouped(losses, config).values():
                    [gradient] = torch.autograd.grad(loss, step.shared, retain_graph=True, allow_unused=True)
                    assert gradient is not None


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_convnext", "pvt_v2_b0"])
def test_the_last_shared_weight(name: str) -> None:
    backbone = Backbone(name, 5).train()
    image = torch.rand(2, 3, 64, 64)
    for depth in (1, 2, 3, None):
        weight = last_weight(backbone, 64, depth)
        assert backbone.training
        assert weight.ndim > 1
        assert all(weight is not p for p in backbone.classifier_parameters())
        seen = backbone(image)["logits_0"] if depth is None else backbone.features(image, depth)
        assert torch.autograd.grad(seen.square().sum(), weight)[0].any()
        names = [n for n, p in backbone.model.named_parameters()]
        place = names.index(next(n for n, p in backbone.model.named_parameters() if p is weight))
        if depth in (1, 2):  # nothing behind it, and so a shallower tap does not reach a deeper one's
            deeper = last_weight(backbone, 64, depth + 1)
            behind = names.index(next(n for n, p in backbone.model.named_parameters() if p is deeper))
            assert place < behind
            assert torch.autograd.grad(seen.sum(), deeper, allow_unused=True)[0] is None


def test_fixed_weights_of_one_change_nothing(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    assert samples.levels is not None
    ends = []
    for rule in ("none", "fixed"):
        config = tiny(levels=LEVELS, balancer=rule, optimizer="sgd", epochs=1)
        ends.append(_fit(_multitask(config, samples.levels), samples, config, tmp_path / rule))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value)


def test_a_step_descends_what_the_rule_says(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    """One step of SGD under AvgNorm: both losses pull at the last weight with the length of their sum."""
    config = tiny(
        levels=LEVELS, balancer="avgnorm", optimizer="sgd", batch_size=24, epochs=1, weight_decay=0.0, smoothing=0.0
    )
    assert samples.levels is not None
    seen: list[Batch] = []
    method = _multitask(config, samples.levels)
    begin = method.begin

    def noted(batch: Batch, epoch: int) -> Batch:
        seen.append(batch)
        return begin(batch, epoch)

    method.begin = noted  # type: ignore[method-assign]
    start = {name: value.clone() for name, value in method.network.state_dict().items()}
    end = _fit(method, samples, config, tmp_path)
    naive = _multitask(config, samples.levels)
    assert all(torch.equal(naive.network.state_dict()[name], value) for name, value in start.items())
    naive.network.train()
    [step] = naive.steps(0, 0)
    losses = step.losses({**seen[0]})
    [shared] = step.shared
    gradients = {k: torch.autograd.grad(loss, shared, retain_graph=True)[0] for k, loss in losses.items()}
    together = torch.stack(list(gradients.values())).sum(0).norm()
    loss = torch.stack([together / gradients[k].norm() * loss for k, loss in losses.items()]).sum()
    loss.backward()
    from vmmr.training.schedule import one_cycle

    heads = {id(p) for p in naive.head_parameters()}
    for name, parameter in naive.network.named_parameters():
        rate = (config.lr if id(parameter) in heads else config.trunk_lr) * one_cycle(0, 1, config.warmup)
        assert parameter.grad is not None
        torch.testing.assert_close(end[name], parameter.detach() - rate * parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", [name for name in BALANCERS if name not in ("cagrad",)])
def test_every_rule_trains_and_is_logged(rule: str, samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(levels=LEVELS, balancer=rule, epochs=4, measure_every=1)
    assert samples.levels is not None
    method = _multitask(config, samples.levels)
    start = {name: value.clone() for name, value in method.network.state_dict().items()}
    end = _fit(method, samples, config, tmp_path)
    assert all(bool(value.isfinite().all()) for value in end.values())
    assert any(not torch.equal(value, start[name]) for name, value in end.items())
    rows = {row["name"] for row in csv.DictReader((tmp_path / "log.csv").read_text().splitlines())}
    assert {"weights/make", "weights/class", "norms/make", "norms/class", "cosines/make~class"} <= rows


def test_weights_are_computed_once_a_sharpness_aware_step(
    samples: Samples, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmmr.balancing import AvgNorm

    calls = []
    weigh = AvgNorm.weigh
    monkeypatch.setattr(AvgNorm, "weigh", lambda self, seen: (calls.append(1), weigh(self, seen))[1])
    config = tiny(levels=LEVELS, balancer="avgnorm", epochs=1, sam_rho=0.05)
    assert samples.levels is not None
    _fit(_multitask(config, samples.levels), samples, config, tmp_path)
    assert len(calls) == 3  # batches; each was passed through twice


@pytest.mark.parametrize("rule", ["uncertainty", "dwa"])
def test_a_killed_run_goes_on_with_what_the_rule_remembers(
    rule: str, samples: Samples, tiny: Settings, tmp_path: Path
) -> None:
    assert samples.levels is not None
    config = tiny(levels=LEVELS, balancer=rule, epochs=4)
    whole = _fit(_multitask(config, samples.levels), samples, config, tmp_path / "whole")

    def stop(batch: Batch, epoch: int) -> Batch:
        if epoch == 3:
            raise KeyboardInterrupt
        return batch

    method = _multitask(config, samples.levels)
    method.begin = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        _fit(method, samples, config, tmp_path / "parts")
    parts = _fit(_multitask(config, samples.levels), samples, config, tmp_path / "parts", resume=True)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_pmal_balances_recognition_and_restoration(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    from vmmr.data.manifest import Manifest

    config = tiny(method="pmal", noise="gaussian", balancer="avgnorm", balancer_options={"scale": "max_norm"}, epochs=4)
    torch.manual_seed(0)
    method = Progressive(ProgressiveNetwork(Backbone("test_resnet", 4), 4, "lean"), config)
    _fit(method, open_samples(Manifest.load(pictures), config), config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    for task in ("recognition", "restoration", "restored"):
        weights = [float(row["value"]) for row in rows if row["name"] == f"weights/{task}"]
        assert min(weights) >= 1 - 1e-4  # nothing is shortened: the longest gives the length


@pytest.mark.parametrize(
    "changes",
    [
        {"balancer": "avgnorm"},
        {"measure_every": 1},
        {"levels": ["make"], "balancer": "avgnorm"},
        {"levels": LEVELS, "balancer_options": {"scale": "max_norm"}},
        {"levels": LEVELS, "balance_over": "levels"},
        {"method": "pmal", "noise": "gaussian", "balancer": "avgnorm", "balance_over": "levels"},
        {"method": "pmal", "noise": "gaussian", "balancer": "db_mtl"},
        {"levels": LEVELS, "measure_every": -1},
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], tiny: Settings) -> None:
    with pytest.raises(ConfigError):
        tiny(**changes)


def test_options_that_a_rule_does_not_have(tiny: Settings) -> None:
    with pytest.raises(ConfigError, match="no such option"):
        balancer(tiny(levels=LEVELS, balancer="avgnorm", balancer_options={"strength": 1}))
