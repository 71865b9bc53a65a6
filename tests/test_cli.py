from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from vmmr.cli import main
from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.export.bundle import read_bundle

TINY = ["--backbone", "test_resnet", "--size", "32", "--crop", "1.0", "--batch_size", "8", "--near_duplicates", "false"]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_train_distil_evaluate_predict(tiny_cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    data = ["--data", str(tiny_cars)]
    assert main(["train", "--recipe", "pmal_fast", *data, "--out", str(teacher), "--epochs", "2", *TINY]) == 0
    metrics = json.loads((teacher / "metrics.json").read_text())
    assert 0 <= metrics["val_top1"] <= 1
    assert metrics["test_images"] == 12
    assert not (teacher / "checkpoints").exists()
    words = ["--teacher", str(teacher / "bundle"), *data, "--out", str(student), "--epochs", "2", "--batch_size", "8"]
    assert main(["distil", *words, "--near_duplicates", "false"]) == 0
    # Backbone and input came from the teacher.
    assert yaml.safe_load((student / "config.yaml").read_text())["backbone"] == "test_resnet"
    capsys.readouterr()

    report = tmp_path / "report.json"
    assert main(["evaluate", str(student / "bundle"), *data, "--noise", "--json", str(report)]) == 0
    document = json.loads(report.read_text())
    assert document["data"] == {"split": "test", "images": 12, "classes": 3, "makes": 2}
    assert document["bundle"]["kind"] == "plain"
    assert document["cost"]["images_per_s"] > 0
    assert {"clean", "gaussian_0.4", "fog@3"} <= set(document["conditions"])
    assert document["conditions"]["clean"]["top1"] == pytest.approx(
        json.loads((student / "metrics.json").read_text())["test_top1"]
    )
    capsys.readouterr()

    assert main(["predict", str(student / "bundle"), str(tiny_cars / "test"), "--json"]) == 0
    answers = lines(capsys)
    assert len(answers) == 12
    assert set(answers[0]) == {
        "path",
        "make",
        "model",
        "year",
        "confidence",
        "alternatives",
        "level",
        "levels",
        "known",
        "reason",
    }


def test_only_validation_images_fit_a_temperature(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(tiny_cars)
    splits = np.where(manifest.splits == "train", "val", manifest.splits)
    manifest.with_splits(splits).write(tmp_path / "cars.csv")
    words = ["evaluate", str(tiny_run / "bundle"), "--data", str(tmp_path / "cars.csv")]
    fitted_on = {}
    for split in ("test", "val"):
        assert main([*words, "--split", split, "--json", str(tmp_path / "found.json")]) == 0
        fitted_on[split] = json.loads((tmp_path / "found.json").read_text())["calibration"]["fitted_on"]
    assert fitted_on["test"] == "val"
    assert fitted_on["val"] != "val"


def test_report_card_and_compare(
    tiny_cars: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, page, table = tmp_path / "mine" / "bundle", tmp_path / "page.html", tmp_path / "table.md"
    shutil.copytree(tiny_run / "bundle", bundle)
    before, report = read_bundle(bundle), tmp_path / "mine" / "report"
    words = ["--data", str(tiny_cars), "--noise", "--report", str(report), "--card", "--licence", "CC0 (made up)"]
    assert main(["evaluate", str(bundle), *words]) == 0
    document = json.loads((report / "results.json").read_text())
    after = read_bundle(bundle)
    assert document["bundle"]["digest"] == after.digest != before.digest
    assert after.card.startswith(before.card)
    assert "CC0 (made up)" in after.card
    top1 = f"{100 * document['conditions']['fog@3']['top1']:.1f} %"
    shown = (report / "report.html").read_text(encoding="utf-8")
    assert f'<th scope="row">fog</th><td>{top1}</td>' in re.sub(r">\s+<", "><", shown)
    pictures = 6 * 2 + len(document["worst_classes"])  # clean and degraded; nothing is restored
    assert shown.count("<img ") == pictures
    assert sorted(p.name for p in report.iterdir()) == ["report.html", "results.json"]

    table.write_text("# Mine\n<!-- results: generated --><!-- end of results -->\n")
    other = tmp_path / "other.json"
    shutil.copy(report / "results.json", other)
    assert main(["compare", str(report), str(other), "--out", str(page), "--markdown", str(table)]) == 0
    assert "<h1>mine and other in bad images</h1>" in page.read_text(encoding="utf-8")
    clean = f"**{100 * document['conditions']['clean']['top1']:.1f} %**"
    assert table.read_text().startswith("# Mine\n")
    assert f"| Clean images | {clean}" in table.read_text()

    document["data"]["images"] += 1
    other.write_text(json.dumps(document))
    kept = page.read_bytes()
    capsys.readouterr()
    assert main(["compare", str(report), str(other), "--out", str(page)]) == 2
    assert "different images" in capsys.readouterr().err
    assert main(["compare", str(report), "--out", str(tmp_path / "gone" / "page.html")]) == 2
    assert main(["evaluate", str(bundle), "--data", str(tiny_cars), "--report", str(page)]) == 2
    assert "folder of the report" in capsys.readouterr().err
    assert page.read_bytes() == kept


def test_predict_answers_the_others_and_ends_with_1(
    tiny_cars: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(tiny_cars / "test" / "Audi" / "A4" / "2012" / "0.png")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture at all")
    gone = str(tmp_path / "gone.jpg")
    assert main(["predict", str(tiny_run / "bundle"), good, str(bad), gone, good, "--json"]) == 1
    found = lines(capsys)
    assert [("error" in line) for line in found] == [False, True, True, False]
    assert found[0] == found[3]
    assert "bad.jpg" in str(found[1]["error"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "nowhere", "--out", "x"], "nowhere"),
        (["train", "--recipe", "pmal_fast", "--noise", "none", "--data", ".", "--out", "x"], "nothing to restore"),
        (["train", "--recipe", "pmd_fast", "--data", ".", "--out", "x"], "vmmr distil"),
        (["distil", "--teacher", "nowhere", "--data", ".", "--out", "x"], "no such bundle"),
        (["predict", "nowhere", "a.jpg"], "no such bundle"),
        (["evaluate", "nowhere", "--data", "CARS", "--licence", "CC0"], "pass both"),
        (["compare", "nowhere.json", "--out", "x.html"], "cannot read results"),
        (["compare", "a/bundle", "a.json", "--out", "x.html"], "--names"),
        (["data", "check", "nowhere.csv"], "nowhere.csv"),
        (["train", "--backbone", "no_such_net", "--data", "CARS", "--out", "OUT"], "no_such_net"),
        (["train", "--weights", "x.pt", "--data", "CARS", "--out", "OUT", "--backbone", "test_resnet"], ".safetensors"),
        (["train", "--batch_size", "4000", "--data", "CARS", "--out", "OUT", *TINY[:6]], "batch"),
    ],
)
def test_mistakes_end_with_one_sentence(
    words: list[str], message: str, tiny_cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CARS": str(tiny_cars), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vmmr: ")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "bundle").exists()


def test_a_folder_that_holds_a_run_is_left_alone(
    tiny_cars: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tiny_run / "metrics.json").read_bytes()
    assert main(["train", "--data", str(tiny_cars), "--out", str(tiny_run), *TINY]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert (tiny_run / "metrics.json").read_bytes() == before


def test_a_test_only_manifest_is_refused_for_training(
    tiny_cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.load(tiny_cars).split("test")
    manifest.write(tmp_path / "test.csv")
    assert main(["train", "--data", str(tmp_path / "test.csv"), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "test" in capsys.readouterr().err


def test_the_yaml_a_run_leaves_is_its_configuration(tiny_run: Path) -> None:
    document = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert set(document) == {field.name for field in fields(TrainConfig)}
    assert TrainConfig(**document).to_dict() == document


def test_config_file_below_flags_above_recipe(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    words = ["--config", str(tiny_run / "config.yaml"), "--epochs", "1", "--data", str(tiny_cars)]
    assert main(["train", *words, "--out", str(tmp_path / "again")]) == 0
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    first = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert again == {**first, "epochs": 1}


def test_import_and_check(tiny_cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "manifest.csv"
    assert main(["data", "import", "class_folders", str(tiny_cars), "--out", str(table)]) == 0
    assert len(Manifest.load(table)) == 48
    assert main(["data", "check", str(table), "--json", str(tmp_path / "check.json")]) == 0
    assert json.loads((tmp_path / "check.json").read_text())["rows"] == 48
    assert "duplicates" in capsys.readouterr().out


def test_levels_are_flags() -> None:
    from vmmr.cli import _parser

    words = ["train", "--data", "x", "--out", "y", "--levels", "[make, class]", "--hierarchy", "conditional"]
    words += ["--level_weights", "{make: 0.5}", "--head_dropout", "0.2", "--stop_gradient", "true"]
    args = _parser(words).parse_args(words)["train"]
    assert (args.levels, args.hierarchy, args.level_weights) == (["make", "class"], "conditional", {"make": 0.5})
    assert (args.head_dropout, args.stop_gradient) == (0.2, True)


def test_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "render", "--out", str(tmp_path / "set"), "--train", "1", "--test", "1", "--size", "32"]
    assert main(words) == 0
    assert len(Manifest.load(tmp_path / "set")) == 96


def test_the_command_is_installed(tiny_cars: Path, tiny_run: Path) -> None:
    command = Path(sys.executable).with_name("vmmr")
    image = tiny_cars / "test" / "BMW" / "M3" / "2010" / "1.png"
    done = subprocess.run(
        [command, "predict", tiny_run / "bundle", image, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["make"] == "BMW"
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("vmmr 0.")


def test_export_bench_predict(
    tiny_cars: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, image = tmp_path / "int8", str(tiny_cars / "test" / "BMW" / "M3" / "2010" / "1.png")
    words = ["export", str(tiny_run / "bundle"), "--format", "openvino", "--precision", "int8", "--out", str(out)]
    assert main(words) == 2
    assert "calibrated on images" in capsys.readouterr().err
    assert main([*words, "--data", str(tiny_cars), "--images", "24"]) == 0
    said = capsys.readouterr().out
    card = (out / "card.md").read_text()
    assert said.startswith("## Exported: openvino, int8")
    assert said.splitlines()[0] in card
    cost = json.loads((out / "config.json").read_text())["cost"]
    assert cost["images"] == 12  # those of the 36 training pictures that calibration did not see
    assert set(cost["conditions"]) == {"clean", "gaussian_0.2", "fog@3", "motion_blur@3"}
    assert cost["conditions"]["clean"]["agreement"] >= 0.9
    assert main(["predict", str(out), image, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["make"] == "BMW"
    assert "openvino, int8" in shown.err
    assert main(["bench", str(out), "--batches", "1", "--threads", "1", "--seconds", "0.02"]) == 0
    assert "int8" in capsys.readouterr().out


def test_predict_in_bulk(tiny_cars: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(tiny_run / "bundle"), str(tiny_cars / "test"), "--out", str(tmp_path / "answers")]
    assert main([*words, "--part", "5"]) == 0
    assert lines(capsys) == [{"out": str(tmp_path / "answers"), "pictures": 12, "answered": 12, "failed": 0}]
    found = pq.read_table(tmp_path / "answers", columns=["path", "make"]).to_pylist()
    assert {Path(row["path"]).parts[-4] for row in found} == {"Audi", "BMW"}
    right = sum(row["make"] == Path(row["path"]).parts[-4] for row in found)
    assert right >= 10
    assert main([*words, "--part", "6"]) == 2
    assert "another part" in capsys.readouterr().err


def test_track(tiny_cars: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = tiny_cars / "test" / "BMW" / "M3" / "2010"
    table = tmp_path / "sightings.csv"
    table.write_text("frame,track,left,top,right,bottom\n0,7,0,0,48,36\n3,7,4,0,40,36\n1,8,100,0,120,20\n")
    words = ["track", str(tiny_run / "bundle"), str(frames), "--sightings", str(table)]
    assert main([*words, "--json"]) == 1  # track 8 is never in the picture
    seen, unseen = lines(capsys)
    assert (seen["track"], seen["frames"], seen["first"], seen["last"]) == ("7", 2, 0, 3)
    assert isinstance(seen["answer"], dict)
    assert seen["answer"]["make"] == "BMW"
    assert (unseen["answer"], unseen["failed"]) == (None, 1)
    main(words)
    assert re.search(r"^7: BMW M3 2010 \([0-9.]+%\), frames 0 to 3, 2 of them seen$", capsys.readouterr().out, re.M)
