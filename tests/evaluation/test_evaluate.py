"""The document of numbers: what it holds, that its parts agree, that it repeats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vmmr
from vmmr.data.manifest import Manifest
from vmmr.errors import ConfigError, LeakageError, ManifestError
from vmmr.evaluation.evaluate import evaluate
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle
from vmmr.recognizer import Recognizer
from vmmr.taxonomy import Taxonomy

WANTED = ("clean", "gaussian_0.4", "fog@3", "speckle@1", "speckle@5")
KEYS = {
    *("format", "version", "vmmr", "bundle", "data", "seed", "conditions", "summary", "calibration"),
    *("unknown", "confusions", "worst_classes", "mistakes", "restoration", "cost"),
}


@pytest.fixture(scope="module")
def bundle(tiny_run: Path) -> Bundle:
    found = read_bundle(tiny_run / "bundle")
    return replace(found, spec=replace(found.spec, temperature=1.0))


@pytest.fixture(scope="module")
def cars(tiny_cars: Path) -> Manifest:
    """The test pictures; every third training picture has become validation."""
    manifest = Manifest.load(tiny_cars)
    splits = manifest.splits.astype("<U5")
    splits[np.flatnonzero(splits == "train")[::3]] = "val"
    return manifest.with_splits(splits)


@pytest.fixture(scope="module")
def document(bundle: Bundle, cars: Manifest) -> dict[str, Any]:
    return evaluate(bundle, cars.split("test"), wanted=WANTED, seed=3, validation=cars.split("val"))


def test_it_is_json_and_says_what_was_judged(document: dict[str, Any], bundle: Bundle) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document.keys() == KEYS
    assert (document["format"], document["version"], document["vmmr"]) == ("vmmr-evaluation", 1, vmmr.__version__)
    assert document["bundle"] == {
        "name": "bundle",
        "digest": bundle.digest,
        "kind": "plain",
        "backbone": "test_resnet",
        "size": 32,
    }
    assert document["data"] == {"split": "test", "images": 12, "classes": 3, "makes": 2}
    assert document["seed"] == 3
    assert tuple(document["conditions"]) == WANTED


def test_every_number_against_the_recognizer(document: dict[str, Any], bundle: Bundle, cars: Manifest) -> None:
    test, recognizer = cars.split("test"), Recognizer(bundle)
    found = [recognizer(path, top=3) for path in test.path_list()]
    truth = [test.taxonomy.classes[label] for label in test.labels]
    right = [(a.make, a.model, a.year) == t.key for a, t in zip(found, truth, strict=True)]
    clean = document["conditions"]["clean"]
    assert clean["top1"] == pytest.approx(np.mean(right))
    assert clean["make"] == pytest.approx(np.mean([a.make == t.make for a, t in zip(found, truth, strict=True)]))
    assert clean["macro"] == pytest.approx(clean["top1"])  # as many pictures of each class
    assert clean["top5"] == 1  # of three classes
    likely = [
        next(c.confidence for c in (a, *a.alternatives) if (c.make, c.model, c.year) == t.key)
        for a, t in zip(found, truth, strict=True)
    ]
    assert clean["nll"] == pytest.approx(-np.log(likely).mean(), rel=1e-4)
    sure = sum(b["share"] * b["confidence"] for b in document["calibration"]["bins"] if b["share"])
    assert sure == pytest.approx(np.mean([a.confidence for a in found]), rel=1e-4)


def test_without_validation_images_the_temperature_is_that_of_the_bundle(bundle: Bundle, cars: Manifest) -> None:
    test = cars.split("test")
    warm = replace(bundle, spec=replace(bundle.spec, temperature=3.0))
    found = evaluate(warm, test)
    assert found["calibration"]["temperature"] == 3
    assert found["calibration"]["fitted_on"] == "validation images of the training"
    sure = sum(b["share"] * b["confidence"] for b in found["calibration"]["bins_calibrated"] if b["share"])
    answers = [Recognizer(warm)(path) for path in test.path_list()]
    assert sure == pytest.approx(np.mean([a.confidence for a in answers]), rel=1e-4)
    raw = evaluate(bundle, test)
    assert raw["calibration"]["bins"] == found["calibration"]["bins"]
    assert raw["conditions"]["clean"]["top1"] == found["conditions"]["clean"]["top1"]


def test_its_parts_agree(document: dict[str, Any]) -> None:
    conditions, parts = document["conditions"], document["summary"]
    top1 = {name: scores["top1"] for name, scores in conditions.items()}
    corrupted = ["fog@3", "speckle@1", "speckle@5"]
    assert parts["clean"] == {"value": top1["clean"], "interval": conditions["clean"]["interval"]}
    assert parts["gaussian"] == {"value": top1["gaussian_0.4"], "interval": conditions["gaussian_0.4"]["interval"]}
    assert parts["mean_corruption"]["value"] == pytest.approx(np.mean([top1[n] for n in corrupted]))
    assert parts["relative_drop"]["value"] == pytest.approx(1 - parts["mean_corruption"]["value"] / top1["clean"])
    assert "camera" not in parts
    for scores in conditions.values():
        assert 0 <= scores["interval"][0] <= scores["top1"] <= scores["interval"][1] <= 1
        assert scores["top1"] <= min(scores["make"], scores["top5"])
    curve = document["calibration"]
    for name, of in (("bins", ["clean"]), ("bins_calibrated", ["clean"]), ("bins_corrupted", corrupted)):
        assert sum(b["share"] for b in curve[name]) == pytest.approx(1)
        accuracy = sum(b["share"] * b["accuracy"] for b in curve[name] if b["share"])
        assert accuracy == pytest.approx(np.mean([top1[n] for n in of]))
    gaps = [b["share"] * abs(b["confidence"] - b["accuracy"]) for b in curve["bins_calibrated"] if b["share"]]
    assert conditions["clean"]["ece_calibrated"] == pytest.approx(sum(gaps), abs=1e-5)
    assert curve["temperature"] > 0
    assert curve["fitted_on"] == "val"


def test_an_untrained_network_is_wrong_about_pictures_of_the_data(bundle: Bundle, cars: Manifest) -> None:
    torch.manual_seed(0)
    fresh = replace(bundle, tensors=build_network(bundle.spec).model.state_dict())
    test = cars.split("test")
    found = evaluate(fresh, test)
    wrong = round(12 * (1 - found["conditions"]["clean"]["top1"]))
    assert 0 < wrong == found["mistakes"]["count"] == sum(item["count"] for item in found["confusions"])
    assert len(found["worst_classes"]) >= 2
    for item in found["worst_classes"]:
        assert test.root / item["example"] in [Path(path) for path in test.path_list()]
        make, model, year = item["example"].split("/")[1:4]
        assert item["name"] == f"{make} {model} {year}" != item["mistaken_for"]


def test_it_repeats_whatever_else_is_evaluated(document: dict[str, Any], bundle: Bundle, cars: Manifest) -> None:
    test = cars.split("test")
    found = evaluate(bundle, test, wanted=["speckle@5", "gaussian_0.4", "speckle@5"], seed=3)
    expected = {name: dict(document["conditions"][name]) for name in ("speckle@5", "gaussian_0.4")}
    for scores in expected.values():
        del scores["ece_calibrated"]  # there are no validation images this time
    assert found["conditions"] == expected
    assert found["calibration"] == {
        "temperature": None,
        "fitted_on": None,
        "bins": [],
        "bins_calibrated": [],
        "bins_corrupted": found["calibration"]["bins_corrupted"],
    }
    assert (found["confusions"], found["worst_classes"], found["mistakes"]) == ([], [], None)
    assert (
        evaluate(bundle, test, wanted=["clean"], seed=4)["summary"]["clean"]["value"]
        == document["summary"]["clean"]["value"]
    )


def test_decoders_and_times_where_asked_for(bundle: Bundle, cars: Manifest) -> None:
    spec = ModelSpec(kind="progressive", backbone="test_resnet", classes=3)
    torch.manual_seed(0)
    network = build_network(spec)
    teacher = replace(bundle, spec=spec, tensors=network.state_dict())
    test = cars.split("test")
    found = evaluate(teacher, test, wanted=["clean", "gaussian_0.4"], restored=5)
    assert found["restoration"].keys() == {"gaussian_0.4"}
    told = found["restoration"]["gaussian_0.4"]
    assert told["psnr_restored"] == pytest.approx(told["psnr_noisy"], abs=1e-3)  # lean decoders start as the identity
    assert found["cost"].keys() == {"parameters", "macs"}
    unused = sum(p.numel() for p in network.decoders.parameters())
    assert found["cost"]["parameters"] == sum(p.numel() for p in network.parameters()) - unused
    assert evaluate(teacher, test, wanted=["gaussian_0.4"])["restoration"] == {}
    assert evaluate(bundle, test, wanted=["gaussian_0.4"], restored=5)["restoration"] == {}
    timed = evaluate(bundle, test, timed=True)["cost"]
    assert timed.keys() == {"parameters", "macs", "latency_ms", "images_per_s", "batch", "threads", "device"}


def test_mistakes_of_the_caller(bundle: Bundle, cars: Manifest) -> None:
    test = cars.split("test")
    with pytest.raises(LeakageError):
        evaluate(bundle, test, validation=test)
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate(bundle, test, wanted=[])
    with pytest.raises(ManifestError, match="not in the taxonomy"):
        evaluate(replace(bundle, taxonomy=Taxonomy(bundle.taxonomy.classes[:2])), test)
