"""`vmmr extend --mode task`: a bank and a head beside what stays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from vmmr.extend.gallery import extend_gallery
from vmmr.extend.merge import merge_tasks
from vmmr.extend.task import TaskSettings, extend_task
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.network import TaskNetwork
from vmmr.incremental.task_norm import Plan, TaskNorm

from .conftest import draw, pictures, require_alike

QUICK = ["--mode", "task", "--epochs", "10", "--align-epochs", "30", "--memory", "60"]


@pytest.fixture(scope="module")
def extended(known: Path, old_cars: Path, new_cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("task") / "bundle"
    assert main(["extend", str(known), str(new_cars), "--out", str(out), "--data", str(old_cars), *QUICK]) == 0
    return out


def test_new_cars_are_named_and_old_ones_are_what_they_were(
    extended: Path, known: Path, old_cars: Path, new_cars: Path
) -> None:
    before, after = vmmr.load(known), vmmr.load(extended)
    answers = after([*pictures(new_cars)])
    assert sum(a.model == model for a, model in zip(answers, ["Q9"] * 4 + ["ID"] * 4, strict=True)) >= 6
    was, now = before([*pictures(old_cars)]), after([*pictures(old_cars)])
    assert sum(a.model != b.model for a, b in zip(was, now, strict=True)) <= 1
    np.testing.assert_allclose(after.embed([*pictures(old_cars)]), before.embed([*pictures(old_cars)]), atol=1e-5)


def test_a_gate_on_logits_is_refused(known: Path, old_cars: Path, new_cars: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(known, tmp_path / "bundle")
    assert main(["calibrate", str(folder), "--data", str(old_cars), "--unknown", "energy"]) == 0
    with pytest.raises(ConfigError, match="gate was fitted on others"):
        extend_task(folder, Manifest.load(new_cars), old=Manifest.load(old_cars))


def test_the_layer_holds_one_bank_and_the_heads_and_nothing_below_changed(extended: Path, known: Path) -> None:
    for path in known.iterdir():
        if path.name != "manifest.json":
            assert (extended / path.name).read_bytes() == path.read_bytes()
    bundle, own = read_bundle(extended), load_file(extended / "weights-1.safetensors")
    network = bundle.network()
    assert isinstance(network, TaskNetwork)
    layers = len(network.banked.norms)
    assert sum(name.startswith("banks.1.") for name in own) == 4 * layers
    assert {name for name in own if not name.startswith("banks.1.")} == {
        *(f"heads.{task}.{part}" for task in (0, 1) for part in ("weight", "bias")),
        "routing.scale",
        "routing.offset",
    }
    base = load_file(known / "weights.safetensors")
    for name, value in network.backbone.model.state_dict().items():
        if name in base and not name.startswith("fc"):
            assert torch.equal(value, base[name]), name
    for layer in network.banked.norms:
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(network.banked.tensors()[f"banks.0.{layer}.{part}"], base[f"{layer}.{part}"])
    assert torch.equal(own["heads.0.weight"], base["fc.weight"])  # without an unknown output it is kept
    assert len(bundle.added["frozen"]) == 64


def test_numbers_of_the_card_are_those_of_the_images(extended: Path, old_cars: Path) -> None:
    bundle = read_bundle(extended)
    old = bundle.added["old"]
    found = evaluate(bundle, Manifest.load(old_cars).split("val"))["conditions"]["clean"]["top1"]
    assert found == pytest.approx(old["after"])
    assert (bundle.added["bound"]["share"], old["changed"]) == (pytest.approx(1 - 0.1 ** (1 / 18)), 0)
    assert (bundle.added["images"], bundle.added["exemplars"], bundle.added["new"]["images"]) == (18, 42, 6)
    assert "task, 2 classes" in bundle.card


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(
        tmp_path_factory.mktemp("newer") / "cars", {"Fiat,Q,2028": (40, 200, 200)}, {"train": 10, "test": 3}, seed=3
    )


def _together(out: Path, old_cars: Path, *more: Path) -> Path:
    """One table of all these cars, with some of the training pictures of new ones for validation."""
    lines = [*(old_cars / "manifest.csv").read_text().splitlines()]
    rows = [lines[0], *(f"{old_cars}/{line}" for line in lines[1:])]
    for cars in more:
        for line in (cars / "manifest.csv").read_text().splitlines()[1:]:
            place = int(line.split(",")[0].split("-")[2].removesuffix(".png"))
            rows.append(f"{cars}/{line.replace(',train', ',val') if place > 6 else line}")
    out.write_text("\n".join(rows))
    return out


@pytest.fixture(scope="module")
def twice(
    extended: Path, old_cars: Path, new_cars: Path, newer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("twice")
    table = _together(folder / "all.csv", old_cars, new_cars)
    words = ["extend", str(extended), str(newer), "--out", str(folder / "bundle"), "--data", str(table)]
    assert main([*words, *QUICK, "--force"]) == 0
    return folder / "bundle"


def test_a_task_on_a_task_goes_back_step_by_step(
    twice: Path, extended: Path, known: Path, newer: Path, tmp_path: Path
) -> None:
    recognizer = vmmr.load(twice)
    assert [answer.make for answer in recognizer([*pictures(newer)])] == ["Fiat"] * 3
    network = read_bundle(twice).network()
    assert isinstance(network, TaskNetwork)
    assert network.banked.classes == (3, 2, 1)
    assert roll_back(twice, tmp_path / "once").digest == read_bundle(extended).digest
    assert roll_back(tmp_path / "once", tmp_path / "none").digest == read_bundle(known).digest


def test_the_last_two_tasks_become_one(
    twice: Path, extended: Path, old_cars: Path, new_cars: Path, newer: Path, tmp_path: Path
) -> None:
    table = _together(tmp_path / "all.csv", old_cars, new_cars, newer)
    out = tmp_path / "merged"
    words = ["merge", str(twice), "--data", str(table), "--out", str(out), "--memory", "60", "--align-epochs", "30"]
    assert main([*words, "--force"]) == 0
    bundle, before = read_bundle(out), read_bundle(twice)
    network, was = bundle.network(), before.network()
    assert isinstance(network, TaskNetwork)
    assert isinstance(was, TaskNetwork)
    assert network.banked.classes == (3, 3)
    own, old = network.banked.tensors(), was.banked.tensors()
    assert all(torch.equal(own[name], old[name]) for name in own if name.startswith("banks.0."))
    wanted = BankedNetwork.from_tensors(read_bundle(known_of(twice)).network(), old, (3, 2, 1), base_unknown=False)  # type: ignore[arg-type]
    wanted.merge(1, (2, 1))
    merged = wanted.tensors()
    assert all(torch.equal(own[name], merged[name]) for name in own if name.startswith("banks."))
    assert not any(name.startswith("banks.0.") for name in bundle.tensors)
    validation = Manifest.load(table).split("val")
    for place, when in ((before, "before"), (bundle, "after")):
        found = evaluate(place, validation)["conditions"]["clean"]["top1"]
        assert found == pytest.approx(bundle.added["old"][when])
    assert sum(answer.make == "Fiat" for answer in vmmr.load(out)([*pictures(newer)])) >= 2
    assert "2 tasks are left, of 3, 3 classes" in bundle.card
    assert roll_back(out, tmp_path / "back").digest == before.digest
    with pytest.raises(TrainingError, match="lose too much"):
        merge_tasks(twice, Manifest.load(table), settings=TaskSettings(memory=60, norm=_still()), max_drop=-101)
    with pytest.raises(ConfigError, match="base head without an unknown output"):
        merge_tasks(extended, Manifest.load(_together(tmp_path / "some.csv", old_cars, new_cars)))
    cut = {name: value for name, value in bundle.tensors.items() if not name.startswith("banks.1.")}
    with pytest.raises(BundleError, match="another network"):
        replace(bundle, tensors=cut).network()


def known_of(extended: Path) -> Path:
    """The bundle below all extensions, written beside."""
    roll_back(extended, extended.parent / "one")
    roll_back(extended.parent / "one", extended.parent / "none")
    return extended.parent / "none"


def _still() -> TaskNorm:
    return TaskNorm(stage1=Plan(0, 0.1), stage2=Plan(0, 0.1))


def test_what_has_no_tasks_is_not_merged(known: Path, old_cars: Path) -> None:
    with pytest.raises(ConfigError, match="no tasks to merge"):
        merge_tasks(known, Manifest.load(old_cars))


def test_a_gallery_stands_on_a_task_and_no_task_on_a_gallery(
    extended: Path, old_cars: Path, new_cars: Path, known: Path, tmp_path: Path
) -> None:
    newer = Manifest.load(draw(tmp_path / "newer", {"Fiat,Q,2028": (40, 200, 200)}, {"train": 8, "test": 3}, seed=3))
    both = write_bundle(tmp_path / "both", extend_gallery(extended, newer).bundle)
    assert [answer.make for answer in vmmr.load(both)([*pictures(tmp_path / "newer")])] == ["Fiat"] * 3
    gallery = write_bundle(tmp_path / "gallery", extend_gallery(known, Manifest.load(new_cars)).bundle)
    with pytest.raises(ConfigError, match="got a gallery"):
        extend_task(gallery, newer, old=Manifest.load(old_cars))


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_exported_task_answers_alike(form: str, extended: Path, new_cars: Path, tmp_path: Path) -> None:
    require_alike(extended, form, new_cars, tmp_path / "artifact")


def test_the_published_base_learns_an_unknown_output(known: Path, old_cars: Path, new_cars: Path) -> None:
    settings = TaskSettings(base_unknown=True, memory=60)
    norm = replace(settings.norm, stage1=Plan(1, 0.01, batch_size=16), stage2=Plan(2, 0.01), reduction="mean")
    settings = replace(settings, norm=norm)
    new, old = Manifest.load(new_cars), Manifest.load(old_cars)
    one, two = (extend_task(known, new, old=old, settings=settings, force=True).bundle for _ in range(2))
    assert one.tensors["heads.0.weight"].shape[0] == 4
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)  # a seed draws it all


def test_what_is_missing_is_said(known: Path, old_cars: Path, new_cars: Path, tmp_path: Path) -> None:
    new, old = Manifest.load(new_cars), Manifest.load(old_cars)
    with pytest.raises(ConfigError, match="no old data; pass --data, the manifest it was trained on"):
        extend_task(known, new, old=None)
    some = old.select((old.labels != 2) | (old.splits != "train"))
    with pytest.raises(DataError, match="1 of 3 classes without one"):
        extend_task(known, new, old=some)
    with pytest.raises(DataError, match="room for 2 images"):
        extend_task(known, new, old=old, settings=TaskSettings(memory=2))
    quick = TaskSettings(memory=60)
    quick = replace(quick, norm=replace(quick.norm, stage1=Plan(0, 0.1), stage2=Plan(0, 0.1)))
    with pytest.raises(TrainingError, match="lose too much"):
        extend_task(known, new, old=old, settings=quick, max_drop=-1)


def test_discriminants_speak_with_the_heads_and_stay(
    known: Path, old_cars: Path, new_cars: Path, newer: Path, tmp_path: Path
) -> None:
    """Fitted to old training and new images, kept by the next task, exported, and refused for other classes."""
    out = tmp_path / "one"
    words = ["extend", str(known), str(new_cars), "--out", str(out), "--data", str(old_cars), *QUICK]
    assert main([*words, "--discriminants", "--force"]) == 0
    bundle = read_bundle(out)
    network = bundle.network()
    assert isinstance(network, TaskNetwork)
    assert network.discriminants is not None
    assert [*network.discriminants.weight.shape] == [5, network.banked.width]
    assert "heads and of linear discriminants together" in bundle.card
    answers = vmmr.load(out)([*pictures(new_cars)])
    assert sum(a.model == model for a, model in zip(answers, ["Q9"] * 4 + ["ID"] * 4, strict=True)) >= 6
    found = evaluate(bundle, Manifest.load(old_cars).split("val"))["conditions"]["clean"]["top1"]
    assert found == pytest.approx(bundle.added["old"]["after"])
    require_alike(out, "onnx", new_cars, tmp_path / "artifact")
    table = _together(tmp_path / "all.csv", old_cars, new_cars)
    settings = TaskSettings(memory=60, norm=_still())
    later = extend_task(out, Manifest.load(newer), old=Manifest.load(table), settings=settings, force=True).bundle
    kept = later.network()
    assert isinstance(kept, TaskNetwork)
    assert kept.discriminants is not None
    assert len(kept.discriminants.bias) == 6
    for wrong in (
        {**bundle.tensors, "discriminants.bias": torch.zeros(4)},
        {**bundle.tensors, "discriminants.weight": torch.full((5, network.banked.width), torch.nan)},
        {k: v for k, v in bundle.tensors.items() if k != "discriminants.bias"},
    ):
        with pytest.raises(BundleError, match="discriminants of other classes"):
            replace(bundle, tensors=wrong).network()


def test_layers_with_other_banks_are_refused(extended: Path) -> None:
    bundle = read_bundle(extended)
    tensors = dict(bundle.tensors)
    layer = next(name for name in tensors if name.startswith("banks.1."))
    below = {layer.replace("banks.1.", "banks.0."): tensors[layer]}
    for wrong, words in (
        ({**tensors, **below}, "earlier tasks"),
        ({k: v for k, v in tensors.items() if k != layer}, "another network"),
        ({**tensors, "routing.scale": torch.ones(3)}, "routes other tasks"),
        ({**tensors, "routing.offset": torch.full((2,), torch.nan)}, "routes other tasks"),
    ):
        with pytest.raises(BundleError, match=words):
            replace(bundle, tensors=wrong).network()
