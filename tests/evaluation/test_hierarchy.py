"""Numbers about a hierarchy, recomputed by hand, and what is fitted on validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import DataError
from vmmr.evaluation.hierarchy import delta_m, fit_beta, fit_thresholds, hierarchy_scores, level_scores
from vmmr.levels import Levels
from vmmr.models.decoding import NEVER, back_off, confidences_by_level, independent, joint_scores
from vmmr.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(["A", "A", "A", "B", "B", "C"], ["p", "q", "r", "s", "t", "u"])
LEVELS = Levels(CARS, ("make", "class"))


def test_how_make_and_model_go_together() -> None:
    labels = {"make": np.array([0, 0, 0, 1, 2, 1]), "class": np.array([0, 1, 2, 3, 5, -1])}
    answers = {"make": np.array([0, 0, 1, 1, 2, 0]), "class": np.array([0, 2, 3, 0, 5, 3])}
    # Row by row: both right; model wrong; both wrong but agreeing; model wrong, make right, disagreeing; both right.
    assert hierarchy_scores(answers, labels, LEVELS) == {"joint": 2 / 5, "consistency": 4 / 5, "severity": 2 / 3}
    right = {level: values[:5] for level, values in labels.items()}
    assert hierarchy_scores(right, right, LEVELS) == {"joint": 1.0, "consistency": 1.0, "severity": None}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 30))
def test_bounds_that_always_hold(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    fine = random.integers(0, 6, count)
    labels = {"make": CARS.make_of[fine], "class": fine}
    logits = {name: torch.from_numpy(random.normal(size=(count, width))) for name, width in LEVELS.widths.items()}
    by_level = level_scores(logits, labels)
    for scores in by_level.values():
        assert scores["top5"] >= scores["top3"] >= scores["top1"]
    answers = {level: found.numpy() for level, found in independent(logits).items()}
    together = hierarchy_scores(answers, labels, LEVELS)
    assert together["joint"] is not None
    assert together["joint"] <= min(scores["top1"] for scores in by_level.values()) + 1e-6
    said, _ = confidences_by_level(joint_scores(logits, LEVELS, 1.0), LEVELS)
    decoded = {"class": said["class"].numpy(), "make": CARS.make_of[said["class"].numpy()]}
    assert hierarchy_scores(decoded, labels, LEVELS)["consistency"] == 1.0


def test_with_one_model_a_make_joint_is_the_make() -> None:
    levels = Levels(Taxonomy.from_rows(["A", "B", "C"], ["x", "y", "z"]), ("make", "class"))
    labels = np.array([0, 1, 2, 1])
    answers = np.array([0, 2, 2, 0])
    found = hierarchy_scores({"make": answers, "class": answers}, {"make": labels, "class": labels}, levels)
    assert found == {"joint": 0.5, "consistency": 1.0, "severity": 0.0}


def test_levels_count_the_images_labelled_there() -> None:
    logits = {"make": torch.eye(3)[[0, 1, 1, 2]], "year_value": torch.tensor([[1.2], [1.0], [0.0], [0.95]])}
    labels = {"make": np.array([0, 1, 2, -1]), "year_value": np.array([2012, 2013, -1, 2009])}
    found = level_scores(logits, labels)
    assert found["make"] == pytest.approx({"top1": 2 / 3, "top3": 1.0, "top5": 1.0, "macro": 2 / 3, "images": 3})
    assert found["year_value"] == {"mean_error": pytest.approx((0 + 3 + 0.5) / 3, rel=1e-6), "images": 3}
    assert level_scores(logits, {name: np.full(4, -1) for name in logits}) == {}


def test_the_gain_over_single_tasks() -> None:
    assert delta_m({"a": 0.5, "b": 0.9}, {"a": 0.5, "b": 0.9}) == 0
    multi, single = {"a": 0.6, "err": 2.0, "more": 1.0}, {"a": 0.5, "err": 4.0}
    assert delta_m(multi, single, ("err",)) == pytest.approx((0.2 + 0.5) / 2)


def _fitting(make_quality: float, count: int = 400) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """A weak classifier of models and one of makes whose logits carry the truth with this strength."""
    random = np.random.default_rng(0)
    fine = random.integers(0, 6, count)
    model = random.normal(size=(count, 6)) + 1.0 * np.eye(6)[fine]
    make = random.normal(size=(count, 3)) + make_quality * np.eye(3)[CARS.make_of[fine]]
    return {"make": torch.from_numpy(make * make_quality), "class": torch.from_numpy(model)}, fine


def test_beta_is_high_for_a_make_head_that_knows_and_none_for_one_that_guesses() -> None:
    knowing, labels = _fitting(3.0)
    beta = fit_beta(knowing, labels, LEVELS)
    assert 0.3 < beta < 4
    right = [(joint_scores(knowing, LEVELS, b).argmax(1).numpy() == labels).mean() for b in (0.0, beta)]
    assert right[1] > right[0] + 0.1
    guessing = {**knowing, "make": torch.from_numpy(np.random.default_rng(1).normal(size=(400, 3)))}
    assert fit_beta(guessing, labels, LEVELS) < 0.1
    assert fit_beta({"class": knowing["class"]}, labels, Levels(CARS, ("class",))) == 0
    some = labels.copy()
    some[200:] = -1
    half = {level: logits[:200] for level, logits in knowing.items()}
    assert fit_beta(knowing, some, LEVELS) == pytest.approx(fit_beta(half, labels[:200], LEVELS))
    with pytest.raises(DataError):
        fit_beta(knowing, np.full(400, -1), LEVELS)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.5, 0.8, 0.95]))
def test_what_is_said_is_as_precise_as_asked(seed: int, precision: float) -> None:
    random = np.random.default_rng(seed)
    fine = random.integers(0, 6, 60)
    logits = {
        "make": torch.from_numpy(random.normal(size=(60, 3))),
        "class": torch.from_numpy(random.normal(size=(60, 6)) + 2 * np.eye(6)[fine]),
    }
    said, sure = confidences_by_level(joint_scores(logits, LEVELS, 0.2), LEVELS)
    truth = {"make": torch.from_numpy(CARS.make_of[fine]), "class": torch.from_numpy(fine)}
    right = {level: said[level] == truth[level] for level in LEVELS.tree}
    thresholds = fit_thresholds(sure, right, LEVELS, precision)
    depth = back_off(sure, thresholds)
    for place, level in enumerate(LEVELS.tree):
        there = right[level][depth == place]
        assert thresholds[level] == NEVER or there.double().mean() >= precision - 1e-9
        if thresholds[level] == NEVER:
            assert len(there) == 0
    # No lower threshold of the finest level would do.
    lower = [c for c in sure["class"].tolist() if c < thresholds["class"]]
    for cut in lower:
        assert right["class"][sure["class"] >= cut].double().mean() < precision
