"""`vmmr extend --mode domain`: a bank for the same cars in another light."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vmmr
from vmmr.cli import main
from vmmr.data.manifest import Manifest
from vmmr.errors import BundleError, ConfigError, DataError, TrainingError
from vmmr.evaluation.evaluate import evaluate
from vmmr.export.bundle import read_bundle, write_bundle
from vmmr.export.extension import roll_back
from vmmr.extend.domain import DomainSettings, extend_domain
from vmmr.extend.gallery import extend_gallery
from vmmr.extend.task import extend_task
from vmmr.incremental.domains import domain_banks
from vmmr.incremental.task_norm import Plan
from vmmr.models import Backbone

from .conftest import OLD, Colours, draw, pictures, require_alike

NIGHT: Colours = {name: tuple(round(0.15 * value + 110) for value in colour) for name, colour in OLD.items()}  # type: ignore[misc]
COUNTS = {"train": 20, "test": 6}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("night") / "cars", NIGHT, COUNTS, seed=5)


@pytest.fixture(scope="module")
def extended(known: Path, old_cars: Path, night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("domain") / "bundle"
    words = ["extend", str(known), str(night), "--mode", "domain", "--out", str(out), "--data", str(old_cars)]
    assert main([*words, "--epochs", "8"]) == 0
    return out


def _right(bundle: Path, cars: Path) -> float:
    found = [answer.model for answer in vmmr.load(bundle)([*pictures(cars)])]
    each = len(found) // 3
    return sum(a == b for a, b in zip(found, ["A4"] * each + ["A6"] * each + ["M3"] * each, strict=True)) / len(found)


def test_cars_at_night_are_named_and_those_by_day_are_what_they_were(
    extended: Path, known: Path, old_cars: Path, night: Path
) -> None:
    assert _right(extended, night) > max(_right(known, night), 0.9)
    before, after = (vmmr.load(bundle)([*pictures(old_cars)]) for bundle in (known, extended))
    for was, now in zip(before, after, strict=True):
        assert (was.model, was.known) == (now.model, now.known)
        assert was.confidence == pytest.approx(now.confidence, abs=1e-4)


def test_the_layer_holds_one_bank_and_nothing_below_changed(extended: Path, known: Path) -> None:
    for path in known.iterdir():
        if path.name != "manifest.json":
            assert (extended / path.name).read_bytes() == path.read_bytes()
    own, base = load_file(extended / "weights-1.safetensors"), load_file(known / "weights.safetensors")
    bundle = read_bundle(extended)
    network = bundle.network()
    assert isinstance(network, Backbone)
    banks = domain_banks(network)
    assert len(own) == 4 * len(banks.norms) + 3
    assert all(torch.equal(own[name], value) for name, value in banks.tensors(1).items())
    for name, value in banks.tensors(0).items():
        assert torch.equal(value, base[name.removeprefix("banks.")])
    shared = {name: v for name, v in network.model.state_dict().items() if name in base}
    assert len(shared) == len(base) - 5 * len(banks.norms)
    assert all(torch.equal(value, base[name]) for name, value in shared.items())
    assert bundle.taxonomy == read_bundle(known).taxonomy


def test_numbers_of_the_card_are_those_of_the_images(extended: Path, known: Path, old_cars: Path) -> None:
    bundle = read_bundle(extended)
    added = bundle.added
    validation = Manifest.load(old_cars).split("val")
    for place, when in ((known, "before"), (extended, "after")):
        found = evaluate(read_bundle(place), validation)["conditions"]["clean"]["top1"]
        assert found == pytest.approx(added["old"][when])
    assert (added["images"], added["new"]["images"], added["labels"], added["domain"]) == (48, 12, True, 1)
    assert added["new"]["after"]["top1"] > added["new"]["before"]["top1"]
    assert added["old"]["taken"] <= added["bound"]["share"] - 1 / 19 + 1e-9
    assert added["new"]["taken"] == 1
    assert "domain 1" in bundle.card
    assert "statistics, gamma and beta" in bundle.card


def test_pictures_without_labels_give_statistics_alone(
    known: Path, old_cars: Path, night: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures(night, "train"):
        shutil.copy(path, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    words = ["extend", str(known), str(folder), "--mode", "domain", "--out", str(tmp_path / "out")]
    assert main([*words, "--data", str(old_cars)]) == 0
    bundle = read_bundle(tmp_path / "out")
    assert (bundle.added["labels"], bundle.added["skipped"], bundle.added["new"]["after"]["top1"]) == (False, 1, None)
    own, base = load_file(tmp_path / "out" / "weights-1.safetensors"), load_file(known / "weights.safetensors")
    assert all(torch.equal(own[f"banks.{n}"], v) for n, v in base.items() if f"banks.{n}" in own and "running" not in n)
    assert _right(tmp_path / "out", night) >= _right(known, night)


def test_domains_go_on_each_other_and_back_and_carry_a_gallery(
    extended: Path, known: Path, old_cars: Path, new_cars: Path, tmp_path: Path
) -> None:
    fog: Colours = {name: tuple(round(0.3 * value + 170) for value in colour) for name, colour in OLD.items()}  # type: ignore[misc]
    foggy = draw(tmp_path / "fog", fog, COUNTS, seed=6)
    quick = DomainSettings(Plan(8, 0.1, batch_size=16))
    old = Manifest.load(old_cars)
    twice = extend_domain(extended, Manifest.load(foggy), old=old, settings=quick, force=True).bundle
    write_bundle(tmp_path / "twice", twice)
    network = read_bundle(tmp_path / "twice").network()
    assert isinstance(network, Backbone)
    banks = domain_banks(network)
    assert (len(banks), banks.level.shape, twice.tensors["place.level"].shape) == (3, (3,), (1,))
    before = read_bundle(extended)
    assert all(torch.equal(value, before.tensors[name]) for name, value in banks.tensors(1).items())
    assert _right(tmp_path / "twice", foggy) > 0.8
    both = write_bundle(
        tmp_path / "both", extend_gallery(extended, Manifest.load(new_cars), old=old, force=True).bundle
    )
    assert len(vmmr.load(both).taxonomy) == 5
    assert roll_back(tmp_path / "twice", tmp_path / "once").digest == before.digest
    assert roll_back(tmp_path / "once", tmp_path / "none").digest == read_bundle(known).digest


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_exported_domain_answers_alike(form: str, extended: Path, night: Path, tmp_path: Path) -> None:
    require_alike(extended, form, night, tmp_path / "artifact")


def test_what_is_missing_is_said(
    known: Path, extended: Path, old_cars: Path, new_cars: Path, night: Path, tmp_path: Path
) -> None:
    old, dark = Manifest.load(old_cars), Manifest.load(night)
    with pytest.raises(ConfigError, match="no old data; pass --data"):
        extend_domain(known, dark, old=None)
    with pytest.raises(DataError, match="too few images"):
        extend_domain(known, [*map(str, pictures(night))][:3], old=old)
    quick = DomainSettings(Plan(0, 0.1))
    with pytest.raises(TrainingError, match="lose too much"):
        extend_domain(known, dark, old=old, settings=quick, max_drop=-1)
    with pytest.raises(ConfigError, match="got a domain"):
        extend_task(extended, Manifest.load(new_cars), old=old)


def test_layers_that_do_not_fit_are_refused(extended: Path) -> None:
    bundle = read_bundle(extended)
    tensors = dict(bundle.tensors)
    layer = next(name for name in tensors if name.endswith("running_var"))
    for wrong, words in (
        ({**tensors, "banks.more": tensors[layer]}, "bank of another network"),
        ({k: v for k, v in tensors.items() if k != layer}, "bank of another network"),
        ({**tensors, layer: -tensors[layer]}, "variance below 0"),
        ({**tensors, "place.level": torch.full((2,), torch.nan)}, "finite numbers"),
        ({**tensors, "place.centre": tensors["place.centre"][:1]}, "finite numbers"),
    ):
        with pytest.raises(BundleError, match=words):
            replace(bundle, tensors=wrong).network()
