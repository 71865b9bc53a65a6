"""Confusions and worst classes, recounted with loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmmr.evaluation.confusion import confusions, mistakes, worst_classes
from vmmr.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(
    ["Audi", "Audi", "Audi", "BMW", "VW"], ["A4", "A4", "A6", "M3", "Up"], [2008, 2012, 2012, 2010, 2015]
)


def _answers(images: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    answers, labels = np.random.default_rng(seed).integers(0, len(CARS), (2, images))
    return answers, labels


@given(st.integers(1, 60), st.integers(0, 1000), st.integers(1, 25))
def test_confusions_against_a_count(images: int, seed: int, most: int) -> None:
    answers, labels = _answers(images, seed)
    found = confusions(answers, labels, CARS, most=most)
    pairs = Counter((int(b), int(a)) for a, b in zip(answers, labels, strict=True) if a != b)
    assert len(found) == min(most, len(pairs))
    assert [item["count"] for item in found] == sorted(pairs.values(), reverse=True)[:most]
    for item in found:
        truth, answer = CARS.names.index(item["truth"]), CARS.names.index(item["answer"])
        assert pairs[truth, answer] == item["count"]
        assert item["share"] == pytest.approx(item["count"] / labels.tolist().count(truth))
        assert item["same_make"] == (CARS.classes[truth].make == CARS.classes[answer].make)


@given(st.integers(1, 60), st.integers(0, 1000))
def test_worst_classes_against_a_count(images: int, seed: int) -> None:
    answers, labels = _answers(images, seed)
    found = worst_classes(answers, labels, CARS, most=3)
    naive = {}
    for label in set(labels.tolist()):
        said = [int(a) for a, b in zip(answers, labels, strict=True) if b == label]
        if said.count(label) < len(said):
            naive[CARS.names[label]] = (said.count(label) / len(said), len(said))
    assert [item["top1"] for item in found] == pytest.approx(sorted(top1 for top1, _ in naive.values())[:3])
    for item in found:
        assert (item["top1"], item["images"]) == pytest.approx(naive[item["name"]])
        label, answer = CARS.names.index(item["name"]), CARS.names.index(item["mistaken_for"])
        assert (labels[item["row"]], answers[item["row"]]) == (label, answer)
        wrong = Counter(int(a) for a, b in zip(answers, labels, strict=True) if b == label != a)
        assert wrong[answer] == max(wrong.values())


def test_what_mistakes_have_in_common_with_the_truth() -> None:
    labels = np.array([0, 0, 0, 3, 4])
    answers = np.array([0, 1, 2, 4, 3])
    found = {"count": 4, "same_make": 0.5, "same_model": 0.25, "lookalike": None}
    assert mistakes(answers, labels, CARS) == found
    assert mistakes(answers, labels, CARS.with_equivalent([[0, 2], [3, 4]])) == {**found, "lookalike": 0.75}


def test_without_mistakes_there_is_nothing_to_tell() -> None:
    labels = np.array([0, 1, 2])
    assert confusions(labels, labels, CARS) == []
    assert worst_classes(labels, labels, CARS) == []
    assert mistakes(labels, labels, CARS) == {"count": 0, "same_make": None, "same_model": None, "lookalike": None}
