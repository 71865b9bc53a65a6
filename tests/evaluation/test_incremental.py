"""Measures of a stream, recomputed in loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from vmmr.errors import DataError
from vmmr.evaluation.incremental import (
    Stage,
    accuracy_matrix,
    forgetting,
    future_auroc,
    lost_within,
    seen_accuracy,
    stream_scores,
    task_accuracy,
    tasks_of,
)

CLASSES = (3, 1, 2)
TASK = {0: 0, 1: 0, 2: 0, 3: 1, 4: 2, 5: 2}


def drawn(seed: int, images: int = 30) -> tuple[list[Stage], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(6), random.integers(6, size=images - 6)])
    stages = []
    for _ in CLASSES:
        answers = np.where(random.random(images) < 0.5, labels, random.integers(6, size=images))
        tasks = np.where(random.random(images) < 0.7, tasks_of(answers, CLASSES), random.integers(3, size=images))
        stages.append(Stage(answers, tasks, random.normal(size=images)))
    return stages, labels


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_against_loops(seed: int) -> None:
    stages, labels = drawn(seed)
    table = np.full((3, 3), np.nan)
    seen, routed = [], []
    for t, stage in enumerate(stages):
        for j in range(t + 1):
            hits = [stage.answers[i] == label for i, label in enumerate(labels) if TASK[label] == j]
            table[t, j] = sum(hits) / len(hits)
        rows = [i for i, label in enumerate(labels) if TASK[label] <= t]
        seen.append(sum(stage.answers[i] == labels[i] for i in rows) / len(rows))
        routed.append(sum(stage.tasks[i] == TASK[labels[i]] for i in rows) / len(rows))
    np.testing.assert_allclose(accuracy_matrix(stages, labels, CLASSES), table)
    np.testing.assert_allclose(seen_accuracy(stages, labels, CLASSES), seen)
    np.testing.assert_allclose(task_accuracy(stages, labels, CLASSES), routed)
    fallen = [max(table[t][j] for t in range(j, 2)) - table[2][j] for j in range(2)]
    assert forgetting(table) == pytest.approx(np.mean(fallen))
    kept = [
        i
        for i, label in enumerate(labels)
        if TASK[label] < 2 and stages[TASK[label]].answers[i] == label and stages[2].tasks[i] == TASK[label]
    ]
    lost = np.mean([stages[2].answers[i] != labels[i] for i in kept]) if kept else 0.0
    assert lost_within(stages, labels, CLASSES) == pytest.approx(lost)
    future = [roc_auc_score([TASK[x] > t for x in labels], stages[t].unknown) for t in range(2)]
    np.testing.assert_allclose(future_auroc(stages, labels, CLASSES), future)

    document = stream_scores(stages, labels, CLASSES, [100, 110, 130])
    assert json.loads(json.dumps(document)) == document
    assert (document["average"], document["final"]) == (pytest.approx(np.mean(seen)), pytest.approx(seen[-1]))
    assert document["forgetting"] == pytest.approx(np.mean(fallen))
    assert (document["task"], document["growth"]) == (pytest.approx(routed[-1]), 15.0)
    assert document["auroc"] == pytest.approx(np.mean(future))
    assert document["matrix"][0][1:] == [None, None]


def test_tasks_of_unequal_size() -> None:
    assert tasks_of(np.arange(6), CLASSES).tolist() == [TASK[label] for label in range(6)]


def test_nothing_forgotten_everything_forgotten_and_more_learned() -> None:
    labels = np.arange(6)
    right = Stage(labels, tasks_of(labels, CLASSES), np.zeros(6))
    best = stream_scores([right] * 3, labels, CLASSES, [1, 1, 1])
    assert (best["average"], best["final"], best["forgetting"], best["lost_within"]) == (1, 1, 0, 0)
    assert (best["task"], best["auroc"], best["growth"]) == (1, 0.5, 0)
    last = Stage(np.full(6, 5), np.full(6, 2), np.zeros(6))
    worst = stream_scores([right, right, last], labels, CLASSES, [1, 1, 1])
    assert (worst["forgetting"], worst["lost_within"], worst["final"]) == (1, 0, 1 / 6)
    # Routed right, answered wrong: two of the three classes of the first task.
    within = Stage(np.array([0, 0, 0, 3, 4, 5]), tasks_of(labels, CLASSES), np.zeros(6))
    assert lost_within([right, right, within], labels, CLASSES) == 0.5
    assert forgetting([[0.5, np.nan], [0.75, 1.0]]) == -0.25


def test_a_single_task() -> None:
    labels = np.arange(3)
    document = stream_scores([Stage(labels, np.zeros(3, dtype=np.int64), np.zeros(3))], labels, (3,), [7])
    assert (document["final"], document["forgetting"], document["auroc"], document["growth"]) == (1, 0, 0, 0)


def test_what_cannot_be_measured_is_refused() -> None:
    stages, labels = drawn(0)
    with pytest.raises(DataError, match="2 stages"):
        accuracy_matrix(stages[:2], labels, CLASSES)
    with pytest.raises(DataError, match="images of 3 tasks"):
        stream_scores(stages, labels[:3] * 0, CLASSES, [1, 1, 1])
    with pytest.raises(DataError, match="images of 2 tasks"):
        accuracy_matrix(stages[:2], labels, (3, 1))
