"""Losses of rivals against loops, weights aligned by hand, prototypes, and one softmax that grows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError, DataError
from vmmr.incremental.icarl import icarl_loss
from vmmr.incremental.prototypes import class_means, cosines
from vmmr.incremental.replay import GrowingNetwork, learn_classes
from vmmr.incremental.task_norm import Plan
from vmmr.incremental.weight_aligning import aligned_weights, distilled_cross_entropy
from vmmr.models import Backbone

Make = Callable[..., Backbone]
Draw = Callable[..., Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_icarl_by_loops() -> None:
    logits, old, labels = drawn(3, 5), drawn(3, 3, seed=1), torch.tensor([4, 0, 3])
    total = 0.0
    for row in range(3):
        for place, value in enumerate(logits[row].tolist()):
            target = sigmoid(old[row, place].item()) if place < 3 else float(place == labels[row])
            total -= target * math.log(sigmoid(value)) + (1 - target) * math.log(1 - sigmoid(value))
    assert icarl_loss(logits, labels, old).item() == pytest.approx(total / 3, rel=1e-5)
    first = icarl_loss(logits, labels, old[:, :0])
    one_hot = functional.one_hot(labels, 5).float()
    wanted = functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum") / 3
    assert first.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_distillation_by_loops() -> None:
    logits, old, labels = drawn(3, 5), drawn(3, 3, seed=1), torch.tensor([4, 0, 3])
    kept, told = 0.0, 0.0
    for row in range(3):
        before = softmax(old[row].tolist(), 2.0)
        now = softmax(logits[row, :3].tolist(), 2.0)
        kept -= sum(q * math.log(p) for q, p in zip(before, now, strict=True)) / 3
        told -= math.log(softmax(logits[row].tolist())[int(labels[row])]) / 3
    found = distilled_cross_entropy(logits, labels, old).item()
    assert found == pytest.approx(0.6 * kept + 0.4 * told, rel=1e-5)
    plain = distilled_cross_entropy(logits, labels, old[:, :0]).item()
    assert plain == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_new_weights_become_as_long_as_old_ones() -> None:
    weight = drawn(5, 4)
    found = aligned_weights(weight, 3)
    assert torch.equal(found[:3], weight[:3])
    lengths = found.norm(dim=1)
    assert lengths[3:].mean().item() == pytest.approx(lengths[:3].mean().item(), rel=1e-6)
    torch.testing.assert_close(functional.cosine_similarity(found, weight), torch.ones(5))
    ratio = found[3:] / weight[3:]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_class_means_by_loops() -> None:
    features, labels = drawn(12, 4), torch.arange(12) % 3
    means = class_means(features, labels, 4)
    for label in range(3):
        rows = [row / np.linalg.norm(row) for row in features[labels == label].numpy()]
        wanted = np.mean(rows, axis=0)
        np.testing.assert_allclose(means[label], wanted / np.linalg.norm(wanted), rtol=1e-5)
    assert torch.equal(means[3], torch.zeros(4))
    near = cosines(features, means)
    for row in range(12):
        for label in range(4):
            wanted = float(features[row] @ means[label]) / float(features[row].norm())
            assert near[row, label].item() == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(cosines(7 * features, means), near)


def test_outputs_grow_and_old_ones_stay(tiny: Make, images: Draw) -> None:
    base = tiny(3)
    network = GrowingNetwork(base).eval()
    shown = images(torch.arange(6), 0)
    with torch.no_grad():
        wanted = base.answer(shown)
        torch.testing.assert_close(network(shown), wanted, rtol=0, atol=1e-6)
        network.grow(5, torch.Generator().manual_seed(0))
        torch.testing.assert_close(network(shown)[:, :3], wanted, rtol=0, atol=1e-6)
    assert base.model.get_classifier().out_features == 3
    with pytest.raises(ConfigError, match="no linear classifier"):
        GrowingNetwork(tiny(0))


def test_learning_is_plain_descent(tiny: Make, images: Draw) -> None:
    """Against a loop of one's own, in which a copy of the network before says what old classes are to be."""
    labels = torch.tensor([3, 4, 0, 1, 2, 3, 4, 3])
    shown = images(labels, 1)
    plan = Plan(2, 0.1, (0.5,), batch_size=100, weight_decay=0.01)
    for loss in (None, icarl_loss, distilled_cross_entropy):
        network = GrowingNetwork(tiny(3))
        told: list[tuple[str, int, int, float]] = []
        learn_classes(
            network,
            shown,
            labels,
            plan=plan,
            loss=loss,
            generator=torch.Generator().manual_seed(1),
            progress=lambda *row, told=told: told.append(row),  # type: ignore[misc]
        )
        other, teacher = GrowingNetwork(tiny(3)), GrowingNetwork(tiny(3)).eval()
        generator = torch.Generator().manual_seed(1)
        other.grow(5, generator)
        other.train()
        descent = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        values = []
        for epoch in range(2):
            descent.param_groups[0]["lr"] = (0.1, 0.01)[epoch]
            rows = torch.randperm(8, generator=generator)
            descent.zero_grad()
            logits = other(shown[rows])
            if loss is None:
                value = functional.cross_entropy(logits, labels[rows])
            else:
                value = loss(logits, labels[rows], teacher(shown[rows]).detach())
            value.backward()
            descent.step()
            values.append(value.item())
        assert [row[:3] for row in told] == [("classes", 1, 2), ("classes", 2, 2)]
        np.testing.assert_allclose([row[3] for row in told], values, rtol=1e-5)
        for mine, theirs in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert not any(module.training for module in network.modules())


def test_fewer_classes_than_known_keep_all_outputs(tiny: Make, images: Draw) -> None:
    network = GrowingNetwork(tiny(3))
    labels = torch.tensor([0, 1, 0, 1])
    learn_classes(network, images(labels, 0), labels, plan=Plan(1, 0.1))
    assert network.head.out_features == 3
    with pytest.raises(DataError, match="no image"):
        learn_classes(network, torch.zeros(0, 3, 32, 32), labels[:0], plan=Plan(1, 0.1))
