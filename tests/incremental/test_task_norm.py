"""What a task may change and what not; targets and losses by hand; and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vmmr.errors import ConfigError, DataError
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.memory import Memory, per_class
from vmmr.incremental.routing import route, route_to, task_of
from vmmr.incremental.task_norm import (
    Plan,
    TaskNorm,
    align,
    alignment_loss,
    bank_features,
    learn_bank,
    learn_task,
    local_targets,
    remember,
    shuffled_batches,
)
from vmmr.models import Backbone

Make = Callable[..., Backbone]
Draw = Callable[..., Tensor]

QUICK = TaskNorm(stage1=Plan(2, 0.05, batch_size=8), stage2=Plan(3, 0.01, batch_size=8))


def frozen_part(network: BankedNetwork) -> dict[str, Tensor]:
    """Everything that is no bank and no head."""
    return {k: v.clone() for k, v in network.state_dict().items() if ".banks." not in k and not k.startswith("heads.")}


def task(
    images: Draw, number: int, start: int, classes: int = 3, per: int = 6, seed: int = 0, noise: float = 0.3
) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat(per)
    return images(labels, number, seed=seed + number, noise=noise), labels + start


def test_labels_become_those_of_a_head() -> None:
    """Three tasks of 2, 4 and 3 classes: an image of each label, and what each head is to say of it."""
    labels = torch.arange(9)
    assert local_targets(labels, 0, 2).tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2]
    assert local_targets(labels, 2, 4).tolist() == [4, 4, 0, 1, 2, 3, 4, 4, 4]
    assert local_targets(labels, 6, 3).tolist() == [3, 3, 3, 3, 3, 3, 0, 1, 2]


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_of_alignment_by_hand(drop: bool, reduction: str) -> None:
    classes, widths = (2, 1, 3), (3, 2, 4)
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 5, 5])  # none of task 1
    targets = {0: [0, 2, 2, 2], 1: [1, 1, 1, 1], 2: [3, 0, 2, 2]}
    log = {t: block.log_softmax(dim=1) for t, block in enumerate(logits.split(list(widths), dim=1))}
    heads = {t: -np.mean([float(log[t][row, k]) for row, k in enumerate(targets[t])]) for t in targets}
    counted = [heads[0], heads[2]] if drop else [heads[0], heads[1], heads[2]]
    wanted = np.sum(counted) if reduction == "sum" else np.mean(counted)
    found = alignment_loss(logits, labels, classes, widths, drop_absent=drop, reduction=reduction)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    # A base head that is kept as it is has no loss.
    kept = alignment_loss(logits[:, 1:], labels, classes, (2, 2, 4), drop_absent=False)
    assert kept.item() == pytest.approx(heads[1] + heads[2], rel=1e-5)


def test_a_batch_of_nobody_has_no_loss_and_still_a_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = alignment_loss(logits, torch.tensor([1, 1]), (1,), (2,))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("extended", [True, False])
def test_a_task_changes_its_own_bank_and_heads_alone(extended: bool, tiny: Make, images: Draw) -> None:
    base = tiny(3)
    network = BankedNetwork(base, base_unknown=extended)
    memory = remember(network, *task(images, 0, 0), Memory(12))
    shared = frozen_part(network)
    generator = torch.Generator().manual_seed(0)
    for number, start in ((1, 3), (2, 5)):
        before = network.tensors()
        items, labels = task(images, number, start, classes=2 if number == 1 else 3)
        memory = learn_task(network, items, labels, memory, settings=QUICK, generator=generator)
        after = network.tensors()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        heads = {f"heads.{t}.{name}" for t in range(number) for name in ("weight", "bias")}
        assert changed == heads if extended else changed == heads - {"heads.0.weight", "heads.0.bias"}
        fresh = BankedNetwork(base).tensors()
        own = [key for key in after if key.startswith(f"banks.{number}.")]
        assert all(not torch.equal(after[k], fresh[k.replace(f"banks.{number}.", "banks.0.")]) for k in own)
    now = frozen_part(network)
    assert all(torch.equal(shared[key], now[key]) for key in shared)
    assert network.classes == (3, 2, 3)
    assert (memory.quota, len(memory), memory.classes) == (1, 8, 8)
    assert not any(p.requires_grad for p in network.parameters())


def test_stage_1_leaves_answers_of_old_tasks_bit_for_bit(tiny: Make, images: Draw) -> None:
    network = BankedNetwork(tiny(3))
    items, labels = task(images, 0, 0)
    memory = remember(network, items, labels, Memory(6))
    learn_task(network, *task(images, 1, 3), memory, settings=QUICK, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(items)["logits"]
    network.add_bank(3)
    new, own = task(images, 2, 6)
    learn_bank(network, 2, new, own, settings=QUICK, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        after = network(items)["logits"]
    torch.testing.assert_close(after[:, : before.shape[1]], before, rtol=0, atol=1e-6)
    with torch.no_grad():
        one = network.logits(items, 0)
    learn_bank(network, 2, new, own, settings=QUICK)
    with torch.no_grad():
        assert torch.equal(network.logits(items, 0), one)


def test_stage_1_is_plain_training_of_batchnorms(tiny: Make, images: Draw) -> None:
    """Against a loop over the plain network: BatchNorms in training mode, a linear layer, momentum and decay."""
    base = tiny(0)
    items, labels = task(images, 0, 0, per=4)
    settings = TaskNorm(stage1=Plan(2, 0.1, (0.5,), batch_size=100, weight_decay=0.01))
    network = BankedNetwork(base)
    network.add_bank(3)
    learn_bank(network, 0, items, labels, settings=settings, generator=torch.Generator().manual_seed(3))

    plain = tiny(0)
    generator = torch.Generator().manual_seed(3)
    head = nn.Linear(plain.width, 4)
    bound = plain.width**-0.5
    with torch.no_grad():
        for value in (head.weight, head.bias):
            value.copy_(torch.empty(value.shape).uniform_(-bound, bound, generator=generator))
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    learned = [p for norm in norms for p in (norm.weight, norm.bias)]
    descent = torch.optim.SGD([*learned, *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        descent.param_groups[0]["lr"] = 0.1 if epoch == 0 else 0.01
        rows = torch.randperm(len(items), generator=generator)
        descent.zero_grad()
        functional.cross_entropy(head(plain.model(items[rows])), labels[rows]).backward()
        descent.step()
    found = network.tensors()
    for layer, module in plain.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                wanted = getattr(module, name)
                torch.testing.assert_close(found[f"banks.0.{layer}.{name}"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["heads.0.weight"], head.weight, rtol=1e-4, atol=1e-5)


def test_where_stage_2_starts_the_new_head(tiny: Make, images: Draw) -> None:
    items, labels = task(images, 1, 3)
    fresh, auxiliary = {}, {}
    for head in ("random", "auxiliary"):
        network = BankedNetwork(tiny(3))
        network.add_bank(3, generator=torch.Generator().manual_seed(1))
        fresh[head] = network.tensors()["heads.1.weight"]
        chosen = replace(QUICK, head=head)  # type: ignore[arg-type]
        learn_bank(network, 1, items, labels, settings=chosen, generator=torch.Generator().manual_seed(2))
        auxiliary[head] = network.tensors()["heads.1.weight"]
    assert torch.equal(fresh["random"], auxiliary["random"])
    assert not torch.equal(fresh["auxiliary"], auxiliary["auxiliary"])


def test_what_is_unknown_alone_may_be_aligned(tiny: Make, images: Draw) -> None:
    with pytest.raises(ConfigError, match="auxiliary"):
        replace(QUICK, aligned="unknown")
    settings = replace(QUICK, aligned="unknown", head="auxiliary")
    network = BankedNetwork(tiny(3))
    items, labels = task(images, 0, 0)
    memory = remember(network, items, labels, Memory(12))
    generator = torch.Generator().manual_seed(0)
    answers = []
    for number, start in ((1, 3), (2, 5)):
        before = network.tensors()
        fresh = task(images, number, start, classes=2 if number == 1 else 3)
        memory = learn_task(network, *fresh, memory, settings=settings, generator=generator)
        after = network.tensors()
        for key in (f"heads.{old}.{name}" for old in range(number) for name in ("weight", "bias")):
            assert torch.equal(after[key][:-1], before[key][:-1]), key
            assert not torch.equal(after[key][-1], before[key][-1]), key
        with torch.no_grad():
            logits = network(items)["logits"]
        answers.append(route_to(torch.zeros_like(labels), logits, network.classes, network.widths).label)
    assert torch.equal(*answers)  # who comes to the right head is told the same, whatever was learned since
    assert not any(p.requires_grad for p in network.parameters())


def test_without_negatives_unknown_is_pushed_down_or_left_out(tiny: Make, images: Draw) -> None:
    items, labels = task(images, 0, 0)
    biases = {}
    for taken in (True, False):
        network = BankedNetwork(tiny(0))
        network.add_bank(3)
        settings = replace(QUICK, first_unknown=taken)
        learn_bank(network, 0, items, labels, settings=settings, generator=torch.Generator().manual_seed(0))
        biases[taken] = network.tensors()["heads.0.bias"][3].item()
    bound = tiny(0).width ** -0.5
    generator = torch.Generator().manual_seed(0)
    torch.empty(4, tiny(0).width).uniform_(-bound, bound, generator=generator)
    assert biases[False] == torch.empty(4).uniform_(-bound, bound, generator=generator)[3].item()
    assert biases[True] < biases[False]


def test_alignment_that_varies_nothing_may_keep_features(tiny: Make, images: Draw) -> None:
    """Once computed or computed in each batch: the same heads."""
    items, labels = task(images, 0, 0, per=3)
    found = []
    for settings in (QUICK, replace(QUICK, augment_alignment=False)):
        network = BankedNetwork(tiny(3))
        network.add_bank(2, generator=torch.Generator().manual_seed(0))
        both = torch.where(labels == 2, 4, labels)
        align(network, items, both, lambda x, _: x, settings=settings, generator=torch.Generator().manual_seed(1))
        found.append(network.tensors()["heads.1.weight"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_views_draw_in_training_and_not_in_answers(tiny: Make, images: Draw) -> None:
    pool, labels = task(images, 0, 0)
    seen = {True: 0, False: 0}

    def view(rows: Tensor, generator: torch.Generator | None) -> Tensor:
        seen[generator is not None] += len(rows)
        return pool[rows]

    network = BankedNetwork(tiny(3))
    rows = torch.arange(len(labels))
    memory = remember(network, rows, labels, Memory(6), view)
    assert seen == {True: 0, False: 18}
    assert memory.items.dtype == torch.int64
    learn_task(network, rows, labels + 3, memory, view, settings=QUICK, generator=torch.Generator().manual_seed(0))
    # Stage 1: two epochs of 18 + 6 images. Stage 2: three of 2 for each of 6 classes.
    assert seen == {True: 2 * 24 + 3 * 12, False: 18 + 18}


def test_stage_2_has_as_many_images_of_new_classes_as_of_old(tiny: Make, images: Draw) -> None:
    network = BankedNetwork(tiny(3))
    memory = remember(network, *task(images, 0, 0), Memory(7))
    assert memory.quota == 2
    told: list[tuple[str, int, int, float]] = []
    memory = learn_task(
        network,
        *task(images, 1, 3, classes=2),
        memory,
        settings=QUICK,
        generator=torch.Generator().manual_seed(0),
        progress=lambda *row: told.append(row),
    )
    assert [row[:3] for row in told] == [
        ("bank", 1, 2),
        ("bank", 2, 2),
        ("heads", 1, 3),
        ("heads", 2, 3),
        ("heads", 3, 3),
    ]
    assert all(np.isfinite(row[3]) and row[3] > 0 for row in told)
    assert torch.bincount(memory.labels).tolist() == [1] * 5


def test_tasks_that_do_not_go_on_are_refused(tiny: Make, images: Draw) -> None:
    network = BankedNetwork(tiny(3))
    items, labels = task(images, 1, 3)
    memory = remember(network, items, labels - 3, Memory(6))
    for wrong in (labels + 1, labels - 1, labels * 2, labels[:0]):
        with pytest.raises(DataError, match="begin at 3"):
            learn_task(network, items[: len(wrong)], wrong, memory)
    with pytest.raises(DataError, match="a budget of 2 for 3 classes"):
        learn_task(network, items, labels, remember(network, items, labels - 3, Memory(2)))
    assert network.classes == (3,)
    for values in ({"epochs": -1}, {"lr": 0.0}, {"batch_size": 0}, {"weight_decay": -1.0}):
        with pytest.raises(ConfigError):
            Plan(**({"epochs": 1, "lr": 0.1} | values))  # type: ignore[arg-type]


def test_batches_hold_every_image_once_and_never_one_alone() -> None:
    for count in range(2, 40):
        batches = shuffled_batches(count, 4, torch.Generator().manual_seed(count))
        assert sorted(torch.cat(batches).tolist()) == [*range(count)]
        assert 2 <= min(map(len, batches)) <= max(map(len, batches)) <= 4
    one, two = (shuffled_batches(9, 4, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_published_numbers() -> None:
    settings = TaskNorm()
    assert (settings.head, settings.drop_absent, settings.reduction, settings.init) == ("random", True, "sum", "base")
    rates = [settings.stage1.rate(epoch) for epoch in (0, 69, 70, 129, 130, 169, 170)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    np.testing.assert_allclose([settings.stage2.rate(e) for e in (54, 55, 80)], [1e-2, 1e-3, 1e-4])


def test_it_learns_tasks_of_other_light(tiny: Make, images: Draw) -> None:
    """Four tasks of three classes: better than one set of BatchNorms with growing heads; inside a task nearly sure."""
    settings = TaskNorm(
        stage1=Plan(8, 0.05, (0.7,), batch_size=16),
        stage2=Plan(60, 0.01, (0.55, 0.8), batch_size=16),
    )
    generator = torch.Generator().manual_seed(0)
    test = [task(images, number, 3 * number, per=10, seed=50, noise=1.5) for number in range(4)]
    shown, truth = torch.cat([t[0] for t in test]), torch.cat([t[1] for t in test])
    accuracies = {}
    for banked in (True, False):
        network = BankedNetwork(tiny(0))
        memory = Memory(48)
        for number in range(4):
            items, labels = task(images, number, 3 * number, per=12, noise=1.5)
            plans = settings if banked else replace(settings, stage1=Plan(0, 0.05))
            memory = learn_task(network, items, labels, memory, settings=plans, generator=generator)
        with torch.no_grad():
            logits = network(shown)["logits"]
        found = route(logits, network.classes, network.widths)
        oracle = route_to(task_of(truth, network.classes), logits, network.classes, network.widths)
        accuracies[banked] = (found.label == truth).float().mean().item()
        if banked:
            right_task = (found.task == task_of(truth, network.classes)).float().mean().item()
            within = (oracle.label == truth).float().mean().item()
            print(f"accuracy {accuracies[banked]:.2f}, task {right_task:.2f}, within a task {within:.2f}")
            assert accuracies[banked] <= min(right_task, within)
    print(accuracies)
    assert accuracies[True] > accuracies[False] + 0.1
    assert right_task > 0.6


def test_features_of_all_banks_are_those_of_a_pass(tiny: Make, images: Draw) -> None:
    network = BankedNetwork(tiny(3))
    network.add_bank(2)
    items, _ = task(images, 0, 0)
    with torch.no_grad():
        wanted = network(items)["features"]
    found = bank_features(network, items, [0, 1], batch_size=5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal(bank_features(network, items, [1], batch_size=5)[:, 0], found[:, 1])
    memory = remember(network, items, torch.arange(18) % 2 + 3, Memory(4))
    rows = per_class(torch.arange(18) % 2 + 3, wanted[:, 1], 2)
    assert torch.equal(memory.items, items[rows])
