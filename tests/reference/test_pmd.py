"""What a faithful PMD must fulfil (Liu 2024, arXiv 2401.14336): one test a property."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vmmr.config import TrainConfig
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.objectives import ensemble_mse, feature_mse, relative_feature_mse, smoothed_kl
from vmmr.recipes import recipe
from vmmr.training.distil import Distil
from vmmr.training.loop import build_optimizer
from vmmr.training.method import Batch, Method, total
from vmmr.training.plain import Plain
from vmmr.training.sam import clear_gradients, sharpness_aware
from vmmr.training.schedule import share_of_peak

CLASSES = 8


def _student(seed: int = 1) -> Backbone:
    torch.manual_seed(seed)
    return Backbone("test_resnet", CLASSES)


def _teacher(seed: int = 2) -> ProgressiveNetwork:
    torch.manual_seed(seed)
    return ProgressiveNetwork(Backbone("test_resnet", CLASSES), CLASSES, "lean")


def _config(**changes: Any) -> TrainConfig:
    return recipe("pmd_published").with_(backbone="test_resnet", size=32, epochs=4, **changes)


def _method(**changes: Any) -> Distil:
    return Distil(_student(), _teacher(), _config(**changes))


def _batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = 2 * torch.rand(4, 3, 32, 32, generator=generator) - 1
    return {"image": image, "label": torch.randint(CLASSES, (4,), generator=generator)}


def _train(method: Method, config: TrainConfig, epochs: range, *, seed: int = 5) -> dict[str, Tensor]:
    """The loop's order of work on random images, two batches an epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    parameters = list(method.network.parameters())
    optimizer = build_optimizer(method, config)
    method.network.train()
    for epoch in epochs:
        for number in (0, 1):
            batch = method.begin(_batch(10 * epoch + number), epoch)
            for step in method.steps(epoch, 2 * epoch + number):
                prepared = step.prepare(batch, generator)
                sharpness_aware(
                    lambda step=step, prepared=prepared: total(step.losses(prepared)).backward(),
                    parameters,
                    rho=config.sam_rho,
                    networks=(method.network,),
                    dense=config.dense_zero_grads,
                )
                optimizer.step()
                clear_gradients(parameters, dense=config.dense_zero_grads)
    return method.network.state_dict()


@pytest.mark.parametrize("mode", ["published", "fast"])
def test_the_teacher_never_changes(mode: str) -> None:
    changes = {} if mode == "published" else {"mode": "fast", "noise": "strong", "distil_share": 1.0}
    method = _method(**changes)
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    student = {k: v.clone() for k, v in method.network.state_dict().items()}
    _train(method, _config(**changes), range(1))
    after = method.teacher.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert not any(module.training for module in method.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert any(not torch.equal(v, student[k]) for k, v in method.network.state_dict().items())
    method.network.train()
    assert not method.teacher.training  # the loop's train() does not reach it


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_feature_step_reaches_no_later_stage(depth: int) -> None:
    method = _method()
    batch = method.begin(_batch(), 0)
    step = method.steps(0, 0)[depth - 1]
    assert repr(step) == f"Step(features_{depth})"
    losses = step.losses(step.prepare(batch, torch.Generator()))
    total(losses).backward()
    stages = ("conv1", "bn1", *(f"layer{i}" for i in range(1, depth + 2)))
    reached = {n for n, p in method.network.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in method.network.named_parameters() if n.split(".")[1] in stages}
    key = f"features_{depth}"
    with torch.no_grad():
        difference = method.network(batch["image"])[key] - method.teacher(batch["image"])[key]
    torch.testing.assert_close(losses[key], 100 * difference.square().mean())


def test_the_fourth_step_is_four_errors_and_the_label() -> None:
    method = _method()
    batch = method.begin(_batch(), 0)
    losses = method.steps(0, 0)[3].losses(batch)
    with torch.no_grad():
        s, t = method.network(batch["image"])["logits_0"], method.teacher(batch["image"])
    explicit = sum(functional.mse_loss(s, t[f"logits_{j}"]) for j in range(4))
    spread = sum(
        functional.mse_loss(t[f"logits_{j}"], torch.stack([t[f"logits_{i}"] for i in range(4)]).mean(0))
        for j in range(4)
    )
    torch.testing.assert_close(losses["logits"] + spread, explicit)  # the constant that the one term leaves out
    torch.testing.assert_close(losses["labels"], smoothed_kl(s, batch["label"], 0.1))


def test_a_sum_over_four_teachers_is_four_times_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(5, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    teachers = list(torch.randn(4, 5, CLASSES, generator=generator, dtype=torch.float64).unbind())
    mean = torch.stack(teachers).mean(0)
    explicit = torch.stack([functional.mse_loss(s, t) for t in teachers]).sum()
    ours = ensemble_mse(s, teachers)
    torch.testing.assert_close(ours, 4 * functional.mse_loss(s, mean))
    wanted, found = torch.autograd.grad(explicit, s)[0], torch.autograd.grad(ours, s)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    # One gradient step of the right length lands on the optimum: the teachers' mean, with their sum's argmax.
    optimum = s - found * s.numel() / 8
    torch.testing.assert_close(optimum, mean)
    assert torch.equal(optimum.argmax(1), torch.stack(teachers).sum(0).argmax(1))


def test_a_student_equal_to_its_teacher_has_no_feature_loss_in_evaluation_mode() -> None:
    method = _method(feature_weight=100.0)
    method.network.load_state_dict(method.teacher.backbone.state_dict())
    batch = method.begin(_batch(), 0)
    method.network.eval()
    for depth in (1, 2, 3):
        assert method.steps(0, 0)[depth - 1].losses(batch)[f"features_{depth}"] == 0
    method.network.train()  # batch statistics against running ones: no longer
    assert method.steps(0, 0)[0].losses(batch)["features_1"] > 0


@pytest.mark.parametrize(("epochs", "switch"), [(4, 2), (5, 3), (1, 1), (200, 100)])
def test_the_teacher_is_asked_for_the_first_half_of_the_epochs(epochs: int, switch: int) -> None:
    method = Distil(_student(), _teacher(), recipe("pmd_published").with_(epochs=epochs))
    names = [[step.name for step in method.steps(epoch, 0)] for epoch in range(epochs)]
    asked = ["features_1", "features_2", "features_3", "logits"]
    assert names == [asked] * switch + [["labels"]] * (epochs - switch)


def test_rates_do_not_jump_at_the_switch() -> None:
    config = recipe("pmd_published")
    optimizer = build_optimizer(Distil(_student(), _teacher(), config), config)
    assert [group["peak"] for group in optimizer.param_groups] == [2e-3, 2e-3]  # the trunk too
    rates = [
        2e-3 * share_of_peak(config.schedule, epoch=e, epochs=200, step=0, steps=1, warmup=config.warmup)
        for e in range(200)
    ]
    assert rates[100] == pytest.approx(1e-3)
    largest = 2e-3 * math.pi / 400  # the steepest slope of the cosine
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= largest
    assert rates == sorted(rates, reverse=True)


def test_the_second_half_never_calls_the_teacher() -> None:
    method, calls = _method(), []
    method.teacher.register_forward_hook(lambda *_: calls.append(1))
    _train(method, _config(), range(2, 4))
    assert calls == []
    _train(method, _config(), range(1, 2))
    assert len(calls) == 2  # once a batch, for all of its steps


@pytest.mark.parametrize("recipe_name", ["fast", "published"])
def test_without_weights_distillation_is_plain_training_bit_for_bit(recipe_name: str) -> None:
    shared: dict[str, Any] = {"smoothing": 0.1, "sam_rho": 0.05, "optimizer": "sgd", "lr": 0.02, "trunk_lr": 0.02}
    plain = _config(**shared).with_(method="plain", dense_zero_grads=False)
    wanted = _train(Plain(_student(), plain), plain, range(2))
    changes = {"mode": "fast"} if recipe_name == "fast" else {}
    config = _config(**shared, feature_weight=0.0, logit_weight=0.0, dense_zero_grads=False, **changes)
    method = Distil(_student(), _teacher(), config)
    if recipe_name == "published":
        # Feature steps without weight would still decay; the last step and the second half are what labels alone do.
        whole = method.steps
        method.steps = lambda epoch, step: whole(epoch, step)[-1:]  # type: ignore[method-assign]
    found = _train(method, config, range(2))
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_a_relative_term_does_not_depend_on_the_scale_of_the_maps() -> None:
    s, t = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(relative_feature_mse(1000 * s, 1000 * t), relative_feature_mse(s, t))
    torch.testing.assert_close(relative_feature_mse(s, t), feature_mse(s, t) / t.square().mean())
    assert relative_feature_mse(torch.zeros_like(t), t).item() == pytest.approx(1)
    assert relative_feature_mse(t, t) == 0


def test_the_fast_student_sees_noise_and_its_teacher_does_not() -> None:
    method = _method(mode="fast", noise="strong", distil_share=1.0)
    batch, seen = _batch(), []
    method.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    begun = method.begin(batch, 0)
    (step,) = method.steps(0, 0)
    prepared = step.prepare(begun, torch.Generator().manual_seed(0))
    assert len(seen) == 1
    assert torch.equal(seen[0], batch["image"])
    assert not torch.equal(prepared["image"], batch["image"])
    assert torch.equal(begun["image"], batch["image"])
    assert set(step.losses(prepared)) == {"features_1", "features_2", "features_3", "logits", "labels"}
