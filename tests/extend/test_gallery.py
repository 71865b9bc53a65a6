"""`vmmr extend` and `vmmr rollback`, on bundles that were trained for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vmmr
from vmmr.cli import main
from vmmr.data.manifest import Manifest
from vmmr.errors import BundleError, ConfigError, DataError, ManifestError, TrainingError
from vmmr.evaluation.evaluate import evaluate
from vmmr.export.bundle import Bundle, read_bundle, write_bundle
from vmmr.export.extension import roll_back
from vmmr.extend.gallery import extend_gallery
from vmmr.extend.images import old_images
from vmmr.extend.report import keep_promise
from vmmr.incremental.gallery import exceeding
from vmmr.recipes import recipe
from vmmr.unknown.knn import KNNFitted

from .conftest import OLD, draw, pictures, require_alike, trained


@pytest.fixture(scope="module")
def bare(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a detector."""
    return write_bundle(tmp_path_factory.mktemp("bare") / "bundle", replace(read_bundle(known), detector=None))


@pytest.fixture(scope="module")
def extended(known: Path, old_cars: Path, new_cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extended") / "bundle"
    assert main(["extend", str(known), str(new_cars), "--out", str(out), "--data", str(old_cars)]) == 0
    return out


def test_new_cars_are_named_and_known(extended: Path, new_cars: Path) -> None:
    answers = vmmr.load(extended)(pictures(new_cars))
    assert [(a.make, a.model, a.year) for a in answers] == [("Audi", "Q9", 2027)] * 4 + [("VW", "ID", 2027)] * 4
    assert sum(bool(answer.known) for answer in answers) >= 7


def test_old_cars_are_answered_as_before(extended: Path, known: Path, old_cars: Path) -> None:
    shown = pictures(old_cars)
    before, after = vmmr.load(known), vmmr.load(extended)
    first, second = before(list(shown)), after(list(shown))
    assert [(a.make, a.model, a.year) for a in first] == [(a.make, a.model, a.year) for a in second]
    assert all(b.known or not a.known for a, b in zip(first, second, strict=True))  # a bank only grows
    pixels = np.stack([before.read(path) for path in shown])
    old, new = before.outputs(pixels), after.outputs(pixels)
    np.testing.assert_array_equal(new["logits"][:, :3], old["logits"])
    np.testing.assert_array_equal(new["features"], old["features"])


def test_other_vehicles_are_still_unknown(extended: Path, known: Path, tmp_path: Path) -> None:
    others = {"X,1,2001": (40, 200, 200), "X,2,2002": (120, 40, 200), "X,3,2003": (0, 0, 0)}
    shown = pictures(draw(tmp_path / "others", others, {"test": 3}))
    for model in (known, extended):
        assert [answer.known for answer in vmmr.load(model)(shown)] == [False] * 9


def test_the_taxonomy_is_merged_and_files_of_the_old_bundle_stay(extended: Path, known: Path) -> None:
    old, new = read_bundle(known), read_bundle(extended)
    assert new.taxonomy.names == (*old.taxonomy.names, "Audi Q9 2027", "VW ID 2027")
    assert new.spec.classes == 5
    for path in known.iterdir():
        if path.name != "manifest.json":
            assert (extended / path.name).read_bytes() == path.read_bytes()
    added = {path.name for path in extended.iterdir()} - {path.name for path in known.iterdir()}
    assert added == {f"{n}-1.{s}" for n, s in (("config", "json"), ("taxonomy", "json"), ("card", "md"))} | {
        "unknown-1.safetensors",
        "weights-1.safetensors",
    }
    assert new.parent is not None
    assert new.parent.digest == old.digest
    assert write_bundle(extended.with_name("again"), new).is_dir()
    assert read_bundle(extended.with_name("again")).digest == new.digest


def test_numbers_of_the_card_are_those_of_the_images(extended: Path, old_cars: Path, known: Path) -> None:
    bundle = read_bundle(extended)
    old = bundle.added["old"]
    held = Manifest.load(old_cars).split("val")
    assert old["images"] == len(held) == 18
    for model, name in ((read_bundle(known), "before"), (bundle, "after")):
        assert evaluate(model, held)["conditions"]["clean"]["top1"] == pytest.approx(old[name])
    # Of 18 images nothing better can be promised: were it more, one in ten draws had no change to show.
    assert bundle.added["bound"]["share"] == pytest.approx(1 - 0.1 ** (1 / 18))
    assert old["changed"] == 0
    assert bundle.added["new"]["images"] == bundle.added["images"] == 24
    assert "2 classes" in bundle.card
    assert "Audi Q9 2027" in bundle.card


def test_without_old_data_the_bound_rests_on_the_bank(known: Path, new_cars: Path) -> None:
    bundle = extend_gallery(known, Manifest.load(new_cars), bound=0.1, confidence=0.8).bundle
    assert bundle.added["old"] is None
    parent = bundle.parent
    assert parent is not None
    assert parent.detector is not None
    bank = parent.detector.fitted
    assert isinstance(bank, KNNFitted)
    most, share = exceeding(len(bank.bank), 0.1, 0.8)
    assert (bundle.added["bound"]["share"], bundle.added["bound"]["confidence"]) == (share, 0.8)
    assert "with 80% confidence" in bundle.card
    assert (most > 0, share <= 0.1) == (True, True)
    assert bundle.spec.temperature == parent.spec.temperature


def test_neighbours_that_are_weighed_by_confidence_learn_new_cars_as_well(
    known: Path, old_cars: Path, new_cars: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(known, tmp_path / "bundle")
    assert main(["calibrate", str(folder), "--data", str(old_cars), "--unknown", "nnguide"]) == 0
    extended = extend_gallery(folder, Manifest.load(new_cars), old=Manifest.load(old_cars)).bundle
    parent = read_bundle(folder).detector
    assert parent is not None
    assert extended.detector is not None
    bank, grown = parent.fitted, extended.detector.fitted
    assert isinstance(bank, KNNFitted)
    assert isinstance(grown, KNNFitted)
    torch.testing.assert_close(grown.bank[: len(bank.bank)], bank.bank)
    added = grown.bank[len(bank.bank) :].norm(dim=1)
    torch.testing.assert_close(added, bank.bank.norm(dim=1).median().expand(len(added)))
    assert extended.added["new"]["known"] >= 0.9
    assert extended.detector.gate.known >= parent.gate.known
    answers = vmmr.load(write_bundle(tmp_path / "new", extended))(pictures(new_cars))
    assert sum(bool(answer.known) for answer in answers) >= 6


def test_a_rollback_gives_every_byte_back(extended: Path, known: Path, tmp_path: Path) -> None:
    assert main(["rollback", str(extended), "--out", str(tmp_path / "back")]) == 0
    names = sorted(path.name for path in known.iterdir())
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == names
    assert all((tmp_path / "back" / name).read_bytes() == (known / name).read_bytes() for name in names)
    with pytest.raises(BundleError, match="not extended"):
        roll_back(tmp_path / "back", tmp_path / "further")


def test_an_extended_bundle_is_extended_and_both_steps_go_back(
    extended: Path, known: Path, new_cars: Path, tmp_path: Path
) -> None:
    newer = draw(tmp_path / "newer", {"Fiat,Q,2028": (20, 20, 20)}, {"train": 6, "test": 3}, seed=3)
    assert main(["extend", str(extended), str(newer), "--out", str(tmp_path / "twice")]) == 0
    recognizer = vmmr.load(tmp_path / "twice")
    assert recognizer.taxonomy.names[5:] == ("Fiat Q 2028",)
    assert [answer.make for answer in recognizer(pictures(newer))] == ["Fiat"] * 3
    assert {answer.make for answer in recognizer(pictures(new_cars))} == {"Audi", "VW"}
    once = roll_back(tmp_path / "twice", tmp_path / "once")
    assert once.digest == read_bundle(extended).digest
    assert roll_back(tmp_path / "once", tmp_path / "none").digest == read_bundle(known).digest


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_exported_extension_answers_alike(form: str, extended: Path, new_cars: Path, tmp_path: Path) -> None:
    require_alike(extended, form, new_cars, tmp_path / "artifact")


def test_an_extended_bundle_is_calibrated_anew_on_its_layer(
    extended: Path, known: Path, old_cars: Path, new_cars: Path, tmp_path: Path
) -> None:
    lines = (old_cars / "manifest.csv").read_text().splitlines()
    rows = [lines[0], *(f"{old_cars}/{line}" for line in lines[1:])]
    rows += [f"{new_cars}/{line}" for line in (new_cars / "manifest.csv").read_text().splitlines()[1:]]
    (tmp_path / "both.csv").write_text("\n".join(rows))
    folder = shutil.copytree(extended, tmp_path / "bundle")
    assert main(["calibrate", str(folder), "--data", str(tmp_path / "both.csv"), "--unknown", "msp"]) == 0
    bundle = read_bundle(folder)
    assert bundle.detector is not None
    assert bundle.detector.score == "msp"
    assert roll_back(folder, tmp_path / "back").digest == read_bundle(known).digest


@pytest.mark.parametrize("kind", ["levels", "progressive", "progressive_levels"])
def test_levels_and_heads_learn_new_cars_too(kind: str, old_cars: Path, new_cars: Path, tmp_path: Path) -> None:
    config = recipe("pmal_fast" if "progressive" in kind else "plain").with_(epochs=2)
    if "levels" in kind:
        config = config.with_(levels=["make", "class"])
    source = trained(old_cars, tmp_path / "run", config)
    bundle = extend_gallery(source, Manifest.load(new_cars), old=Manifest.load(old_cars), force=True).bundle
    before, after = vmmr.load(source), vmmr.load(write_bundle(tmp_path / "new", bundle))
    assert after.digest != before.digest
    answers = after(pictures(new_cars))
    assert sum(answer.model in ("Q9", "ID") for answer in answers) >= 6
    old = bundle.added["old"]
    assert old["changed"] == 0  # of 18 images none may exceed what is promised
    assert evaluate(bundle, Manifest.load(old_cars).split("val"))["conditions"]["clean"]["top1"] == pytest.approx(
        old["after"]
    )
    if "levels" in kind:
        assert after.levels is not None
        assert after.levels.nodes("make") == ("Audi", "BMW", "VW")  # VW is new
        told = [{level.level: level.value for level in answer.levels} for answer in answers if answer.model == "Q9"]
        assert {item["make"] for item in told} == {"Audi"}


def test_a_drop_is_refused_unless_forced(known: Path, old_cars: Path, tmp_path: Path) -> None:
    """Pictures of an old car under a new name."""
    twin = draw(tmp_path / "twin", {"Skoda,Twin,2027": OLD["Audi,A4,2012"]}, {"train": 12}, seed=5)
    out = tmp_path / "out"
    words = ["extend", str(known), str(twin), "--out", str(out), "--data", str(old_cars), "--bound", "0.5"]
    assert main([*words, "--max-drop", "0"]) == 2
    assert not out.exists()
    assert main([*words, "--max-drop", "0", "--force"]) == 0
    old = read_bundle(out).added["old"]
    assert old["after"] < old["before"]
    with pytest.raises(TrainingError, match="lose too much"):
        extend_gallery(known, Manifest.load(twin), old=Manifest.load(old_cars), bound=0.5, max_drop=0)


def test_what_cannot_be_learned_is_named(
    known: Path, bare: Path, old_cars: Path, new_cars: Path, tmp_path: Path
) -> None:
    new = Manifest.load(new_cars)
    with pytest.raises(ManifestError, match=r"known already; got \['Audi A4 2012'"):
        extend_gallery(known, Manifest.load(old_cars))
    with pytest.raises(DataError, match=r"too few images; got \['Audi Q9 2027: 12', 'VW ID 2027: 12'\]; 13 or more"):
        extend_gallery(known, new, least=13)
    with pytest.raises(ConfigError, match="two images"):
        extend_gallery(known, new, least=1)
    with pytest.raises(ManifestError, match="no row to learn from"):
        extend_gallery(known, new.split("test"))
    with pytest.raises(ConfigError, match="no bank of neighbours"):
        extend_gallery(bare, new)
    with pytest.raises(ManifestError, match="no validation images"):
        extend_gallery(known, new, old=Manifest.load(old_cars).split("train"))
    assert (
        main(
            [
                "calibrate",
                str(shutil.copytree(known, tmp_path / "vim")),
                "--data",
                str(old_cars),
                "--unknown",
                "vim",
            ]
        )
        == 0
    )
    with pytest.raises(ConfigError, match="vim cannot be extended"):
        extend_gallery(tmp_path / "vim", new)


def test_without_a_bank_old_training_images_stand_in(bare: Path, old_cars: Path, new_cars: Path) -> None:
    old = Manifest.load(old_cars)
    bundle = read_bundle(bare)
    found = old_images(bundle, bundle.network(), old)
    assert (len(found.features), found.source) == (42, "training images")
    assert extend_gallery(bare, Manifest.load(new_cars), old=old).bundle.detector is None


def test_rows_that_an_extension_pulled_are_no_images(extended: Path, old_cars: Path) -> None:
    bundle = read_bundle(extended)
    found = old_images(bundle, bundle.network(), Manifest.load(old_cars))
    assert bundle.detector is not None
    fitted = bundle.detector.fitted
    assert isinstance(fitted, KNNFitted)
    assert (found.labels < 3).sum() == 42  # every training image of the table, as it is
    assert torch.equal(found.features[42:], fitted.bank[fitted.label >= 3])  # of classes that the table lacks


def test_pictures_that_cannot_be_read_are_left_out_and_counted(
    known: Path, new_cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cars = shutil.copytree(new_cars, tmp_path / "cars")
    (cars / "train-0-3.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["extend", str(known), str(cars), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "train-0-3.png" in said.err
    assert (read_bundle(out).added["images"], read_bundle(out).added["skipped"]) == (23, 1)
    assert main(["extend", str(known), str(cars), "--out", str(tmp_path / "none"), "--least", "12"]) == 2
    assert "Audi Q9 2027: 11" in capsys.readouterr().err


def rewritten(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy whose last config.json says something else, with a manifest that agrees."""
    bundle = read_bundle(folder)
    config = json.loads((folder / "config-1.json").read_text()) | changes
    other = shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
    data = json.dumps(config).encode()
    (other / "config-1.json").write_bytes(data)
    listing = json.loads((other / "manifest.json").read_text())
    listing["files"]["config-1.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (other / "manifest.json").write_text(json.dumps(listing))
    assert bundle.parent is not None
    return Path(other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parent": "0" * 64}, "another bundle than the one it holds"),
        ({"added": {"mode": "magic"}}, "way that is not known"),
        ({"added": None}, "way that is not known"),
        ({"backbone": "test_vit"}, "another network than the one it extends"),
        ({"standardise": True}, "another network than the one it extends"),
    ],
)
def test_layers_that_lie_are_refused(changes: dict[str, Any], words: str, extended: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=words):
        read_bundle(rewritten(extended, tmp_path, **changes))


def test_a_gallery_of_other_shapes_is_refused(extended: Path) -> None:
    bundle = read_bundle(extended)
    for name, value in (("weight", torch.zeros(2, 3)), ("reference_bias", torch.zeros(7)), ("offset", torch.zeros(2))):
        wrong = replace(bundle, tensors={**bundle.tensors, name: value})
        with pytest.raises(BundleError, match="do not fit"):
            wrong.network()
    none = {"reference": bundle.tensors["reference"][:0], "reference_bias": torch.zeros(0)}
    for changed in (none, {"scale": torch.tensor(torch.nan)}):
        with pytest.raises(BundleError, match="without old classes"):
            replace(bundle, tensors={**bundle.tensors, **changed}).network()


def test_an_offset_that_cannot_help_is_given_up() -> None:
    value = torch.zeros(())
    keep_promise(value, 1.0, lambda: 3 if value < 2 else 1, 1)
    assert value >= 2
    with pytest.raises(TrainingError, match="whatever the offset"):
        keep_promise(value, 1.0, lambda: 2, 1)


def test_a_class_of_one_group_is_refused(known: Path, new_cars: Path) -> None:
    manifest = Manifest.load(new_cars)
    vehicles = np.where(manifest.labels == 0, "one", [f"car {row}" for row in range(len(manifest))])
    grouped = Manifest.from_columns(
        {
            "path": manifest.path_list(),
            "make": [manifest.taxonomy.classes[label].make for label in manifest.labels],
            "model": [manifest.taxonomy.classes[label].model for label in manifest.labels],
            "split": ["train"] * len(manifest),
            "vehicle_id": vehicles.tolist(),
        }
    )
    with pytest.raises(DataError, match="one group alone"):
        extend_gallery(known, grouped)


def test_a_layer_without_the_one_below_is_refused(extended: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(extended, tmp_path / "gap")
    listing = json.loads((folder / "manifest.json").read_text())
    listing["files"] = {name.replace("-1.", "-2."): value for name, value in listing["files"].items()}
    for path in [*folder.glob("*-1.*")]:
        path.rename(folder / path.name.replace("-1.", "-2."))
    (folder / "manifest.json").write_text(json.dumps(listing))
    with pytest.raises(BundleError, match="does not list"):
        read_bundle(folder)


def test_no_folder_of_another_kind_is_overwritten(known: Path, new_cars: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    assert main(["extend", str(known), str(new_cars), "--out", str(tmp_path)]) == 2
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_bundle_may_take_its_own_place(known: Path, new_cars: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(known, tmp_path / "bundle")
    assert main(["extend", str(folder), str(new_cars), "--out", str(folder)]) == 0
    bundle = read_bundle(folder)
    assert isinstance(bundle, Bundle)
    assert main(["rollback", str(folder), "--out", str(folder)]) == 0
    assert read_bundle(folder).digest == read_bundle(known).digest
