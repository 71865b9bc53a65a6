"""One pass equals two, in any order and any batches, and what cannot be learned from is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vmmr.errors import ConfigError, DataError
from vmmr.unknown import Statistics, gather

FIELDS = ("count", "mean", "centre", "within", "total")


def batches(features: Tensor, labels: Tensor, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for rows in order.split(size):
        yield features[rows], labels[rows], rows


def drawn(seed: int, images: int = 60, width: int = 4, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(images, width, generator=random) + offset
    return features, torch.arange(images) % 3


def head(width: int = 4) -> tuple[Tensor, Tensor]:
    return torch.ones(3, width), torch.zeros(3)


def two_pass(features: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Means first, then what is left of each image: naive, in numpy."""
    x, y = features.double().numpy(), labels.numpy()
    mean = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    rest, whole = x - mean[y], x - x.mean(axis=0)
    return {
        "count": np.bincount(y).astype(float),
        "mean": mean,
        "centre": x.mean(axis=0),
        "within": rest.T @ rest / len(x),
        "total": whole.T @ whole / len(x),
    }


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([0.0, 3.0, 1000.0]))
def test_one_pass_equals_two(seed: int, size: int, offset: float) -> None:
    features, labels = drawn(seed, offset=offset)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed + 1))
    found = gather(batches(features, labels, order, size), *head())
    for name, expected in two_pass(features, labels).items():
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=1e-9, atol=1e-9, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 80))
def test_neither_order_nor_batches_decide_what_the_bank_holds(seed: int, size: int, bank: int) -> None:
    features, labels = drawn(seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    one = gather(batches(features, labels, torch.arange(60), 60), *head(), bank=bank, seed=3)
    other = gather(batches(features, labels, order, size), *head(), bank=bank, seed=3)
    assert len(one.bank) == min(bank, 60)
    torch.testing.assert_close(other.bank, one.bank, rtol=0, atol=0)
    assert torch.equal(other.bank_label, one.bank_label)
    rows = [int((features == row).all(dim=1).nonzero()) for row in one.bank]
    assert len(set(rows)) == len(rows)
    assert torch.equal(labels[rows], one.bank_label)


def test_another_seed_draws_another_bank_and_every_image_alike() -> None:
    features, labels = torch.arange(60.0)[:, None].expand(60, 4).contiguous(), torch.arange(60) % 3
    banks = [
        gather([(features, labels, torch.arange(60))], *head(), bank=20, seed=seed).bank[:, 0].long()
        for seed in range(200)
    ]
    times = torch.bincount(torch.cat(banks), minlength=60)
    assert not torch.equal(banks[0].sort().values, banks[1].sort().values)
    # 200 draws of 20 in 60: each about 66.7 times, with a standard deviation of 6.7.
    assert int(times.min()) > 66.7 - 5 * 6.7
    assert int(times.max()) < 66.7 + 5 * 6.7


def test_a_percentile_of_all_activations_is_exact_where_the_bank_holds_all() -> None:
    features, labels = drawn(0)
    found = gather([(features, labels, torch.arange(60))], *head())
    for p in (0, 37.5, 90, 100):
        assert found.percentile(p) == np.percentile(features.numpy(), p)
    some = gather([(features, labels, torch.arange(60))], *head(), bank=30)
    assert abs(some.percentile(50) - found.percentile(50)) < 0.3
    with pytest.raises(ConfigError, match="percentile"):
        found.percentile(101)


def test_the_logits_of_the_bank_are_the_classifiers() -> None:
    features, labels = drawn(0)
    weight, bias = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 2.0, 3.0])
    found = gather([(features, labels, torch.arange(60))], weight, bias)
    expected = torch.nn.functional.linear(found.bank, weight, bias)
    torch.testing.assert_close(found.bank_logits.float(), expected)


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (torch.full((3, 4), torch.nan), torch.arange(3), "finite"),
        (torch.zeros(3, 5), torch.arange(3), "fit the classifier"),
        (torch.zeros(3, 4), torch.arange(2), "fit the classifier"),
        (torch.zeros(3, 4), torch.tensor([0, 1, 3]), "none of the classifier's"),
        (torch.zeros(3, 4), torch.tensor([0, 1, -1]), "none of the classifier's"),
        (torch.zeros(3, 4), torch.tensor([0, 1, 1]), "1 of 3 without"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(features: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        gather([(features, labels, torch.arange(3))], *head())


def test_no_image_and_no_bank_are_refused() -> None:
    with pytest.raises(DataError, match="3 of 3 without"):
        gather([], *head())
    with pytest.raises(ConfigError, match="bank"):
        gather([], *head(), bank=0)


def test_what_was_given_is_not_written_into() -> None:
    features, labels = drawn(0)
    before = features.clone()
    found: Statistics = gather([(features, labels, torch.arange(60))], *head())
    assert torch.equal(features, before)
    assert all(getattr(found, name).dtype == torch.float64 for name in FIELDS)
