"""A study: what its file means, and a whole one in small, killed on its way and taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import vmmr.evaluation.study_page
import vmmr.study
from vmmr.config import TrainConfig
from vmmr.errors import ConfigError
from vmmr.files import alone_in
from vmmr.study import Study, expand, read_study, run_key, run_study
from vmmr.workers import Worker, do_all, start_workers

ROOT = Path(__file__).parents[1]
TINY = {"backbone": "test_resnet", "size": 32, "crop": 1.0, "epochs": 2, "batch_size": 8, "lr": 5e-3, "trunk_lr": 5e-3}
TINY |= {"near_duplicates": False, "val_fraction": 0.25, "measure_every": 1}


def documented() -> dict[str, Any]:
    """The example of the page, as it stands there."""
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def _read(folder: Path, said: Any, **given: Any) -> Study:
    file = folder / "study.yaml"
    file.write_text(said if isinstance(said, str) else yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    return read_study(file, **given)


# What the file means


def test_the_grid_is_the_naive_product(tmp_path: Path) -> None:
    axes: dict[str, Any] = {
        "head_dropout": [0.0, 0.5],
        "weights": {"uniform": {}, "tuned": [{}, {"level_weights": {"make": 0.3}}], "avg": {"balancer": "avgnorm"}},
        "backbone": {"a": {"backbone": "test_resnet"}, "b": {"backbone": "resnet18", "lr": 0.1}},
    }
    rows = {"make": {"levels": ["make"]}, "both": {"levels": ["make", "class"], "hierarchy": "coarse_to_fine"}}
    said = {"data": "d", "out": "o", "base": {"epochs": 3, "measure_every": 5}, "rows": rows, "grid": axes}
    found = expand(_read(tmp_path, said))
    expected = []
    for dropout, backbone in product((0.0, 0.5), "ab"):
        expected.append(("make", {"head_dropout": str(dropout), "backbone": backbone}))
    for dropout, weights, backbone in product((0.0, 0.5), ("uniform", "tuned", "avg"), "ab"):
        expected.append(("both", {"head_dropout": str(dropout), "weights": weights, "backbone": backbone}))
    assert [(setting.row, dict(setting.choices)) for setting in found] == expected
    for setting in found:
        assert setting.shared == {k: v for k, v in setting.choices.items() if k != "weights"}
        assert len(setting.candidates) == (2 if setting.choices.get("weights") == "tuned" else 1)
        for place, config in enumerate(setting.candidates):
            assert config.epochs == 3
            assert str(config.head_dropout) == setting.choices["head_dropout"]
            assert (config.backbone, config.lr) == {"a": ("test_resnet", 4e-3), "b": ("resnet18", 0.1)}[
                setting.choices["backbone"]
            ]
            single = setting.row == "make"
            assert config.measure_every == (0 if single else 5)
            assert config.hierarchy == ("parallel" if single else "coarse_to_fine")
            assert config.balancer == ("avgnorm" if setting.choices.get("weights") == "avg" else "none")
            assert config.level_weights == ({"make": 0.3} if place == 1 else {})


def test_both_examples_have_the_same_rows() -> None:
    real, rendered = (
        read_study(ROOT / "examples" / "studies" / name, data="d", out="o")
        for name in ("levels.yaml", "levels_rendered.yaml")
    )
    assert (real.rows, real.grid, real.seeds) == (rendered.rows, rendered.grid, rendered.seeds)
    assert {c.backbone for setting in expand(rendered) for c in setting.candidates} == {"test_resnet"}


def test_the_example_has_the_rows_of_the_table() -> None:
    study = read_study(ROOT / "examples" / "studies" / "levels.yaml", data="d", out="o", weights="w.safetensors")
    found = expand(study)
    weighed = ["uniform", "tuned fixed", "uncertainty", "AvgNorm", "UPGrad"]
    multi = [f"{row}, {choice}" for row in ("parallel", "make → class", "class → make") for choice in weighed]
    assert [setting.name for setting in found] == ["make alone", "class alone", *multi]
    configs = [config for setting in found for config in setting.candidates]
    assert {(c.backbone, c.weights) for c in configs} == {("mobilenetv2_100", "w.safetensors")}
    assert {c.balancer for c in configs} == {"none", "uncertainty", "avgnorm", "upgrad"}
    assert {c.hierarchy for c in configs} == {"parallel", "coarse_to_fine", "fine_to_coarse"}
    assert len(study.seeds) == 3
    assert not study.test


@settings(max_examples=30, deadline=None)
@given(order=st.permutations([field.name for field in fields(TrainConfig)]), weights=st.permutations(["a", "b", "c"]))
def test_the_order_of_settings_does_not_name_a_run(order: list[str], weights: list[str]) -> None:
    config = TrainConfig(backbone_options=dict.fromkeys("abc", 1))
    said = config.to_dict() | {"backbone_options": dict.fromkeys(weights, 1)}
    assert run_key(TrainConfig(**{name: said[name] for name in order}), "images") == run_key(config, "images")


def test_every_setting_names_a_run() -> None:
    config = TrainConfig()
    keys = {run_key(config, "images"), run_key(config, "others")}
    for field in fields(TrainConfig):
        other = replace(config)
        value = getattr(config, field.name)
        changed = f"not {value}" if isinstance(value, str) or value is None else [value] if value else 7
        object.__setattr__(other, field.name, changed)  # whether it makes sense is not the point
        keys.add(run_key(other, "images"))
    assert len(keys) == 2 + len(fields(TrainConfig))


GOOD = {"data": "d", "out": "o", "rows": {"both": {"levels": ["make", "class"]}}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ("rows: [", "study.yaml"),
        ("- a", "study.yaml is a mapping"),
        ({"row": {}}, "'row'"),
        ({"out": None}, "lacks out"),
        ({"rows": None}, "lacks rows"),
        ({"rows": {"both": {"levles": ["make"]}}}, r"rows\.both: no such setting; got 'levles'"),
        ({"rows": {"both": {"levels": ["make", "trim"]}}}, "both: no such levels"),
        ({"rows": {"both": {"lr": 0.1}}}, r"rows\.both: a row needs its levels"),
        ({"rows": {"both": {"levels": ["make"], "method": "pmd"}}}, r"rows\.both: a study has no teachers"),
        ({"base": {"epochs": "many"}}, r"base\.epochs has a wrong value; got 'many'"),
        ({"base": {"hierarchy": "sideways"}}, r"base\.hierarchy"),
        ({"base": {"seed": 1}}, "base: seed"),
        ({"base": [1]}, "base is a mapping"),
        ({"grid": {"lr": [0.1, "fast"]}}, r"grid\.lr\.fast\.lr"),
        ({"grid": {"size": []}}, r"grid\.size has no choice"),
        ({"grid": {"w": {"x": []}}}, r"grid\.w\.x has no candidate"),
        ({"grid": {"w": {"x": {"val_fraction": 0.5}}}}, r"grid\.w\.x: val_fraction"),
        ({"grid": {"w": {"x": {"levels": ["make"]}}}}, r"levels is set twice; got rows\.both and grid\.w"),
        ({"grid": {"w": {"x": {"lr": 0.1}}, "lr": [0.2]}}, r"lr is set twice; got grid\.w and grid\.lr"),
        ({"grid": {"w": {"x": {"epochs": 0}}}}, "both, x: epochs must be at least 1"),
        ({"seeds": [0, "one"]}, "seeds"),
        ({"conditions": "clean"}, "conditions"),
        ({"recipe": "nosuch"}, "nosuch"),
        ({"test": "perhaps"}, "test is true or false"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, changes: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        expand(_read(tmp_path, changes if isinstance(changes, str) else GOOD | changes))


def test_a_worker_that_dies_says_why_and_is_replaced(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "log", {})
    for _ in range(2):
        error = worker.do({"folder": str(tmp_path), "settings": {"nosuch": 1}})
        assert error is not None
        assert "status 1: TypeError" in error
        assert "nosuch" in error
    worker.close()


def test_several_workers_do_every_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [{"name": f"job {k}", "key": f"key {k}", "folder": ".", "settings": {f"nosuch_{k}": 1}} for k in range(3)]
    jobs.append({"name": "sane", "key": "sane", "folder": ".", "settings": {"size": 0}})  # a mistake, and no crash
    with start_workers(tmp_path, 2) as workers:
        errors = do_all(workers, jobs, "train", True)
    assert set(errors) == {"key 0", "key 1", "key 2", "sane"}
    assert all(f"nosuch_{k}" in errors[f"key {k}"] for k in range(3))
    assert errors["sane"].startswith("size must be at least 1; got size=0")
    said = capsys.readouterr().err
    assert all(f"{count}/4" in said for count in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("devices", "visible", "processes", "expected"),
    [
        (0, None, 0, [{}]),
        (0, None, 2, 2 * [{"OMP_NUM_THREADS": "1"}]),
        (1, None, 2, [{}, {}]),
        (2, None, 0, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (2, "3,5", 3, [{"CUDA_VISIBLE_DEVICES": number} for number in "353"]),
    ],
)
def test_workers_share_out_the_devices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: int,
    visible: str | None,
    processes: int,
    expected: list[dict[str, str]],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with start_workers(tmp_path, processes) as workers:
        assert [worker.environment for worker in workers] == expected


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    study = _read(tmp_path, GOOD | {"out": str(tmp_path / "out")})
    with (
        alone_in(tmp_path / "out"),
        pytest.raises(ConfigError, match="another run works in this folder"),
    ):
        run_study(study, progress=False)
    with pytest.raises(ConfigError, match="cannot make the folder"), alone_in(tmp_path / "study.yaml"):
        pass


# A whole study, in small


def _small(cars: Path, out: Path) -> dict[str, Any]:
    said = documented()
    said["base"] = {**said["base"], **TINY}
    said["rows"]["broken"] = {"levels": ["make"], "weights": "nowhere.safetensors"}
    return said | {"data": str(cars), "out": str(out), "seeds": [0, 1], "conditions": ["clean", "gaussian_0.2"]}


def _until(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def done(tiny_cars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[Path, int]]:
    """A study that was killed in its second run and taken up again, with test images: its folder, what it returned,
    and when the files of the run that had been finished before the kill were written."""
    home = tmp_path_factory.mktemp("study")
    out = home / "out"
    study = _read(home, _small(tiny_cars, out))
    program = "import sys; from vmmr.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "study", str(home / "study.yaml")]
    killed = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    _until(lambda: any(out.glob("runs/*/val.json")) and any(out.glob("runs/*/checkpoints/*/state.json")))
    killed.kill()
    killed.communicate()

    def gone() -> bool:
        try:
            os.killpg(killed.pid, 0)
        except ProcessLookupError:
            return True
        return False

    _until(gone)  # its worker does not go on alone
    assert killed.returncode == -signal.SIGKILL
    finished = [path for folder in out.glob("runs/*/val.json") for path in folder.parent.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in finished}
    return out, run_study(replace(study, test=True), progress=False), before


Done = tuple[Path, dict[str, Any], dict[Path, int]]


def test_it_goes_on_where_it_was_killed(done: Done, monkeypatch: pytest.MonkeyPatch, tiny_cars: Path) -> None:
    out, document, before = done
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((out / "study.json").read_text()) == json.loads(json.dumps(document))
    assert {path.name for path in (out / "runs").iterdir() if (path / "val.json").exists()} == {
        key for key, run in document["runs"].items() if run["error"] is None
    }
    asked = []

    def refuse(workers: Any, jobs: list[dict[str, Any]], *_: Any) -> dict[str, str]:
        asked.extend(job["name"] for job in jobs)
        return {job["key"]: "not now" for job in jobs}

    monkeypatch.setattr(vmmr.study, "do_all", refuse)
    monkeypatch.setattr(vmmr.evaluation.study_page, "write_study", lambda *_: None)
    (out.parent / "again").mkdir(exist_ok=True)
    run_study(_read(out.parent / "again", _small(tiny_cars, out)), progress=False)
    assert asked == ["broken, seed 0", "broken, seed 1"]


def test_a_failing_row_stops_no_other(done: Done) -> None:
    _, document, _ = done
    failed = {key: run for key, run in document["runs"].items() if run["error"] is not None}
    assert [
        setting["name"] for setting in document["settings"] if set(setting["candidates"][0]["runs"]) & set(failed)
    ] == ["broken"]
    assert all("nowhere.safetensors" in run["error"] for run in failed.values())
    tuned = next(line for line in document["analysis"]["settings"] if line["candidates"] > 1)
    # The untuned candidate is the uniform row; the second seed has but the better one.
    assert len(document["runs"]) == 2 * (2 + 1 + 4) - 2 - (tuned["chosen"] == 0)
    assert tuned["runs"] == 3
    line = document["analysis"]["settings"][[s["row"] for s in document["settings"]].index("broken")]
    assert line["chosen"] is None
    assert line["conditions"] == {"clean": {}, "gaussian_0.2": {}}
    assert len(line["errors"]) == 1


def test_test_images_meet_only_what_validation_chose(done: Done) -> None:
    out, document, _ = done
    shown = {path.parent.name for path in out.glob("runs/*/test.json")}
    kept = set()
    for setting, line in zip(document["settings"], document["analysis"]["settings"], strict=True):
        scores, first = [], []
        for candidate in setting["candidates"]:
            runs = [document["runs"][key] for key in candidate["runs"] if document["runs"][key]["error"] is None]
            tops = [[run["val"]["clean"][level]["value"] for level in setting["levels"]] for run in runs]
            scores.append(np.mean([np.mean(found) for found in tops]) if tops else None)
            first.append(np.mean(tops[0]) if tops else None)
            assert [run["seed"] for run in runs] in ([0, 1], [0], [])
        assert line["scores"] == pytest.approx(scores) if None not in scores else line["scores"] == scores
        if None not in scores:
            assert line["chosen"] == int(np.argmax(first))
            assert line["tuning"] == pytest.approx(first)
            assert [len(candidate["runs"]) for candidate in setting["candidates"]] == [
                2 if place == line["chosen"] else 1 for place in range(len(first))
            ]
            kept |= set(setting["candidates"][line["chosen"]]["runs"])
    assert shown == kept
    assert document["split"] == "test"
    assert all(("test" in run) == (key in kept) for key, run in document["runs"].items())


def test_its_numbers_are_those_of_its_runs(done: Done) -> None:
    out, document, _ = done
    named = {
        s["name"]: (s, line) for s, line in zip(document["settings"], document["analysis"]["settings"], strict=True)
    }
    assert list(named) == [
        "make alone",
        "class alone",
        *(f"parallel, {c}" for c in documented()["grid"]["weights"]),
        "broken",
    ]
    for setting, line in named.values():
        if line["chosen"] is None:
            continue
        keys = setting["candidates"][line["chosen"]]["runs"]
        for condition in ("clean", "gaussian_0.2"):
            judged = [json.loads((out / "runs" / key / "test.json").read_text()) for key in keys]
            for level in setting["levels"]:
                values = [found["conditions"][condition]["levels"][level]["top1"] for found in judged]
                told = line["conditions"][condition][level]
                assert told["mean"] == pytest.approx(sum(values) / 2)
                assert told["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
                assert 0 <= told["interval"][0] <= told["mean"] <= told["interval"][1] <= 1
                for key, value in zip(keys, values, strict=True):
                    assert document["runs"][key]["test"][condition][level] == {"value": value, "images": 12}
        assert line["seconds"]["mean"] == pytest.approx(np.mean([document["runs"][key]["seconds"] for key in keys]))
        if len(setting["levels"]) < 2:
            assert "delta_m" not in line["conditions"]["clean"]
            assert line["course"] == {}
            continue
        gains = []
        for seed, key in enumerate(keys):
            own = document["runs"][key]["test"]["clean"]
            relative = []
            for level in ("make", "class"):
                alone = document["runs"][named[f"{level} alone"][0]["candidates"][0]["runs"][seed]]
                base = alone["test"]["clean"][level]["value"]
                relative.append((own[level]["value"] - base) / base if base else None)
            if None not in relative:
                gains.append(np.mean([r for r in relative if r is not None]))
        assert line["conditions"]["clean"]["delta_m"]["mean"] == pytest.approx(np.mean(gains))
        assert line["course"]["steps"] == [6]  # two epochs of three batches, logged at the end
        assert line["imbalance"]["mean"] >= 1
        first = named["parallel, uniform"][1]["seconds"]["mean"]
        assert line["relative_seconds"] == pytest.approx(line["seconds"]["mean"] / first)
    text = (out / "study.md").read_text(encoding="utf-8")
    row = named["parallel, AvgNorm"][1]["conditions"]["clean"]
    assert re.search(rf"\| parallel, AvgNorm \| {100 * row['make']['mean']:.1f} ± ", text)
    page = (out / "study.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "nowhere.safetensors" in page
