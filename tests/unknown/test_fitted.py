"""Constants survive a file, and what is not theirs is refused with a name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from vmmr.errors import BundleError, DataError
from vmmr.unknown import SCORES, Head, hidden_scores
from vmmr.unknown.knn import KNNFitted
from vmmr.unknown.knn_pca import ReducedKNNFitted
from vmmr.unknown.max_logit import max_logit
from vmmr.unknown.react import ReActFitted


@pytest.mark.parametrize("name", SCORES)
def test_constants_come_back_from_a_file(name: str, world: Any) -> None:
    score, fit, kind = SCORES[name]
    fitted = fit(world.statistics)
    data = save(fitted.tensors())
    read = kind.from_tensors(load(data), classes=5, width=12)
    found = score(world.shown, world.logits, read)
    assert torch.equal(found, score(world.shown, world.logits, fitted))
    assert all(not tensor.is_floating_point() or tensor.dtype == torch.float32 for tensor in read.tensors().values())
    moved, stored = read.to("cpu").tensors(), load(data)
    assert moved.keys() == stored.keys()
    assert all(torch.equal(moved[key], stored[key]) for key in stored)


def react_tensors() -> dict[str, Tensor]:
    return {"weight": torch.ones(3, 4), "bias": torch.zeros(3), "clip": torch.tensor(torch.inf)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.ones(3, 5)}, "weight of ReActFitted is of another network; got D = 5"),
        ({"weight": torch.ones(2, 4)}, "malformed; got bias of ReActFitted does not fit the others; got C = 3"),
        ({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, "another network; got C = 2"),
        ({"weight": torch.ones(3, 4).double()}, "weight of ReActFitted is not of its kind; got torch.float64"),
        ({"weight": torch.ones(12)}, "not of its kind"),
        ({"bias": torch.zeros(0)}, "too large, or empty"),
        ({"bias": torch.tensor([0.0, torch.nan, 0.0])}, "bias of ReActFitted holds what is no finite number"),
        ({"bias": torch.tensor([0.0, torch.inf, 0.0])}, "no finite number"),
        ({"clip": torch.tensor(torch.nan)}, "clip of ReActFitted holds what is no finite number"),
        ({"other": torch.zeros(1)}, "has other tensors; got \\['other'\\]"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], words: str) -> None:
    assert ReActFitted.from_tensors(react_tensors(), classes=3, width=4).clip.isinf()
    with pytest.raises(BundleError, match=words):
        ReActFitted.from_tensors(react_tensors() | change, classes=3, width=4)


def test_a_missing_tensor_is_named() -> None:
    tensors = react_tensors()
    del tensors["clip"]
    with pytest.raises(BundleError, match="clip"):
        ReActFitted.from_tensors(tensors, classes=3, width=4)


def test_too_large_is_refused_before_it_is_read() -> None:
    endless = torch.zeros(1).expand(2**14, 2**14 + 1)  # takes no memory
    with pytest.raises(DataError, match="too large"):
        Head(endless, torch.zeros(2**14))


def test_without_a_class_is_the_classifier_that_never_had_it() -> None:
    weight, bias = torch.arange(12.0).reshape(3, 4), torch.arange(3.0)
    found = Head(weight, bias).without(1)
    assert torch.equal(found.weight, weight[[0, 2]])
    assert torch.equal(found.bias, bias[[0, 2]])
    bank = KNNFitted(weight, torch.tensor([2, 1, 1])).without(1)
    assert torch.equal(bank.bank, weight[:1])
    label, basis = torch.tensor([2, 1, 1]), torch.eye(4)[:, :2].contiguous()
    reduced = ReducedKNNFitted(weight, label, basis, weight[:, :2].contiguous(), torch.tensor([1, 2, 1])).without(1)
    assert torch.equal(reduced.bank, weight[:1])
    assert torch.equal(reduced.prototype, weight[1:2, :2])
    assert reduced.prototype_label.tolist() == [2]


@pytest.mark.parametrize("name", SCORES)
def test_hidden_scores_are_those_of_each_image_by_itself(name: str, world: Any) -> None:
    score, fit, _ = SCORES[name]
    fitted = fit(world.statistics)
    labels = world.labels[:20]
    found = hidden_scores(score, world.shown[:20], world.logits[:20], labels, fitted)
    for row, label in enumerate(labels.tolist()):
        rest = [c for c in range(5) if c != label]
        alone = score(world.shown[row : row + 1], world.logits[row : row + 1, rest], fitted.without(label))
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-3 if "knn" in name else 1e-5)


@pytest.mark.parametrize("name", ["energy", "max_logit", "knn", "knn_pca", "mahalanobis"])
def test_who_loses_its_class_is_never_less_strange(name: str, world: Any) -> None:
    """Those are minima over classes or images, or soft ones: fewer of them cannot be nearer."""
    score, fit, _ = SCORES[name]
    fitted = fit(world.statistics)
    labels = world.labels[:20]
    before = score(world.shown[:20], world.logits[:20], fitted)
    after = hidden_scores(score, world.shown[:20], world.logits[:20], labels, fitted)
    assert (after >= before - 1e-5).all()
    assert (after > before + 1e-3).any()


def test_hiding_takes_two_classes_and_a_label() -> None:
    one, two = torch.zeros(1, 1), torch.zeros(1, 2)
    with pytest.raises(DataError, match="two classes"):
        hidden_scores(max_logit, one, one, torch.tensor([0]), Head(one, torch.zeros(1)))
    with pytest.raises(DataError, match="two classes"):
        hidden_scores(max_logit, one, two, torch.tensor([-1]), Head(two.T, torch.zeros(2)))


def test_constants_cannot_be_changed(world: Any) -> None:
    fitted = SCORES["react"].fit(world.statistics)
    with pytest.raises(AttributeError):
        fitted.clip = torch.tensor(1.0)  # type: ignore[misc, attr-defined]
    assert replace(fitted, clip=torch.tensor(1.0)).clip == 1  # type: ignore[call-arg, attr-defined]
