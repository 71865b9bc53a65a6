"""The demo in miniature: what it leaves, that its numbers are those of its bundles, what it will not overwrite."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vmmr
from vmmr.data.manifest import Manifest
from vmmr.demo import DemoSettings, run_demo
from vmmr.errors import ConfigError
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.robustness import noise_curve
from vmmr.export.bundle import read_bundle
from vmmr.models import ProgressiveNetwork

SMALL = DemoSettings(makes=2, models_per_make=2, train_per_class=10, test_per_class=4, picture=48, size=32, epochs=2)
MODELS = ("plain", "teacher", "student")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)  # the command line passes a relative folder
        results = run_demo(Path("out"), seed=3, progress=False, settings=SMALL)
    assert json.loads((out / "demo.json").read_text()) == results
    return out


@pytest.fixture(scope="module")
def results(demo: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((demo / "demo.json").read_text())
    return found


@pytest.mark.parametrize("model", MODELS)
def test_its_numbers_are_those_of_its_bundles(demo: Path, results: dict[str, Any], model: str) -> None:
    said = results["models"][model]
    test = Manifest.load(demo / "data" / "manifest.csv").split("test")
    wanted = ["clean", "gaussian_0.4", "rain@3"]
    bundle = read_bundle(demo / model / "bundle")
    found = evaluate(bundle, test, wanted=wanted, seed=3)
    assert found["data"]["images"] == 16
    assert {name: said["conditions"][name] for name in wanted} == found["conditions"]
    assert list(said["conditions"]) == noise_curve()
    network = bundle.network()
    needed = [p for name, p in network.named_parameters() if not name.startswith("decoders.")]
    assert said["parameters"] == sum(p.numel() for p in needed)
    assert isinstance(network, ProgressiveNetwork) == (model == "teacher")
    kept = said["history"][said["best_epoch"]]["val_top1"]
    assert kept == said["val_top1"] == max(row["val_top1"] for row in said["history"])


def test_the_summary_follows_from_the_conditions(results: dict[str, Any]) -> None:
    for model in MODELS:
        scores = [s["top1"] for name, s in results["models"][model]["conditions"].items() if name != "clean"]
        assert results["under_noise"][model] == pytest.approx(np.mean(scores))
    noisy = results["under_noise"]
    assert results["beats_plain"] == {m: noisy[m] > noisy["plain"] for m in ("teacher", "student")}
    assert results["seconds"] == pytest.approx(sum(part["seconds"] for part in results["parts"]), abs=0.1)
    assert results["peak_gib"] >= max(part["peak_gib"] for part in results["parts"]) > 0.1


def test_the_student_costs_what_plain_costs(results: dict[str, Any]) -> None:
    plain, teacher, student = (results["models"][model] for model in MODELS)
    assert (student["parameters"], student["macs"]) == (plain["parameters"], plain["macs"])
    assert teacher["parameters"] > student["parameters"]
    assert teacher["macs"] > student["macs"]


def test_macs_are_those_of_its_layers(demo: Path, results: dict[str, Any]) -> None:
    network = read_bundle(demo / "plain" / "bundle").network()
    counted = []

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        counted.append(weight[0].numel() * output[0].numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, SMALL.size, SMALL.size))
    assert results["models"]["plain"]["macs"] == sum(counted)


def test_the_sample_is_answered_by_the_student(demo: Path, results: dict[str, Any]) -> None:
    sample = results["sample"]
    test = Manifest.load(demo / "data" / "manifest.csv").split("test")
    assert test.path(0) == (demo / sample["picture"]).resolve()
    with Image.open(demo / sample["picture"]) as picture:
        answer = vmmr.load(demo / "student" / "bundle")(picture.crop(tuple(test.boxes[0].tolist())))
    assert str(answer) == sample["text"]
    assert sample["truth"] in test.class_names


def test_the_report_says_the_same_and_nothing_of_where_it_was_made(demo: Path, results: dict[str, Any]) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    for model in MODELS:
        assert f"{100 * results['under_noise'][model]:.1f} %" in page
        assert f"{results['models'][model]['parameters']:,}" in page
    assert len(re.findall(r'<img src="data:image/png', page)) == 18
    for text in (page, (demo / "demo.json").read_text()):
        assert str(demo.parent) not in text
        assert str(Path(vmmr.__file__).parent) not in text


def test_no_vehicle_is_learned_and_asked(demo: Path) -> None:
    manifest = Manifest.load(demo / "data" / "manifest.csv")
    groups = manifest.column("group")
    assert len(set(groups)) == len(groups)  # every picture is of a vehicle of its own


def test_it_replaces_its_own_files_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something other than a demo"):
        run_demo(out, progress=False, settings=SMALL)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="needs a folder"):
        run_demo(out / "thesis.txt", progress=False, settings=SMALL)


def test_a_second_demo_takes_the_place_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    (out / "plain" / "bundle").mkdir(parents=True)
    (out / ".vmmr-demo").write_text("")
    (out / "notes.txt").write_text("mine")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "picture.png").write_text("mine as well")
    (out / "data").symlink_to(kept)  # a link is taken away, what it points at is not

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmmr.demo.write_dataset", stop)
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, progress=False, settings=SMALL)
    assert sorted(p.name for p in out.iterdir()) == [".vmmr-demo", "notes.txt"]
    assert (kept / "picture.png").read_text() == "mine as well"
