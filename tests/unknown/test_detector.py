"""A detector survives its two files, and decides as its numbers say."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save

from vmmr.config import OF_CLASSIFIER, TrainConfig, UnknownScore
from vmmr.errors import BundleError, ConfigError
from vmmr.unknown import SCORES, Fitted, Gate, Reason, Statistics
from vmmr.unknown.detector import Detector

GATE = Gate(known=1.0, vehicle=2.0, dull=0.1, soft=-1.0, noisy=0.5, shortest=20)


def test_settings_name_every_score_and_which_read_the_classifier(world: Any) -> None:
    assert set(get_args(UnknownScore)) == {"none", *SCORES}
    other = Statistics(**{**vars(world.statistics), "weight": world.weight.double() + 1, "bias": world.bias.double()})
    changed = set()
    for name, (score, fit, _) in SCORES.items():
        one, two = (score(world.shown, world.logits, fit(s)) for s in (world.statistics, other))
        if not torch.equal(one, two):
            changed.add(name)
    assert changed == OF_CLASSIFIER


def test_scores_of_a_classifier_are_refused_for_other_networks() -> None:
    for changes in ({"levels": ["make", "class"]}, {"method": "pmal", "noise": "strong"}):
        assert TrainConfig(unknown="knn", **changes).unknown == "knn"  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="plain classifier; got unknown='vim'"):
            TrainConfig(unknown="vim", **changes)  # type: ignore[arg-type]
    assert TrainConfig(unknown="vim", method="pmal", noise="strong", keep="trunk").unknown == "vim"
    with pytest.raises(ConfigError, match="no such unknown score"):
        TrainConfig(unknown="magic")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCORES)
def test_a_detector_comes_back_from_its_files(name: str, world: Any) -> None:
    written = Detector(name, GATE, SCORES[name].fit(world.statistics))
    settings = json.loads(json.dumps(written.settings))
    read = Detector.read(settings, written.to_bytes(), classes=5, width=12)
    assert (read.score, read.gate) == (name, GATE)
    image = torch.rand(len(world.shown), 3, 8, 9) * 2 - 1
    signs = read.signs(world.shown, world.logits, image)
    assert torch.equal(signs, written.signs(world.shown, world.logits, image))
    assert signs.dtype == torch.float32
    expected = SCORES[name].score(world.shown, world.logits, written.fitted)
    np.testing.assert_allclose(signs[:, 0], expected, rtol=1e-6)
    grey = (image.numpy() + 1).mean(axis=1) / 2
    np.testing.assert_allclose(signs[:, 1], grey.std(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("score", [0.5, 1.0, 1.5, 2.0, 2.5, float("nan")])
@pytest.mark.parametrize("light", [0.05, 0.1])
@pytest.mark.parametrize("edges", [-1.5, 0.0, 0.9])
def test_the_reason_is_that_of_the_numbers(score: float, light: float, edges: float) -> None:
    detector = Detector("msp", GATE, Fitted())
    bad = light < 0.1 or not -1 <= edges <= 0.5
    for sure in (True, False):
        if score <= 1 and sure:
            wanted = Reason.OK
        elif bad:
            wanted = Reason.LOW_QUALITY
        elif score <= 1:
            wanted = Reason.UNSURE
        else:
            wanted = Reason.UNKNOWN_VEHICLE if score <= 2 else Reason.NOT_A_VEHICLE
        for side in (20, None):
            assert detector.reason((score, light, edges), sure=sure, side=side) == wanted
        assert detector.reason((score, light, edges), sure=sure, side=19) == Reason.TOO_SMALL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "magic"}, "names no unknown score"),
        ({"score": ["knn"]}, "names no unknown score"),
        ({"score": None}, "names no unknown score"),
        ({"known": float("nan")}, "no gate; got a gate is made of finite numbers"),
        ({"known": "1"}, "finite numbers"),
        ({"known": True}, "finite numbers"),
        ({"known": 10**400}, "no gate"),
        ({"vehicle": 0.0}, "out of order"),
        ({"shortest": -1}, "out of order"),
        ({"other": 1.0}, "unexpected keyword"),
        ({"score": "knn"}, "KNNFitted has other tensors"),
        ({"score": "energy"}, "Fitted has other tensors"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], words: str, world: Any) -> None:
    written = Detector("vim", GATE, SCORES["vim"].fit(world.statistics))
    with pytest.raises(BundleError, match=words):
        Detector.read(written.settings | change, written.to_bytes(), classes=5, width=12)


def test_what_is_no_detector_is_refused(world: Any) -> None:
    written = Detector("react", GATE, SCORES["react"].fit(world.statistics))
    settings, data = written.settings, written.to_bytes()
    assert Detector.read(settings, data, classes=5).fitted.width == 12
    for described in ([], "react", 7):
        with pytest.raises(BundleError, match="names no unknown score"):
            Detector.read(described, data, classes=5)
    with pytest.raises(BundleError, match="no gate"):
        Detector.read({"score": "react"}, data, classes=5)
    for broken in (b"", data[:40], b"\xff" * 64):
        with pytest.raises(BundleError, match="malformed"):
            Detector.read(settings, broken, classes=5)
    with pytest.raises(BundleError, match="another network; got C = 5"):
        Detector.read(settings, data, classes=6)
    with pytest.raises(BundleError, match="another network; got D = 12"):
        Detector.read(settings, data, classes=5, width=13)
    altered = save({**written.fitted.tensors(), "bias": torch.full((5,), torch.nan)})
    with pytest.raises(BundleError, match="no finite number"):
        Detector.read(settings, altered, classes=5)
    for score, fitted in (("magic", Fitted()), ("knn", Fitted())):
        with pytest.raises(ConfigError):
            Detector(score, GATE, fitted)
