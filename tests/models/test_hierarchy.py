"""Heads for every level: what feeds what, what gradients reach, and the answers that come of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vmmr.torchvision_ops  # noqa: F401  (before timm)
from vmmr.errors import ConfigError
from vmmr.levels import Levels
from vmmr.models.decoding import back_off, confidences_by_level, independent, joint_scores, tree_log_probabilities
from vmmr.models.heads import HierarchyHead
from vmmr.models.heads.hierarchy import join_levels, log_marginal, split_levels
from vmmr.objectives import level_losses
from vmmr.taxonomy import Taxonomy

import timm  # isort: skip

CARS = Taxonomy.from_rows(
    ["Audi", "Audi", "Audi", "BMW", "VW", "VW"],
    ["A4", "A4", "A6", "M3", "Golf", "Polo"],
    [2008, 2012, 2012, 2010, 2012, 2012],
)
LEVELS = Levels(CARS, ("make", "model", "class", "body"), {"body": ("Sedan", "SUV")})
PARENTS = {"model": LEVELS.parents("model", "make"), "class": LEVELS.parents("class", "model")}
FORMS = ("parallel", "coarse_to_fine", "fine_to_coarse", "conditional")
CASCADES = ("coarse_to_fine", "fine_to_coarse")
D = 5


def _head(**options: Any) -> HierarchyHead:
    torch.manual_seed(0)
    return HierarchyHead(D, LEVELS.widths, parents=PARENTS, **options).double()


def _pooled(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _labels() -> dict[str, Tensor]:
    fine = torch.tensor([0, 2, 4, 5])
    up = {level: torch.from_numpy(LEVELS.parents("class", level).copy())[fine] for level in LEVELS.tree}
    return {**up, "body": torch.tensor([0, 1, -1, 0])}


def _by_level(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("logits_"): logits for name, logits in outputs.items()}


def _losses(head: HierarchyHead, pooled: Tensor, **options: Any) -> dict[str, Tensor]:
    return level_losses(_by_level(head(pooled, _labels())), _labels(), smoothing=0.0, **options)


# --- what feeds what


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_every_level(form: str) -> None:
    outputs = _head(form=form)(_pooled())
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "logits_make": (4, 3),
        "logits_model": (4, 5),
        "logits_class": (4, 6),
        "logits_body": (4, 2),
    }
    wide = join_levels(outputs)
    for level, logits in split_levels(wide, LEVELS.widths).items():
        assert torch.equal(logits, outputs[f"logits_{level}"])


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("form", CASCADES)
@pytest.mark.parametrize("feed", ["logits", "softmax", "embedding"])
def test_a_cascade_number_by_number(form: str, feed: str) -> None:
    head = _head(form=form, feed=feed, embedding=3)
    order = ["make", "model", "class"] if form == "coarse_to_fine" else ["class", "model", "make"]
    z = _pooled(1)[0].tolist()
    outputs = head(_pooled(1))
    fed: list[float] = []
    for level in order:
        weight, bias = head.linear[level].weight.tolist(), head.linear[level].bias.tolist()
        seen = z + fed
        logits = [sum(w * s for w, s in zip(row, seen, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        assert outputs[f"logits_{level}"][0].tolist() == pytest.approx(logits, rel=1e-9)
        fed = logits if feed == "logits" else _softmax(logits)
        if feed == "embedding" and level != order[-1]:
            fed = [sum(w * f for w, f in zip(row, fed, strict=True)) for row in head.embed[level].weight.tolist()]


@pytest.mark.parametrize("form", CASCADES)
def test_a_cascade_without_what_is_fed_is_parallel(form: str) -> None:
    cascade, parallel = _head(form=form), _head()
    with torch.no_grad():
        for level, linear in cascade.linear.items():
            linear.weight[:, D:] = 0
            parallel.linear[level].weight.copy_(linear.weight[:, :D])
            parallel.linear[level].bias.copy_(linear.bias)
    for name, logits in parallel(_pooled()).items():
        torch.testing.assert_close(cascade(_pooled())[name], logits)


def test_side_attributes_stand_beside_the_tree() -> None:
    for form in FORMS:
        head = _head(form=form)
        assert "body" not in head.feeds
        torch.testing.assert_close(head(_pooled())["logits_body"], head.linear["body"](_pooled()))


def test_the_parameters_a_cascade_adds() -> None:
    sizes = {form: sum(p.numel() for p in _head(form=form).parameters()) for form in FORMS}
    assert sizes["coarse_to_fine"] - sizes["parallel"] == 3 * 5 + 5 * 6
    assert sizes["fine_to_coarse"] - sizes["parallel"] == 6 * 5 + 5 * 3
    assert sizes["conditional"] == sizes["parallel"]


# --- what gradients reach


@pytest.mark.parametrize("form", [*CASCADES, "conditional"])
@pytest.mark.parametrize("stop", [False, True])
def test_what_a_level_learns_from_the_one_it_feeds(form: str, stop: bool) -> None:
    head = _head(form=form, stop_gradient=stop)
    for level, source in head.feeds.items():
        loss = _losses(head, _pooled())[level]
        [gradient] = torch.autograd.grad(loss, head.linear[source].weight, allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) is not stop, (level, source)


def test_in_parallel_no_level_learns_from_another() -> None:
    head = _head()
    losses = _losses(head, _pooled())
    for level, loss in losses.items():
        for other, linear in head.linear.items():
            [gradient] = torch.autograd.grad(loss, linear.weight, retain_graph=True, allow_unused=True)
            assert (gradient is not None) == (level == other)


def test_without_weight_on_the_others_parallel_is_the_single_task() -> None:
    """Gradients of trunk and head equal those of a network with this one level, bit for bit."""
    head = _head()
    single = HierarchyHead(D, {"class": 6}).double()
    single.linear["class"].load_state_dict(head.linear["class"].state_dict())
    ours, theirs = _pooled().requires_grad_(), _pooled().requires_grad_()
    torch.stack(list(_losses(head, ours, weights={"make": 0.0, "model": 0.0, "body": 0.0}).values())).sum().backward()
    level_losses(_by_level(single(theirs)), _labels(), smoothing=0.0)["class"].backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    assert torch.equal(head.linear["class"].weight.grad, single.linear["class"].weight.grad)
    assert not head.linear["make"].weight.grad.any()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from(["make", "model", "class", "body"]))
def test_weights_scale_gradients_linearly(weight: float, level: str) -> None:
    head = _head()
    parameters = list(head.linear[level].parameters())
    plain = torch.autograd.grad(_losses(head, _pooled())[level], parameters)
    scaled = torch.autograd.grad(_losses(head, _pooled(), weights={level: weight})[level], parameters)
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(b, weight * a, rtol=1e-9, atol=1e-12)


# --- teacher forcing and dropout


def test_teacher_forcing_feeds_the_truth_where_it_is_known_and_only_in_training() -> None:
    head = _head(form="coarse_to_fine", teacher_forcing=True)
    free = _head(form="coarse_to_fine")
    labels = _labels()
    labels["make"] = torch.tensor([0, -1, 2, 2])
    z = _pooled()
    own = free(z)["logits_make"].softmax(1)
    fed = torch.stack([torch.eye(3, dtype=torch.float64)[0], own[1], *torch.eye(3, dtype=torch.float64)[[2, 2]]])
    expected = head.linear["model"](torch.cat([z, fed], dim=1))
    torch.testing.assert_close(head(z, labels)["logits_model"], expected)
    assert torch.equal(head(z)["logits_model"], free(z)["logits_model"])  # no labels
    head.eval()
    assert torch.equal(head(z, labels)["logits_model"], free(z)["logits_model"])


@pytest.mark.parametrize("form", FORMS)
def test_every_level_drops_features_of_its_own(form: str) -> None:
    torch.manual_seed(0)
    head = HierarchyHead(400, LEVELS.widths, form=form, dropout=0.5, parents=PARENTS)  # type: ignore[arg-type]
    masks: dict[str, Tensor] = {}
    for level, linear in head.linear.items():
        linear.register_forward_pre_hook(lambda m, x, level=level: masks.update({level: x[0][0, :400] != 0}))
    z = torch.ones(2, 400)
    head(z)
    for level, mask in masks.items():
        assert 140 < mask.sum() < 260  # five standard deviations around 200
        for other in set(masks) - {level}:
            assert 140 < (mask ^ masks[other]).sum() < 260, "masks of two levels are independent"
    head.eval()
    first, second = head(z), head(z)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert all(mask.all() for mask in masks.values())


# --- p(model | make)


def test_the_conditional_form_is_a_softmax_among_siblings() -> None:
    head = _head(form="conditional")
    z = _pooled(2)
    outputs = {k: v.exp() for k, v in head(z).items()}
    make = head.linear["make"](z).softmax(1)
    for row in range(2):
        for level, above in (("model", make), ("class", outputs["logits_model"])):
            parents = PARENTS[level]
            scores = head.linear[level](z)[row].tolist()
            for k, score in enumerate(scores):
                siblings = [math.exp(s) for j, s in enumerate(scores) if parents[j] == parents[k]]
                expected = above[row, parents[k]].item() * math.exp(score) / sum(siblings)
                assert outputs[f"logits_{level}"][row, k].item() == pytest.approx(expected, rel=1e-6)
    marginal = tree_log_probabilities(head(z)["logits_class"], LEVELS)
    torch.testing.assert_close(marginal["make"].exp(), make, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "other"},
        {"feed": "other"},
        {"teacher_forcing": True},
        {"teacher_forcing": True, "form": "conditional"},
        {"teacher_forcing": True, "form": "coarse_to_fine", "feed": "logits"},
    ],
)
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _head(**options)


def test_the_conditional_form_wants_all_parents() -> None:
    for parents in (None, {"model": PARENTS["model"]}, {**PARENTS, "class": np.zeros(5, dtype=np.int64)}):
        with pytest.raises(ConfigError, match="parents"):
            HierarchyHead(D, LEVELS.widths, form="conditional", parents=parents)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_convnext", "test_vit", "pvt_v2_b0"])
def test_any_trunk_will_do(name: str) -> None:
    trunk = timm.create_model(name, num_classes=7).eval()
    size = (trunk.pretrained_cfg or {}).get("input_size", (3, 64, 64))[1] if name == "test_vit" else 64
    with torch.no_grad():
        pooled = trunk.forward_head(trunk.forward_features(torch.rand(2, 3, size, size)), pre_logits=True)
    assert pooled.shape == (2, trunk.head_hidden_size)
    outputs = HierarchyHead(trunk.head_hidden_size, LEVELS.widths, form="coarse_to_fine")(pooled)
    assert [tuple(v.shape) for v in outputs.values()] == [(2, width) for width in LEVELS.widths.values()]


# --- decoding


def _logits(seed: int, count: int = 6, levels: Levels = LEVELS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        level: 3 * torch.randn(count, width, generator=generator, dtype=torch.float64)
        for level, width in levels.widths.items()
    }


def test_summing_probabilities_of_siblings() -> None:
    scores = _logits(1)["class"] * 50  # far beyond what exp can hold in one piece
    found = log_marginal(scores, torch.from_numpy(CARS.make_of.copy()), 3)
    for row in range(len(scores)):
        for make in range(3):
            members = [s for s, m in zip(scores[row].tolist(), CARS.make_of, strict=True) if m == make]
            expected = max(members) + math.log(sum(math.exp(s - max(members)) for s in members))
            assert found[row, make].item() == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.floats(0, 20))
def test_the_consistent_answer(seed: int, beta: float) -> None:
    logits = _logits(seed)
    scores = joint_scores(logits, LEVELS, beta)
    log_p = {level: found.log_softmax(1).tolist() for level, found in logits.items()}
    for row, label in enumerate(scores.argmax(1).tolist()):
        naive = [
            log_p["class"][row][k]
            + beta * log_p["make"][row][CARS.make_of[k]]
            + beta * log_p["model"][row][CARS.model_of[k]]
            for k in range(6)
        ]
        assert naive[label] == pytest.approx(max(naive))
    probabilities = tree_log_probabilities(scores, LEVELS)
    for level, found in probabilities.items():
        torch.testing.assert_close(found.exp().sum(1), torch.ones(6, dtype=torch.float64))
        assert found.shape == (6, LEVELS.widths[level])
    _, sure = confidences_by_level(scores, LEVELS)
    assert list(sure) == ["make", "model", "class"]
    assert (sure["make"] >= sure["model"] - 1e-12).all()
    assert (sure["model"] >= sure["class"] - 1e-12).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_the_limits_of_beta(seed: int) -> None:
    logits = _logits(seed)
    alone = joint_scores(logits, LEVELS, 0.0)
    assert torch.equal(alone.argmax(1), independent(logits)["class"])
    marginal = tree_log_probabilities(alone, LEVELS)["make"]
    p = logits["class"].softmax(1)
    by_hand = torch.stack([p[:, CARS.make_of == make].sum(1) for make in range(3)], dim=1)
    torch.testing.assert_close(marginal.exp(), by_hand)
    two = Levels(CARS, ("make", "class"))
    decided = CARS.make_of[joint_scores(logits, two, 1e6).argmax(1).numpy()]
    assert decided.tolist() == independent(logits)["make"].tolist()


def test_with_one_model_a_make_a_right_model_is_a_right_make() -> None:
    levels = Levels(Taxonomy.from_rows(["A", "B", "C"], ["x", "y", "z"]), ("make", "class"))
    logits = _logits(3, 50, levels)
    labels, _ = confidences_by_level(joint_scores(logits, levels, 0.7), levels)
    assert torch.equal(labels["make"], labels["class"])


def test_a_number_is_its_own_answer() -> None:
    assert independent({"year_value": torch.tensor([[1.2], [0.3]])})["year_value"].tolist() == pytest.approx([1.2, 0.3])


def test_an_unsure_model_of_a_sure_make_is_answered_with_the_make() -> None:
    # Two models of one make share its 0.9; the third make's only model has 0.1.
    levels = Levels(Taxonomy.from_rows(["A", "A", "B"], ["x", "y", "z"]), ("make", "class"))
    scores = torch.tensor([[0.45, 0.45, 0.10], [0.88, 0.02, 0.10], [0.3, 0.3, 0.4]]).log()
    labels, sure = confidences_by_level(scores, levels)
    assert labels["make"].tolist() == [0, 0, 0]
    assert labels["class"].tolist()[1:] == [0, 2]  # the likeliest model of the third is of another make
    assert sure["make"].tolist() == pytest.approx([0.9, 0.9, 0.6])
    assert back_off(sure, {"make": 0.8, "class": 0.5}).tolist() == [0, 1, -1]
    assert back_off(sure, {"make": 0.0, "class": 0.0}).tolist() == [1, 1, 1]


def test_beta_is_not_negative() -> None:
    with pytest.raises(ConfigError, match="beta"):
        joint_scores(_logits(0), LEVELS, -0.1)
