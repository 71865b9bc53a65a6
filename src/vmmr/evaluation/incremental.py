"""A stream of tasks: what a network answers after each of them, on the test images of all.

Task t has classes[t] classes, and labels go on from task to task. A `Stage` is what the network says after a task of
every test image, N of them, those of classes yet to come included. All shares are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmmr.errors import DataError
from vmmr.evaluation.openset import auroc

__all__ = [
    "Stage",
    "accuracy_matrix",
    "forgetting",
    "future_auroc",
    "lost_within",
    "seen_accuracy",
    "stream_scores",
    "task_accuracy",
    "tasks_of",
]


class Stage(NamedTuple):
    """answers int64 [N]: labels. tasks int64 [N]: those that answered. unknown [N]: higher = stranger."""

    answers: NDArray[np.int64]
    tasks: NDArray[np.int64]
    unknown: NDArray[np.float64]


def tasks_of(labels: ArrayLike, classes: Sequence[int]) -> NDArray[np.int64]:
    """The task of each label.

    >>> tasks_of([0, 2, 3], (2, 1, 1)).tolist()
    [0, 1, 2]
    """
    return np.searchsorted(np.cumsum(classes), np.asarray(labels), side="right").astype(np.int64)


def accuracy_matrix(stages: Sequence[Stage], labels: ArrayLike, classes: Sequence[int]) -> NDArray[np.float64]:
    """[T, T]: after task t (row), the share of images of task j (column) that are answered right; NaN for j > t.

    Raises DataError where a task has no test image, or stages and tasks differ in number.
    """
    truth = np.asarray(labels)
    task = tasks_of(truth, classes)
    images = np.bincount(task, minlength=len(classes))
    if len(stages) != len(classes) or len(images) != len(classes) or not images.all():
        raise DataError(
            "measuring a stream takes a stage and test images for every task",
            got=f"{len(stages)} stages, {images.tolist()} images of {len(classes)} tasks",
        )
    found = np.full((len(classes), len(classes)), np.nan)
    for row, stage in enumerate(stages):
        for column in range(row + 1):
            own = task == column
            found[row, column] = (stage.answers[own] == truth[own]).mean()
    return found


def seen_accuracy(stages: Sequence[Stage], labels: ArrayLike, classes: Sequence[int]) -> NDArray[np.float64]:
    """[T]: after each task, the share of all images of classes seen so far that are answered right. The mean over
    stages is the average incremental accuracy (Rebuffi et al., arXiv 1611.07725)."""
    truth = np.asarray(labels)
    task = tasks_of(truth, classes)
    return np.array([(s.answers == truth)[task <= row].mean() for row, s in enumerate(stages)])


def forgetting(matrix: ArrayLike) -> float:
    """The mean over all tasks but the last of how far accuracy has fallen in the end from its best before; may be
    negative. 0 for a single task. Source: Chaudhry et al., ECCV 2018 (arXiv 1801.10112).

    >>> forgetting([[0.9, np.nan], [0.6, 0.8]])
    0.30000000000000004
    """
    table = np.asarray(matrix, dtype=np.float64)
    if len(table) < 2:
        return 0.0
    return float((np.nanmax(table[:-1, :-1], axis=0) - table[-1, :-1]).mean())


def task_accuracy(stages: Sequence[Stage], labels: ArrayLike, classes: Sequence[int]) -> NDArray[np.float64]:
    """[T]: after each task, the share of images of classes seen so far that were answered by their own task. It bounds
    the accuracy."""
    task = tasks_of(labels, classes)
    return np.array([(s.tasks == task)[task <= row].mean() for row, s in enumerate(stages)])


def lost_within(stages: Sequence[Stage], labels: ArrayLike, classes: Sequence[int]) -> float:
    """Of the images that were right when their task was new, and whose own task still answers in the end, the share
    that is wrong now: forgetting that is not a matter of routing. 0 where there is none; the last task is left out.
    """
    truth = np.asarray(labels)
    task = tasks_of(truth, classes)
    was_right = np.array([stages[t].answers[i] == truth[i] for i, t in enumerate(task)], dtype=np.bool_)
    kept = was_right & (stages[-1].tasks == task) & (task < len(stages) - 1)
    return float((stages[-1].answers[kept] != truth[kept]).mean()) if kept.any() else 0.0


def future_auroc(stages: Sequence[Stage], labels: ArrayLike, classes: Sequence[int]) -> NDArray[np.float64]:
    """[T - 1]: after each task but the last, the chance that an image of a class yet to come is stranger than one of a
    class seen."""
    task = tasks_of(labels, classes)
    return np.array([auroc(s.unknown[task <= row], s.unknown[task > row]) for row, s in enumerate(stages[:-1])])


def stream_scores(
    stages: Sequence[Stage], labels: ArrayLike, classes: Sequence[int], parameters: Sequence[int]
) -> dict[str, Any]:
    """All of it, as JSON holds it. parameters: of the network after each task.

    average, final: of `seen_accuracy`; forgetting; task, the last of `task_accuracy`; lost_within; auroc, the mean of
    `future_auroc`; growth, the mean number of parameters that a task added; and by stage accuracies, matrix, tasks,
    aurocs, parameters. auroc and growth are 0 for a single task.
    """
    matrix = accuracy_matrix(stages, labels, classes)
    seen, routed = seen_accuracy(stages, labels, classes), task_accuracy(stages, labels, classes)
    future = future_auroc(stages, labels, classes)
    return {
        "average": float(seen.mean()),
        "final": float(seen[-1]),
        "forgetting": forgetting(matrix),
        "task": float(routed[-1]),
        "lost_within": lost_within(stages, labels, classes),
        "auroc": float(future.mean()) if len(future) else 0.0,
        "growth": float(np.diff(parameters).mean()) if len(parameters) > 1 else 0.0,
        "accuracies": seen.tolist(),
        "matrix": [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()],
        "tasks": routed.tolist(),
        "aurocs": future.tolist(),
        "parameters": [int(count) for count in parameters],
    }
