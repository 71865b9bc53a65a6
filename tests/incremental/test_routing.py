"""Routing on logits made by hand, and against loops; calibration against its own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vmmr.errors import DataError
from vmmr.incremental.routing import (
    Calibration,
    class_log_likelihoods,
    fit_calibration,
    route,
    route_by_max_softmax,
    route_to,
    task_of,
    unknown_by_head,
)

CLASSES = (2, 1, 3)
WIDTHS = (3, 2, 4)


def softmax(row: list[float]) -> list[float]:
    top = [math.exp(value - max(row)) for value in row]
    return [value / sum(top) for value in top]


def test_by_hand() -> None:
    """Head 0 is surest of a class, head 1 surest that the image is not foreign."""
    logits = torch.tensor([[4.0, 1.0, 3.0, 1.0, -3.0, 0.0, 0.0, 0.0, 2.0]])
    heads = [softmax([4.0, 1.0, 3.0]), softmax([1.0, -3.0]), softmax([0.0, 0.0, 0.0, 2.0])]
    found = route(logits, CLASSES, WIDTHS)
    assert (found.task.item(), found.label.item()) == (1, 2)
    assert found.score.item() == pytest.approx(heads[1][0], rel=1e-6)
    assert found.unknown.item() == pytest.approx(heads[1][1], rel=1e-5)
    np.testing.assert_allclose(unknown_by_head(logits, CLASSES, WIDTHS)[0], [h[-1] for h in heads], rtol=1e-5)
    told = route_to(torch.tensor([0]), logits, CLASSES, WIDTHS)
    assert (told.label.item(), told.task.item()) == (0, 0)
    assert told.score.item() == pytest.approx(heads[0][0], rel=1e-6)


def test_the_rules_differ_where_classes_of_a_task_are_alike() -> None:
    """Three classes at a third each, but surely not foreign, against one class at 60 %."""
    logits = torch.tensor([[-9.0, -9.0, 0.0, 0.405, 0.0, 5.0, 5.0, 5.0, -5.0]])
    assert route(logits, CLASSES, WIDTHS).task.item() == 2
    assert route_by_max_softmax(logits, CLASSES, WIDTHS).label.item() == 2


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.booleans())
def test_against_loops(seed: int, extended: bool) -> None:
    widths = WIDTHS if extended else (2, 2, 4)
    logits = 3 * torch.randn(4, sum(widths), generator=torch.Generator().manual_seed(seed))
    found = route(logits, CLASSES, widths)
    rival = route_by_max_softmax(logits, CLASSES, widths)
    for row, values in enumerate(logits.double().tolist()):
        heads, start = [], 0
        for width in widths:
            heads.append(softmax(values[start : start + width]))
            start += width
        u = [head[-1] for head in heads]
        tops = [max(head[:count]) for head, count in zip(heads, CLASSES, strict=True)]
        if not extended:
            u[0] = 1 - u[1] * u[2]
            tops[0] *= 1 - u[0]
        task = min(range(3), key=lambda t: u[t])
        label = sum(CLASSES[:task]) + max(range(CLASSES[task]), key=lambda k: heads[task][k])
        assert (found.task[row].item(), found.label[row].item()) == (task, label)
        assert found.score[row].item() == pytest.approx(tops[task], rel=1e-4)
        assert found.unknown[row].item() == pytest.approx(min(u), rel=1e-4, abs=1e-6)
        assert rival.task[row].item() == max(range(3), key=lambda t: tops[t])
        assert rival.score[row].item() == pytest.approx(max(tops), rel=1e-4)
    shifted = logits + torch.repeat_interleave(torch.tensor([5.0, -2.0, 1.0]), torch.tensor(widths))
    assert torch.equal(route(shifted, CLASSES, widths).label, found.label)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.booleans())
def test_every_class_has_the_chance_that_its_head_gives_it(seed: int, extended: bool) -> None:
    """Against loops; the likeliest of each head is the one that head answers, and nothing is minus infinity."""
    widths = WIDTHS if extended else (2, 2, 4)
    logits = 3 * torch.randn(4, sum(widths), generator=torch.Generator().manual_seed(seed))
    found = class_log_likelihoods(logits, CLASSES, widths)
    u = unknown_by_head(logits, CLASSES, widths)
    for row in range(4):
        expected, start = [], 0
        for task, (classes, width) in enumerate(zip(CLASSES, widths, strict=True)):
            inside = softmax(logits[row, start : start + classes].tolist())
            expected += [p * (1 - u[row, task].item()) for p in inside]
            start += width
        np.testing.assert_allclose(found[row].exp().numpy(), expected, rtol=1e-4, atol=1e-6)
    for task, part in enumerate(torch.split(found, [*CLASSES], dim=1)):
        best = route_to(torch.full((4,), task), logits, CLASSES, widths).label
        assert torch.equal(part.argmax(dim=1) + sum(CLASSES[:task]), best)
    sure = torch.tensor([[0.0, 0.0, 200.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert class_log_likelihoods(sure, CLASSES, WIDTHS).isfinite().all()


def test_one_head_alone_answers() -> None:
    found = route(torch.tensor([[1.0, 2.0, 0.5]]), (2,), (3,))
    assert (found.label.item(), found.task.item()) == (1, 0)
    base = route(torch.tensor([[1.0, 2.0]]), (2,), (2,))
    assert (base.label.item(), base.unknown.item()) == (1, 0.0)


def test_labels_find_their_task() -> None:
    assert task_of(torch.arange(6), CLASSES).tolist() == [0, 0, 1, 2, 2, 2]


def drawn(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits whose unknown output tells the task, that of head 1 off by 4 and twice as loud; and labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (count,), generator=random)
    tasks = task_of(labels, CLASSES)
    blocks = []
    for task, (count_of, loud, off) in enumerate(zip(CLASSES, (1.0, 2.0, 1.0), (0.0, 4.0, 0.0), strict=True)):
        odds = torch.where(tasks == task, -1.5, 1.5) + torch.randn(count, generator=random)
        inside = torch.randn(count, count_of, generator=random)
        blocks += [inside, (loud * odds + off + inside.logsumexp(dim=1))[:, None]]
    return torch.cat(blocks, dim=1), labels


def test_calibration_is_a_logistic_regression_of_each_head() -> None:
    logits, labels = drawn()
    tasks = task_of(labels, CLASSES)
    found = fit_calibration(logits, labels, CLASSES, WIDTHS)
    u = unknown_by_head(logits, CLASSES, WIDTHS).double()
    odds = torch.logit(u).numpy()
    for task in range(3):
        foreign = (tasks != task).numpy()
        most, least = foreign.sum(), (~foreign).sum()
        target = np.where(foreign, (most + 1) / (most + 2), 1 / (least + 2))
        # Each image twice, as foreign and as not, weighted by Platt's target.
        inputs, truth = np.tile(odds[:, [task]], (2, 1)), np.repeat([1, 0], len(labels))
        plain = LogisticRegression(C=1e9, tol=1e-8, max_iter=1000)
        plain.fit(inputs, truth, sample_weight=np.concatenate([target, 1 - target]))
        assert found.scale[task].item() == pytest.approx(plain.coef_[0, 0], rel=1e-2)
        assert found.offset[task].item() == pytest.approx(plain.intercept_[0], abs=1e-2)


def test_calibration_routes_better_where_a_head_is_off() -> None:
    logits, labels = drawn()
    other, truth = drawn(seed=1)
    calibration = fit_calibration(logits, labels, CLASSES, WIDTHS)
    before = route(other, CLASSES, WIDTHS).task == task_of(truth, CLASSES)
    after = route(other, CLASSES, WIDTHS, calibration=calibration).task == task_of(truth, CLASSES)
    assert after.float().mean() > before.float().mean() + 0.05
    kept = Calibration(torch.ones(3), torch.zeros(3))
    for one, two in zip(route(other, CLASSES, WIDTHS), route(other, CLASSES, WIDTHS, calibration=kept), strict=True):
        assert torch.equal(one, two)


def test_calibration_stays_finite_on_what_a_head_tells_perfectly() -> None:
    labels = torch.tensor([0, 1] * 5)
    logits = torch.zeros(10, 4)
    logits[:, 1] = torch.where(labels == 0, -20.0, 20.0)
    logits[:, 3] = -logits[:, 1]
    found = fit_calibration(logits, labels, (1, 1), (2, 2))
    assert found.scale.isfinite().all()
    assert found.offset.abs().max() < 1e-3
    # Platt's targets of 5 against 5 images: 6/7.
    assert 20 * found.scale[0].item() == pytest.approx(math.log(6), rel=1e-3)
    with pytest.raises(DataError, match="images of every task"):
        fit_calibration(logits[::2], labels[::2], (1, 1), (2, 2))
