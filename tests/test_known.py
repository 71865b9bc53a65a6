"""Known or not: the same decision wherever an answer is given."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import vmmr
from vmmr.answer import Answer, Box
from vmmr.bulk import run_bulk
from vmmr.cli import main
from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError, DataError
from vmmr.evaluation.evaluate import require_fittable, with_unknown
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle, write_bundle
from vmmr.levels import HierarchySpec
from vmmr.recipes import recipe
from vmmr.recognizer import Recognizer
from vmmr.serving.worker import Model
from vmmr.tracks import Sighting, answer_tracks
from vmmr.training.run import train
from vmmr.training.samples import open_side
from vmmr.unknown import Fitted, Gate, hidden_scores
from vmmr.unknown.detector import Detector
from vmmr.unknown.knn_pca import ReducedKNNFitted, knn_pca
from vmmr.unknown.quality import contrast, detail

RANDOM = np.random.default_rng(5)


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def coloured(colour: tuple[int, int, int], size: tuple[int, int] = (36, 48)) -> bytes:
    noise = np.random.default_rng(sum(colour)).integers(-40, 40, (*size, 3))
    return png(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def recognizer(tiny_known: Path) -> Recognizer:
    return vmmr.load(tiny_known)


@pytest.fixture(scope="module")
def pictures(tiny_cars: Path) -> list[bytes]:
    """Known cars, colours that no car had, one without contrast, and one that is too small."""
    known = [path.read_bytes() for path in sorted((tiny_cars / "test").rglob("*.png"))]
    strange = [coloured(colour) for colour in ((230, 230, 30), (20, 20, 20), (240, 240, 240), (30, 220, 220))]
    return [*known, *strange, png(np.full((36, 48, 3), 130, np.uint8)), coloured((200, 40, 40), (18, 60))]


def test_the_gate_is_that_of_the_validation_images(tiny_known: Path, tiny_table: Path) -> None:
    bundle = read_bundle(tiny_known)
    assert bundle.detector is not None
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    network, rows = bundle.network(), {}
    for split in ("train", "val"):
        manifest = Manifest.load(tiny_table).split(split)
        pictures = [np.asarray(Image.open(path).convert("RGB")) for path in manifest.path_list()]
        image = preprocess.batch(pictures)
        with torch.no_grad():
            outputs = network(image, pooled=True)
        rows[split] = image, outputs["pooled"], outputs["logits_0"], torch.from_numpy(manifest.labels)
    bank = rows["train"][1] / rows["train"][1].norm(dim=1, keepdim=True)
    assert len(bank) == 27
    fitted = bundle.detector.fitted
    assert isinstance(fitted, ReducedKNNFitted)
    nearest = (fitted.bank @ bank.T).amax(dim=1)
    torch.testing.assert_close(nearest, torch.ones(27))  # the same images, in an order of its own
    image, features, logits, labels = rows["val"]
    direction = features / features.norm(dim=1, keepdim=True)
    inside = fitted.prototype @ fitted.basis.T
    cosine = (direction @ inside.T / inside.norm(dim=1)).amax(dim=1)
    scores = (2 - 2 * cosine).clamp(min=0).sqrt().sort().values
    gate = bundle.detector.gate
    assert gate.known == pytest.approx(scores[8].item(), abs=2e-4)  # 0.9 of 9 images: 9 of them
    hidden = hidden_scores(knn_pca, features, logits, labels, fitted)
    assert gate.vehicle == pytest.approx(max(gate.known, hidden.max().item()), abs=2e-4)
    assert gate.dull == pytest.approx(contrast(image).min().item(), abs=1e-5)
    assert (gate.soft, gate.noisy) == pytest.approx((detail(image).min().item(), detail(image).max().item()), abs=1e-4)
    assert gate.shortest == 20


def test_every_answer_says_what_its_numbers_say(recognizer: Recognizer, pictures: list[bytes]) -> None:
    detector = recognizer.detector
    assert detector is not None
    assert isinstance(detector.fitted, ReducedKNNFitted)
    gate, reasons = detector.gate, []
    inside = detector.fitted.prototype.numpy() @ detector.fitted.basis.numpy().T
    for picture in pictures:
        answer, pixels = recognizer(picture), recognizer.read(picture)[None]
        features = recognizer.runtime(pixels)["features"][0]
        score = np.linalg.norm(inside - features / np.linalg.norm(features), axis=1).min()
        grey = pixels[0].mean(axis=-1) / 255
        inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
        light, edges = grey.std(), np.log(max(inner.std(), 1e-4) / max(grey.std(), 1e-4))
        if min(Image.open(io.BytesIO(picture)).size) < 20:
            wanted = "too_small"
        elif score <= gate.known:
            wanted = "ok"
        elif light < gate.dull or not gate.soft <= edges <= gate.noisy:
            wanted = "low_quality"
        else:
            wanted = "unknown_vehicle" if score <= gate.vehicle else "not_a_vehicle"
        reasons.append(answer.reason)
        assert (answer.reason, answer.known) == (wanted, wanted == "ok")
        assert answer.to_dict()["reason"] == wanted
    assert reasons[:12].count("ok") >= 8
    assert reasons[-1] == "too_small"
    assert reasons[-2] == "low_quality"
    assert reasons[-3] in ("unknown_vehicle", "not_a_vehicle")
    assert [answer.reason for answer in recognizer(pictures)] == reasons
    assert [a.reason for a in recognizer.stream(pictures) if isinstance(a, Answer)] == reasons


def test_where_the_side_is_not_known_nothing_is_too_small(recognizer: Recognizer, pictures: list[bytes]) -> None:
    small = recognizer.outputs(recognizer.read(pictures[-1])[None])
    [ready] = recognizer.answers_from(small)
    assert ready.reason != "too_small"
    sides = [recognizer.answers_from(small, sides=[side])[0].reason for side in (19, 20, None)]
    assert sides == ["too_small", ready.reason, ready.reason]
    red = np.asarray(Image.open(io.BytesIO(pictures[0])))
    assert recognizer(vmmr.Crop(red, Box(0, 0, 48, 19))).reason == "too_small"
    assert recognizer(vmmr.Crop(red, Box(30, 0, 400, 36))).reason == "too_small"  # cut at the border
    assert recognizer.prepare(vmmr.Crop(red, Box(30, 0, 400, 36))).side == 18


def test_a_bundle_that_cannot_tell_says_none(tiny_run: Path, pictures: list[bytes]) -> None:
    answers = vmmr.load(tiny_run / "bundle")(pictures)
    assert {(answer.known, answer.reason) for answer in answers} == {(None, "ok")}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("ok", "Audi S4 2012 (41.0%)"),
        ("unsure", "unsure, perhaps Audi S4 2012 (41.0%)"),
        ("unknown_vehicle", "unknown vehicle, perhaps Audi S4 2012 (41.0%)"),
        ("not_a_vehicle", "not a vehicle, perhaps Audi S4 2012 (41.0%)"),
        ("too_small", "too small, perhaps Audi S4 2012 (41.0%)"),
        ("low_quality", "bad picture, perhaps Audi S4 2012 (41.0%)"),
    ],
)
def test_an_answer_in_words(reason: str, words: str) -> None:
    assert str(Answer("Audi", "S4", 2012, 0.41, reason=reason)) == words
    silent = str(Answer("", "", None, 0.41, level="", reason=reason))
    assert silent == ("unsure (41.0%)" if reason == "ok" else f"{words.partition(',')[0]} (41.0%)")


def test_weights_that_give_no_numbers_give_no_answer(tiny_known: Path, tiny_run: Path, pictures: list[bytes]) -> None:
    for folder, known in ((tiny_known, False), (tiny_run / "bundle", None)):
        bundle = read_bundle(folder)
        broken = {name: t * torch.nan if name.endswith("bn1.weight") else t for name, t in bundle.tensors.items()}
        assert any(tensor.isnan().any() for tensor in broken.values())
        answers = Recognizer(replace(bundle, tensors=broken))(pictures)
        nothing = Answer("", "", None, 0.0, level="", known=known, reason="unsure")
        assert answers == [nothing] * len(pictures)
        assert json.loads(json.dumps(answers[0].to_dict(), allow_nan=False))["known"] is known


def test_levels_without_numbers_say_nothing() -> None:
    from vmmr.taxonomy import Taxonomy

    cars = Taxonomy.from_rows(["Audi", "Audi", "VW"], ["A4", "A6", "Golf"])
    spec = ModelSpec("plain", "test_resnet", 3, hierarchy=HierarchySpec(("make", "class", "year_value"), {}))
    state = build_network(spec, cars).state_dict()
    detector = Detector("msp", Gate(0.5, 0.9, 0.0, -99.0, 99.0), Fitted())
    for model in (Bundle(spec, cars, Preprocess(32, 32), state, ""),):
        for judge in (None, detector):
            recognizer = Recognizer(replace(model, detector=judge))
            outputs = recognizer.outputs(RANDOM.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
            for row, bad in enumerate((np.nan, np.inf, -np.inf)):
                outputs["logits"][row, row] = bad
            answers = recognizer.answers_from(outputs)
            known = None if judge is None else False
            assert [(a.level, a.known, a.reason) for a in answers[:3]] == [("", known, "unsure")] * 3
            assert answers[3].level == "class"
            assert answers[3].confidence > 0


def test_bulk_has_both_columns(tiny_known: Path, recognizer: Recognizer, pictures: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"{number:02d}.png").write_bytes(picture)
    (folder / "99.png").write_bytes(b"broken")
    run_bulk(tiny_known, [folder], tmp_path / "out", progress=False)
    found = {Path(row["path"]).name: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    for number, answer in enumerate(recognizer(pictures)):
        row = found[f"{number:02d}.png"]
        assert (row["known"], row["reason"]) == (answer.known, answer.reason)
    assert (found["99.png"]["known"], found["99.png"]["reason"]) == (None, None)


def test_a_track_is_judged_by_the_medians_of_its_frames(recognizer: Recognizer, pictures: list[bytes]) -> None:
    detector = recognizer.detector
    assert detector is not None
    frames = [np.asarray(Image.open(io.BytesIO(picture))) for picture in [*pictures[:4], *[pictures[15]] * 4]]
    tracks = {"known": [0, 1, 2, 3, 4], "strange": [0, 4, 5, 6, 7], "even": [1, 6], "small": [0]}
    sightings = [Sighting(n, name, None) for name, seen in tracks.items() for n in seen if name != "small"]
    sightings.append(Sighting(0, "small", Box(0, 0, 10, 36)))
    told = {track.track: track.answer for track in answer_tracks(recognizer, iter(frames), sightings)}
    signs = recognizer.outputs(np.stack([recognizer.read(frame) for frame in frames]))["signs"]
    for name in ("known", "strange", "even"):
        middle = np.median(signs[tracks[name]], axis=0)
        wanted = detector.reason(middle.tolist(), sure=True, side=36)
        answer = told[name]
        assert answer is not None
        assert (answer.reason, answer.known) == (wanted, wanted == "ok")
    assert told["known"] is not None
    assert told["known"].known  # one strange frame of five
    assert told["strange"] is not None
    assert not told["strange"].known
    assert told["small"] is not None
    assert told["small"].reason == "too_small"


def test_the_server_says_what_the_recogniser_says(recognizer: Recognizer, pictures: list[bytes]) -> None:
    model = Model(recognizer, "1")
    items = [{"want": "answer", "top": 2} for _ in pictures]
    items[3] = {"want": "embedding"}
    items.append({"want": "answer", "top": 2, "box": [0, 0, 48, 15]})
    results = model.do(items, [*pictures, pictures[0]])[0]["results"]
    wanted = recognizer(pictures, top=2)
    for place, (result, answer) in enumerate(zip(results, wanted, strict=False)):
        if place != 3:
            assert (result["known"], result["reason"], result["make"]) == (answer.known, answer.reason, answer.make)
    assert results[-1]["reason"] == "too_small"
    assert "embedding" in results[3]


def test_predict_prints_it(
    tiny_known: Path, pictures: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.png").write_bytes(pictures[-1])
    assert main(["predict", str(tiny_known), str(tmp_path / "small.png")]) == 0
    assert re.search(
        r"small\.png: too small, perhaps (Audi|BMW) \w+ \d+ \([0-9.]+%\)$", capsys.readouterr().out.strip()
    )
    assert main(["predict", str(tiny_known), str(tmp_path / "small.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["known"], told["reason"]) == (False, "too_small")


def test_calibrate_needs_validation_images_and_leaves_test_images_alone(
    tiny_run: Path, tiny_cars: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))
    before = (folder / "manifest.json").read_bytes()
    assert main(["calibrate", str(folder), "--data", str(tiny_cars)]) == 2
    assert "no validation images" in capsys.readouterr().err
    assert main(["calibrate", str(folder), "--data", str(tiny_table), "--shortest", "65"]) == 2
    assert "shortest is out of range" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before
    without = tmp_path / "without.csv"
    lines = tiny_table.read_text().splitlines()
    without.write_text("\n".join(line for line in lines if not line.endswith(",test")))
    found = []
    for table in (tiny_table, without):
        assert main(["calibrate", str(folder), "--data", str(table), "--unknown", "himplos"]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["unknown"])
        assert read_bundle(folder).detector is not None
    assert found[0] == found[1]
    assert found[0]["score"] == "himplos"
    bundle = read_bundle(folder)
    assert bundle.tensors.keys() == read_bundle(tiny_run / "bundle").tensors.keys()
    assert bundle.spec == read_bundle(tiny_run / "bundle").spec


def test_training_ends_with_it(tiny_cars: Path, tmp_path: Path) -> None:
    assert recipe("robust").unknown == "knn_pca"
    settings = {"backbone": "test_resnet", "size": 32, "crop": 1.0, "batch_size": 8, "near_duplicates": False}
    config = recipe("plain").with_(**settings, epochs=1, levels=["make", "class"], unknown="knn", val_fraction=0.2)
    train(config, tiny_cars, tmp_path / "run", progress=False, test=False)
    recognizer = vmmr.load(tmp_path / "run" / "bundle")
    answer = recognizer(next((tiny_cars / "test").rglob("*.png")))
    assert answer.known is not None
    assert recognizer.detector is not None
    assert recognizer.detector.score == "knn"
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert (write_bundle(tmp_path / "again", bundle) / "unknown.safetensors").exists()
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    side = open_side(bundle.labelled(Manifest.load(tiny_cars).split("train"))[0], preprocess, levels=bundle.levels)
    with pytest.raises(ConfigError, match="reads a plain classifier"):
        with_unknown(bundle, side, side, preprocess, score="vim")
    assert with_unknown(bundle, side, side, preprocess, score="energy").detector is not None


def test_classes_without_images_are_named_before_anything_is_trained() -> None:
    require_fittable(np.array([0, 1, 1, -1]), 2)
    for labels, classes, words in (([0, 0, -1], 2, "2 classes, 1 without"), ([0], 1, "1 classes, 0 without")):
        with pytest.raises(DataError, match=words):
            require_fittable(np.array(labels), classes)
