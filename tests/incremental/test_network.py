"""Routed logits against routing itself."""

from __future__ import annotations

import pytest
import torch

from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.network import Discriminants, TaskNetwork, routed_logits
from vmmr.incremental.routing import Calibration, class_log_likelihoods, route
from vmmr.models import Backbone


@pytest.mark.parametrize("widths", [(4, 3, 5), (3, 3, 5)], ids=["all with unknown", "base without"])
def test_the_largest_logit_is_the_answer_of_the_head_that_is_least_unknown(widths: tuple[int, ...]) -> None:
    classes, random = (3, 2, 4), torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, sum(widths), generator=random)
    scale, offset = torch.tensor([1.0, 0.7, 1.6]), torch.tensor([0.0, 0.4, -0.3])
    found = routed_logits(logits, classes, widths, scale, offset)
    wanted = route(logits, classes, widths, calibration=Calibration(scale, offset))
    assert found.shape == (300, 9)
    assert torch.equal(found.argmax(dim=1), wanted.label)
    assert len(set(wanted.task.tolist())) == 3
    for start, stop, left in ((0, 3, 0), (3, 5, widths[0]), (5, 9, widths[0] + widths[1])):
        inside = found[:, start:stop].softmax(dim=1)  # within a head nothing moves
        torch.testing.assert_close(inside, logits[:, left : left + stop - start].softmax(dim=1))


def test_saturated_heads_stay_finite_and_ordered() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0, 80.0], [0.0, 1.0, 0.0, -80.0], [0.0, 1.0, 90.0, 0.0]])
    found = routed_logits(logits, (2, 1), (2, 2), torch.ones(2), torch.zeros(2))
    assert found.isfinite().all()
    assert found.argmax(dim=1).tolist() == [0, 2, 2]


def test_pooled_features_are_those_of_the_network_before() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", 3).eval()
    banked = BankedNetwork(backbone, base_unknown=False)
    banked.add_bank(2, generator=torch.Generator().manual_seed(0))
    network = TaskNetwork(banked, torch.ones(2), torch.zeros(2)).eval()
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before, after = backbone(x, pooled=True), network(x, pooled=True)
        torch.testing.assert_close(after["pooled"], before["pooled"], rtol=1e-4, atol=1e-5)
        old = network.answer_of(after)[:, :3].softmax(dim=1)
        torch.testing.assert_close(old, before["logits_0"].softmax(dim=1), rtol=1e-4, atol=1e-5)


def test_discriminants_speak_with_the_heads() -> None:
    """The product of both, against numbers; a flat second opinion changes no answer, a loud one decides alone."""
    torch.manual_seed(0)
    banked = BankedNetwork(Backbone("test_resnet", 3).eval(), base_unknown=False)
    banked.add_bank(2, generator=torch.Generator().manual_seed(0))
    scale, offset = torch.tensor([1.0, 0.8]), torch.tensor([0.0, 0.3])
    heads, pooled = 3 * torch.randn(50, 6), torch.rand(50, banked.width)
    weight, bias = torch.randn(5, banked.width), torch.randn(5)
    told = class_log_likelihoods(heads, (3, 2), (3, 3), calibration=Calibration(scale, offset))
    found = TaskNetwork(banked, scale, offset, Discriminants(weight, bias)).scores(heads, pooled)
    unit = pooled / pooled.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, told + unit @ weight.T + bias)
    flat = TaskNetwork(banked, scale, offset, Discriminants(0 * weight, 0 * bias + 7)).scores(heads, pooled)
    torch.testing.assert_close(flat.softmax(dim=1), told.softmax(dim=1))
    loud = TaskNetwork(banked, scale, offset, Discriminants(0 * weight, 1e4 * torch.eye(5)[4])).scores(heads, pooled)
    assert (loud.argmax(dim=1) == 4).all()
    assert TaskNetwork(banked, scale, offset).discriminants is None
