from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vmmr
from vmmr.cli import main
from vmmr.data.manifest import Manifest
from vmmr.errors import BundleError, ConfigError, DataError
from vmmr.export.bundle import read_bundle, write_bundle
from vmmr.triage import Triage, run_triage
from vmmr.unknown import Fitted
from vmmr.unknown.detector import Detector
from vmmr.unknown.groups import merge_distance
from vmmr.unknown.knn import KNNFitted

COLOURS = {"lime": ((150, 240, 40), 6), "cyan": ((30, 215, 215), 5), "white": ((240, 240, 240), 4)}
"""Of strangers, with how many there are."""


def coloured(colour: tuple[int, int, int], seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-40, 40, (36, 48, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tiny_cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Known cars, strangers of three colours, one of its own, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("camera")
    for number, path in enumerate(sorted((tiny_cars / "test").rglob("*.png"))):
        shutil.copy(path, folder / f"known-{number}.png")
    for name, (colour, count) in COLOURS.items():
        for number in range(count):
            (folder / f"{name}-{number}.png").write_bytes(coloured(colour, number))
    (folder / "cut.png").write_bytes(coloured((0, 0, 0), 0)[:70])
    return folder


@pytest.fixture(scope="module")
def bundle(tiny_known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_known, for which every stranger is a vehicle, and no picture a bad one."""
    model = read_bundle(tiny_known)
    assert model.detector is not None
    gate = replace(model.detector.gate, vehicle=2.0, dull=0.0, soft=-99.0, noisy=99.0)
    return write_bundle(
        tmp_path_factory.mktemp("open") / "bundle", replace(model, detector=replace(model.detector, gate=gate))
    )


@pytest.fixture(scope="module")
def triaged(bundle: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Triage]:
    out = tmp_path_factory.mktemp("triaged") / "out"
    return out, run_triage(bundle, [folder], out, distance=0.05, part=10, progress=False)


def table(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pa_csv.read_csv(path).to_pylist()
    return rows


def test_the_unknown_are_taken_and_the_known_left_alone(triaged: tuple[Path, Triage], bundle: Path) -> None:
    out, told = triaged
    recognizer = vmmr.load(bundle)
    assert (told.pictures, told.failed) == (12 + 15 + 1, 1)
    rejected = {Path(str(row["path"])) for row in table(out / "candidates.csv") + table(out / "unclustered.csv")}
    assert {path.name for path in rejected} >= {f"{name}-{k}.png" for name, (_, n) in COLOURS.items() for k in range(n)}
    for path in next(iter(rejected)).parent.glob("*-*.png"):
        answer = recognizer(path)
        assert (answer.known, answer.reason) == ((False, "unknown_vehicle") if path in rejected else (True, "ok"))
    assert told.reasons == {"ok": 27 - len(rejected), "unknown_vehicle": len(rejected)}
    assert told.strange == len(rejected)


def test_each_candidate_is_one_colour(triaged: tuple[Path, Triage]) -> None:
    out, told = triaged
    rows = table(out / "candidates.csv")
    of: dict[object, set[str]] = {}
    for row in rows:
        of.setdefault(row["candidate"], set()).add(Path(str(row["path"])).name.split("-")[0])
    assert [of[1], of[2], of[3]] == [{"lime"}, {"cyan"}, {"white"}]
    assert (told.candidates, told.grouped) == (len(of), len(rows))
    assert [row["candidate"] for row in rows] == sorted(int(str(row["candidate"])) for row in rows)


def test_the_table_is_a_manifest_with_a_label_a_candidate(triaged: tuple[Path, Triage]) -> None:
    out, told = triaged
    manifest = Manifest.load(out / "candidates.csv")
    rows = table(out / "candidates.csv")
    assert len(manifest) == told.grouped
    assert len(manifest.taxonomy) == told.candidates
    assert manifest.path_list() == [row["path"] for row in rows]
    assert all(Path(path).is_file() for path in manifest.path_list())
    assert manifest.column("model").tolist() == [f"candidate {int(str(row['candidate'])):03}" for row in rows]
    assert (manifest.boxes == -1).all()


def test_the_nearest_class_and_the_make_are_those_of_the_pictures(triaged: tuple[Path, Triage], bundle: Path) -> None:
    out, _ = triaged
    recognizer = vmmr.load(bundle)
    assert recognizer.detector is not None
    assert isinstance(recognizer.detector.fitted, KNNFitted)
    bank, labels = recognizer.detector.fitted.bank.numpy(), recognizer.detector.fitted.label.numpy()
    rows = table(out / "candidates.csv")
    for row in rows[::4]:
        own = recognizer.embed([str(row["path"])])[0]
        apart = [float(np.mean(1 - bank[labels == label] @ own)) for label in range(3)]
        assert row["nearest"] == recognizer.taxonomy.names[int(np.argmin(apart))]
        assert row["nearest_distance"] == pytest.approx(min(apart), abs=2e-4)
    for number in (1, 2, 3):
        answers = [recognizer(str(row["path"])).make for row in rows if row["candidate"] == number]
        most = max(set(answers), key=answers.count)
        agreed = answers.count(most) >= 2 / 3 * len(answers)
        assert {row["make"] for row in rows if row["candidate"] == number} == {most if agreed else ""}


def test_the_distance_is_that_of_the_known_classes(bundle: Path, folder: Path, tmp_path: Path) -> None:
    told = run_triage(bundle, [folder], tmp_path / "out", least=20, progress=False)
    fitted = read_bundle(bundle).detector
    assert fitted is not None
    assert isinstance(fitted.fitted, KNNFitted)
    assert told.distance == pytest.approx(
        merge_distance(fitted.fitted.bank.numpy(), fitted.fitted.label.numpy()), abs=1e-4
    )
    assert (told.candidates, told.grouped) == (0, 0)
    assert table(tmp_path / "out" / "candidates.csv") == []
    assert len(table(tmp_path / "out" / "unclustered.csv")) == told.strange
    assert "No candidates for new models" in (tmp_path / "out" / "triage.html").read_text(encoding="utf-8")


def test_it_goes_on_where_it_stopped_and_keeps_what_was_edited(
    bundle: Path, folder: Path, triaged: tuple[Path, Triage], tmp_path: Path
) -> None:
    before, told = triaged
    out = shutil.copytree(before, tmp_path / "out")
    parts = sorted((out / "embeddings").glob("part-*.parquet"))
    assert len(parts) == 3
    kept = {part: part.stat().st_mtime_ns for part in parts[1:]}
    for gone in (parts[0], out / "triage.html", out / "candidates.csv"):
        gone.unlink()
    assert run_triage(bundle, [folder], out, distance=0.05, part=10, progress=False) == told
    assert all(part.stat().st_mtime_ns == time for part, time in kept.items())
    for name in ("triage.html", "candidates.csv", "unclustered.csv"):
        assert (out / name).read_bytes() == (before / name).read_bytes()
    text = (out / "candidates.csv").read_text(encoding="utf-8").replace("candidate 001", "Lime One")
    (out / "candidates.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="may have been edited"):
        run_triage(bundle, [folder], out, distance=0.05, part=10, progress=False)
    assert (out / "candidates.csv").read_text(encoding="utf-8") == text
    assert "Lime One" in Manifest.load(out / "candidates.csv").column("model").tolist()
    (out / "candidates.csv").unlink()
    with pytest.raises(ConfigError, match="may have been edited"):
        run_triage(bundle, [folder], out, least=20, part=10, progress=False)
    assert not (out / "candidates.csv").exists()  # all tables are of one run
    (out / "embeddings" / "_job.json").write_text("{}")
    with pytest.raises(ConfigError, match="of other answers"):
        run_triage(bundle, [folder], out, distance=0.05, part=10, progress=False)


def test_boxes_and_pictures_that_are_gone_meanwhile(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "pictures")
    rows = ["path,left,top,right,bottom"]
    rows += [f"pictures/{path.name},4,2,44,32" for path in sorted(folder.glob("lime-*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    from vmmr import triage

    answer = triage.run_bulk

    def and_lose_one(*args: object, **named: object) -> object:
        done = answer(*args, **named)  # type: ignore[arg-type]
        (tmp_path / "pictures" / "lime-0.png").unlink(missing_ok=True)
        return done

    monkeypatch.setattr(triage, "run_bulk", and_lose_one)
    told = run_triage(bundle, [tmp_path / "table.csv"], tmp_path / "out", distance=0.1, progress=False)
    assert (told.pictures, told.failed, told.strange, told.candidates, told.grouped) == (6, 1, 5, 1, 5)
    assert Manifest.load(tmp_path / "out" / "candidates.csv").boxes.tolist() == [[4, 2, 44, 32]] * 5
    page = (tmp_path / "out" / "triage.html").read_text(encoding="utf-8")
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [Image.open(io.BytesIO(base64.b64decode(data))).size for data in shown] == [(40, 30)] * 5
    [part] = (tmp_path / "out" / "embeddings").glob("part-*.parquet")
    found = pq.read_table(part).to_pylist()
    crop = vmmr.Crop(found[1]["path"], vmmr.Box(4, 2, 44, 32))
    np.testing.assert_allclose(found[1]["direction"], vmmr.load(bundle).embed([crop])[0], atol=1e-5)
    assert found[0]["direction"] is None
    assert "lime-0.png" in found[0]["error"]


def test_what_is_no_vehicle_is_grouped_only_when_asked(tiny_known: Path, folder: Path, tmp_path: Path) -> None:
    model = read_bundle(tiny_known)
    assert model.detector is not None
    gate = replace(model.detector.gate, vehicle=model.detector.gate.known, dull=0.0, soft=-99.0, noisy=99.0)
    bundle = write_bundle(tmp_path / "bundle", replace(model, detector=replace(model.detector, gate=gate)))
    near = run_triage(bundle, [folder], tmp_path / "near", distance=0.05, progress=False)
    far = run_triage(bundle, [folder], tmp_path / "far", distance=0.05, far=True, progress=False)
    assert near.strange == near.candidates == 0
    assert far.strange == far.reasons["not_a_vehicle"] >= 15


def test_mistakes_are_said_first(tiny_run: Path, bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BundleError):
        run_triage(tmp_path / "nothing", [folder], out)
    with pytest.raises(ConfigError, match="cannot tell unknown"):
        run_triage(tiny_run / "bundle", [folder], out)
    model = read_bundle(bundle)
    assert model.detector is not None
    plain = replace(model, detector=Detector("msp", model.detector.gate, Fitted()))
    with pytest.raises(ConfigError, match="keeps none; got unknown msp"):
        run_triage(write_bundle(tmp_path / "msp", plain), [folder], out)
    for settings in ({"distance": 3.0}, {"least": 0}):
        with pytest.raises(ConfigError, match="distance lies"):
            run_triage(bundle, [folder], out, **settings)  # type: ignore[arg-type]
    assert not out.exists()
    with pytest.raises(DataError, match="check the path"):
        run_triage(bundle, [tmp_path / "nothing"], out, progress=False)


def test_the_command_says_what_came_of_it(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["triage", str(bundle), str(folder), "--out", str(tmp_path / "out"), "--distance", "0.05"]
    assert main(words) == 1  # one picture cannot be read
    said = json.loads(capsys.readouterr().out)
    assert (said["out"], said["pictures"], said["failed"], said["distance"]) == (str(tmp_path / "out"), 28, 1, 0.05)
    assert said["candidates"] >= 3
    assert main(["triage", str(tmp_path), str(folder), "--out", str(tmp_path / "other")]) == 2
