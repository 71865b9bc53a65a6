"""Losses of several levels, with gaps in the labels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.objectives import level_losses, marginal_nll, smoothed_kl, year_loss

LABELS = st.lists(st.integers(-1, 2), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(0, 999))
def test_each_level_learns_from_what_is_labelled_there(labels: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = {name: torch.randn(len(labels), 3, generator=generator, dtype=torch.float64) for name in ("make", "model")}
    truth = {"make": torch.tensor(labels), "model": torch.zeros(len(labels), dtype=torch.int64)}
    losses = level_losses(logits, truth, weights={"model": 0.5})
    rows = [i for i, label in enumerate(labels) if label >= 0]
    assert ("make" in losses) == bool(rows)
    assert losses["model"].item() == pytest.approx(0.5 * smoothed_kl(logits["model"], truth["model"]).item())
    if rows:
        each = [smoothed_kl(logits["make"][[i]], truth["make"][[i]]).item() for i in rows]
        assert losses["make"].item() == pytest.approx(sum(each) / len(rows))


def test_an_image_without_a_label_leaves_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    level_losses({"make": logits}, {"make": torch.tensor([1, -1, 2])})["make"].backward()
    assert logits.grad is not None
    assert logits.grad.any(dim=1).tolist() == [True, False, True]


def test_the_make_told_by_the_models() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    parents, labels = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([1, -1, 0])
    loss = marginal_nll(logits, parents, labels, 3)
    p = logits.softmax(1).tolist()
    expected = -(math.log(p[0][1] + p[0][2]) + math.log(p[2][0] + p[2][4])) / 2
    assert loss.item() == pytest.approx(expected)
    [gradient] = torch.autograd.grad(loss, logits)
    assert not gradient[1].any()
    assert gradient.sum(1).abs().max() < 1e-12
    # With one model a make it is the plain cross-entropy of the models.
    alone = marginal_nll(logits[:, :3], torch.arange(3), labels, 3)
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(logits[[0, 2], :3], labels[[0, 2]]))


def test_a_year_as_a_number() -> None:
    values = torch.tensor([[1.2], [1.25], [0.2]], dtype=torch.float64)
    years = torch.tensor([2012, 2012, 2012])
    # Half a year off: 0.05^2 / (2 * 0.1); ten years off: 1 - 0.1 / 2.
    assert year_loss(values, years).item() == pytest.approx((0 + 0.0125 + 0.95) / 3)
    found = level_losses({"year_value": values}, {"year_value": torch.tensor([2012, -1, 2012])})
    assert found["year_value"].item() == pytest.approx((0 + 0.95) / 2)
