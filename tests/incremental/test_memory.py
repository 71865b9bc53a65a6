"""The memory keeps within its budget, and what it keeps does not depend on what it will keep."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import ConfigError, DataError
from vmmr.incremental.memory import Memory, Pick, at_random, closest_to_mean, herding, per_class


def drawn(count: int, seed: int, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def shuffled(features: torch.Tensor, count: int) -> torch.Tensor:
    return at_random(features, count, torch.Generator().manual_seed(5))


PICKS: list[Pick] = [herding, closest_to_mean, shuffled]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 15), st.integers(0, 10**6))
def test_herding_is_that_of_icarl(images: int, count: int, seed: int) -> None:
    features = drawn(images, seed).double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = herding(torch.from_numpy(features), count).tolist()
    assert len(set(found)) == len(found) == min(count, images)
    for place, row in enumerate(found):  # of two that are equally near, as two images are to their mean, either
        distances = {
            other: np.linalg.norm(unit.mean(axis=0) - unit[[*found[:place], other]].mean(axis=0))
            for other in range(images)
            if other not in found[:place]
        }
        assert distances[row] <= min(distances.values()) + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from(PICKS))
def test_fewer_are_the_first_of_more(images: int, seed: int, pick: Pick) -> None:
    features = drawn(images, seed)
    every = pick(features, images).tolist()
    assert sorted(every) == [*range(images)]
    for count in range(images + 2):
        assert pick(features, count).tolist() == every[:count]


def test_closest_to_mean_by_hand() -> None:
    features = torch.tensor([[0.0, 1.0], [2.0, 2.0], [1.0, 0.0], [1.0, 0.9]])
    assert closest_to_mean(features, 4).tolist() in ([1, 3, 0, 2], [1, 3, 2, 0])
    # The nearest to the mean first; the next such that their own mean is near it.
    assert herding(features, 2).tolist()[0] == 1


def test_one_label_after_another() -> None:
    labels = torch.tensor([7, 2, 7, 7, 2])
    rows = per_class(labels, drawn(5, 0), 2)
    assert labels[rows].tolist() == [2, 2, 7, 7]
    assert rows[2:].tolist() == torch.tensor([0, 2, 3])[herding(drawn(5, 0)[[0, 2, 3]], 2)].tolist()
    assert per_class(labels[:0], drawn(0, 0), 2).tolist() == []


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 40),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    st.sampled_from(PICKS),
    st.integers(0, 10**6),
)
def test_never_above_budget_and_even(budget: int, tasks: list[list[int]], pick: Pick, seed: int) -> None:
    """Tasks of classes of so many images each; whatever is kept was kept before, in the same order."""
    memory = Memory(budget, pick=pick)
    start, item = 0, 0
    before: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    for sizes in tasks:
        labels = torch.repeat_interleave(torch.arange(start, start + len(sizes)), torch.tensor(sizes))
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
        items = torch.arange(item, item + len(labels))
        old = memory
        memory = memory.with_classes(items, labels, drawn(len(labels), seed))
        counts |= {start + place: size for place, size in enumerate(sizes)}
        start, item = start + len(sizes), item + len(labels)
        assert len(memory) == len(memory.items) <= budget
        assert memory.classes == start
        assert memory.quota == budget // start
        assert old.classes == start - len(sizes)
        kept = {label: memory.items[memory.labels == label].tolist() for label in range(start)}
        for label, size in counts.items():
            assert len(kept[label]) == min(size, budget // start)
            assert label not in before or kept[label] == before[label][: len(kept[label])]
        assert memory.labels.tolist() == sorted(memory.labels.tolist())
        own = {label: items[labels == label].tolist() for label in torch.unique(labels).tolist()}
        assert all(set(kept[label]) <= set(rows) for label, rows in own.items())
        before = kept


def test_images_are_kept_as_they_are() -> None:
    pixels = torch.arange(6 * 12, dtype=torch.uint8).reshape(6, 3, 2, 2)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    memory = Memory(2, pick=partial(at_random, generator=torch.Generator())).with_classes(pixels, labels, drawn(6, 0))
    assert memory.items.dtype == torch.uint8
    assert all(
        any(torch.equal(kept, image) for image in pixels[labels == label])
        for kept, label in zip(memory.items, memory.labels, strict=True)
    )


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget=-1"):
        Memory(-1)
    memory = Memory(4).with_classes(torch.arange(2), torch.tensor([0, 1]), drawn(2, 0))
    with pytest.raises(DataError, match="already in memory"):
        memory.with_classes(torch.arange(2), torch.tensor([1, 2]), drawn(2, 0))
