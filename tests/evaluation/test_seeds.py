from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.cli import main
from vmmr.evaluation.seeds import mean_interval, over_trainings

Make = Callable[..., dict[str, Any]]


def _trainings(document: Make, count: int = 3) -> list[dict[str, Any]]:
    return [document(seed=k, clean=0.85 + 0.03 * k) for k in range(count)]


def test_the_interval_joins_trainings_and_images() -> None:
    values, intervals = [0.50, 0.54, 0.58], [[0.48, 0.52], [0.52, 0.56], [0.56, 0.60]]
    low, high = mean_interval(values, intervals)
    half = math.hypot(4.302653 * 0.04 / math.sqrt(3), 0.02)  # t at 97.5 % with two degrees of freedom
    assert (low, high) == (pytest.approx(0.54 - half, abs=1e-6), pytest.approx(0.54 + half, abs=1e-6))


def test_equal_trainings_leave_the_interval_of_the_images() -> None:
    assert mean_interval([0.7] * 4, [[0.6, 0.8]] * 4) == pytest.approx([0.6, 0.8])
    assert mean_interval([0.7], [[0.6, 0.8]]) == [0.6, 0.8]


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=5), half=st.floats(0, 0.1))
def test_the_interval_holds_the_mean_and_is_no_narrower_than_either_part(values: list[float], half: float) -> None:
    low, high = mean_interval(values, [[max(v - half, 0), min(v + half, 1)] for v in values])
    mean = float(np.mean(values))
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    assert mean_interval(values[::-1], [[max(v - half, 0), min(v + half, 1)] for v in values[::-1]]) == pytest.approx(
        [low, high]
    )


def test_a_nominal_interval_covers_the_recipes_mean() -> None:
    random = np.random.default_rng(0)
    images, trainings, rounds, covered = 400, 3, 400, 0
    for _ in range(rounds):
        rates = random.normal(0.6, 0.03, trainings)  # trainings differ
        difficulty = random.random(images)  # and share their images
        values = [float((difficulty < rate).mean()) for rate in rates]
        errors = [1.96 * math.sqrt(v * (1 - v) / images) for v in values]
        low, high = mean_interval(values, [[v - e, v + e] for v, e in zip(values, errors, strict=True)])
        covered += low <= 0.6 <= high
    assert 0.93 <= covered / rounds <= 1


def test_measures_are_means_and_spread_is_over_trainings(document: Make) -> None:
    trainings = _trainings(document)
    before = copy.deepcopy(trainings)
    joined = over_trainings(trainings)
    assert trainings == before
    assert joined["trainings"] == 3
    for name, scores in joined["conditions"].items():
        for key in ("top1", "top5", "macro", "make", "nll", "ece", "ece_calibrated"):
            values = [t["conditions"][name][key] for t in trainings]
            assert scores[key] == pytest.approx(sum(values) / 3)
        top1 = np.array([t["conditions"][name]["top1"] for t in trainings])
        assert scores["spread"] == pytest.approx(math.sqrt(((top1 - top1.mean()) ** 2).sum() / 2))
        assert scores["interval"][0] <= scores["top1"] <= scores["interval"][1]
    for name, line in joined["summary"].items():
        assert line["value"] == pytest.approx(np.mean([t["summary"][name]["value"] for t in trainings]))
    assert joined["calibration"]["temperature"] == pytest.approx(1.37)
    assert not {"confusions", "worst_classes", "restoration"} & joined.keys()
    json.dumps(joined)


def test_bins_join_the_answers_of_all_trainings(document: Make) -> None:
    trainings = _trainings(document)
    joined = over_trainings(trainings)["calibration"]["bins"]
    every = [row["share"] for t in trainings for row in t["calibration"]["bins"]]
    assert sum(row["share"] for row in joined) == pytest.approx(sum(every) / 3)
    for k, row in enumerate(joined):
        parts = [t["calibration"]["bins"][k] for t in trainings]
        right = sum(part["share"] * part["accuracy"] for part in parts) / 3
        assert row["share"] * row["accuracy"] == pytest.approx(right)
        assert (row["low"], row["high"]) == (parts[0]["low"], parts[0]["high"])


def test_one_training_is_left_as_it_is(document: Make) -> None:
    one = document(seed=4)
    assert over_trainings([one]) == one


def test_compare_shows_trainings_of_one_name_as_one_model(
    tmp_path: Path, document: Make, parse: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = _trainings(document)
    for k, one in enumerate(trainings):
        (tmp_path / f"{k}.json").write_text(json.dumps(one))
    other = document(seed=9, clean=0.5)
    (tmp_path / "other.json").write_text(json.dumps(other))
    files = [str(tmp_path / f"{name}.json") for name in (0, 1, 2, "other")]
    page = tmp_path / "page.html"
    assert main(["compare", *files, "--out", str(page), "--names", "ours", "ours", "ours", "other"]) == 0
    found = parse(page.read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in found.rows if row}
    names = [f"fog@{severity}" for severity in (1, 3, 5)]
    mean = np.mean([t["conditions"][name]["top1"] for t in trainings for name in names])
    assert rows["fog"][0] == f"{100 * mean:.1f} %"
    assert any("mean over 3 trainings" in words for words in found.words)
    assert any("Student" in words for words in found.words)
    trainings[1]["seed"] = 7
    (tmp_path / "1.json").write_text(json.dumps(trainings[1]))
    assert main(["compare", *files, "--out", str(page), "--names", "ours", "ours", "ours", "other"]) == 2
    assert "different images or seeds" in capsys.readouterr().err
