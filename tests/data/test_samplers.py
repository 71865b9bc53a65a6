"""Samplers: exact shares, nothing lost, and the same batches however a run came to an epoch."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.data.samplers import EpochSampler, balanced, pk_batches, shuffled
from vmmr.errors import ConfigError

labels_of = st.lists(st.integers(-2, 6), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 9), st.integers(0, 9))
def test_shuffled_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    drawn = shuffled(n, seed=seed, epoch=epoch)
    assert sorted(drawn.tolist()) == list(range(n))
    assert drawn.dtype == np.int64
    assert np.array_equal(drawn, shuffled(n, seed=seed, epoch=epoch))


def test_seed_and_epoch_are_two_things() -> None:
    draws = [shuffled(100, seed=s, epoch=e).tolist() for s in range(4) for e in range(4)]
    assert len({tuple(draw) for draw in draws}) == 16


@settings(deadline=None)
@given(labels_of, st.integers(0, 9), st.none() | st.integers(0, 100))
def test_balanced_gives_every_class_its_share(labels: np.ndarray, epoch: int, size: int | None) -> None:
    drawn = balanced(labels, seed=1, epoch=epoch, size=size)
    assert drawn.shape == (len(labels) if size is None else size,)
    counts = [int((labels[drawn] == label).sum()) for label in np.unique(labels)]
    assert sum(counts) == len(drawn)
    assert max(counts) - min(counts) <= 1


def test_balanced_is_even_inside_a_class_and_fair_between() -> None:
    labels = np.array([0] * 10 + [1] * 1 + [2] * 5)
    drawn = np.concatenate([balanced(labels, seed=0, epoch=e) for e in range(3000)])
    share = np.bincount(drawn, minlength=16) / len(drawn)
    expected = np.array([1 / 30] * 10 + [1 / 3] + [1 / 15] * 5)
    assert np.abs(share / expected - 1).max() < 0.1


@settings(deadline=None)
@given(labels_of, st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_pk_batches_hold_p_classes_of_k(labels: np.ndarray, p: int, k: int, epoch: int) -> None:
    kinds, counts = np.unique(labels, return_counts=True)
    if p > len(kinds):
        with pytest.raises(ConfigError):
            pk_batches(labels, p, k, seed=0, epoch=epoch)
        return
    batches = pk_batches(labels, p, k, seed=0, epoch=epoch)
    assert batches.shape == (max(len(labels) // (p * k), 1), p * k)
    for batch in batches:
        rows = batch.reshape(p, k)
        assert all(len(set(labels[row].tolist())) == 1 for row in rows)
        assert len({int(labels[row[0]]) for row in rows}) == p
        for row in rows:
            have = int(counts[kinds == labels[row[0]]][0])
            assert len(set(row.tolist())) == min(k, have)


def test_pk_batches_show_classes_and_images_alike() -> None:
    labels = np.repeat(np.arange(10), 12)
    batches = pk_batches(labels, 5, 4, seed=0, epoch=0)
    assert np.bincount(labels[batches.ravel()]).tolist() == [12] * 10
    assert np.bincount(batches.ravel(), minlength=120).tolist() == [1] * 120
    few = pk_batches(np.array([0, 0, 0, 1]), 2, 2, seed=0, epoch=0)
    assert sorted(few.ravel().tolist())[-2:] == [3, 3]


@pytest.mark.parametrize("labels", [[], [[0, 1]]])
def test_labels_must_be_a_list(labels: list[object]) -> None:
    with pytest.raises(ConfigError, match="labels"):
        balanced(labels, seed=0, epoch=0)
    with pytest.raises(ConfigError, match="labels"):
        pk_batches(labels, 1, 1, seed=0, epoch=0)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_an_epoch_shows_everything_once(n: int, batch_size: int, drop_last: bool) -> None:
    if drop_last and n < batch_size:
        with pytest.raises(ConfigError, match="full batch"):
            EpochSampler(n, batch_size, seed=0)
        return
    sampler = EpochSampler(n, batch_size, seed=3, drop_last=drop_last)
    batches = list(sampler.batches(5))
    assert len(batches) == len(sampler)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen) == (n - n % batch_size if drop_last else n)
    assert np.array_equal(seen, shuffled(n, seed=3, epoch=5)[: len(seen)])


@pytest.mark.parametrize("mode", ["shuffled", "balanced"])
def test_a_resumed_epoch_goes_on_where_it_was(mode: str) -> None:
    labels = np.arange(50) % 7 if mode == "balanced" else None
    sampler = EpochSampler(50, 8, seed=1, labels=labels, mode=mode)  # type: ignore[arg-type]
    whole = list(sampler.batches(2))
    for step in range(len(sampler) + 1):
        rest = list(sampler.batches(2, start_step=step))
        assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[step:]]


def test_processes_share_a_batch() -> None:
    alone = list(EpochSampler(64, 12, seed=1).batches(0))
    parts = [list(EpochSampler(64, 12, seed=1, rank=r, world=3).batches(0)) for r in range(3)]
    for step, batch in enumerate(alone):
        assert [part[step].tolist() for part in parts] == [batch[r::3].tolist() for r in range(3)]


@pytest.mark.parametrize(
    "settings_",
    [
        {"batch_size": 0},
        {"batch_size": 3, "world": 2},
        {"rank": 2, "world": 2},
        {"rank": -1},
        {"world": 2, "drop_last": False},
        {"mode": "other"},
        {"mode": "balanced"},
        {"labels": np.zeros(10)},
        {"labels": np.zeros(9), "mode": "balanced"},
    ],
)
def test_contradictions_are_refused(settings_: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EpochSampler(**({"n": 10, "batch_size": 4, "seed": 0} | settings_))  # type: ignore[arg-type]


def test_a_million_rows_take_less_than_a_second() -> None:
    labels = np.arange(1_000_000) % 2000
    for draw in (
        lambda: shuffled(1_000_000, seed=0, epoch=0),
        lambda: balanced(labels, seed=0, epoch=0),
        lambda: pk_batches(labels, 16, 4, seed=0, epoch=0),
    ):
        start = time.process_time()
        draw()
        assert time.process_time() - start < 1
