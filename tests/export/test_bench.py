from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from vmmr.cli import main
from vmmr.data.pixels import cores
from vmmr.errors import ConfigError
from vmmr.export.artifact import Artifact
from vmmr.export.bench import bench, tried
from vmmr.export.bundle import Bundle, write_bundle
from vmmr.export.export import export_bundle
from vmmr.export.tuned import Plan, machine, plans, remember, remembered
from vmmr.recognizer import load


def test_every_row_is_timed_and_the_best_are_the_best(plain: Bundle) -> None:
    found = bench(plain, batches=(1, 3), threads=(1,), seconds=0.05, rounds=2)
    rows = found["rows"]
    assert [(row["runtime"], row["precision"], row["batch"], row["threads"]) for row in rows] == [
        ("torch", "fp32", 1, 1),
        ("torch", "fp32", 3, 1),
    ]
    for row in rows:
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
        assert row["p90_ms"] >= row["median_ms"] > 0
        assert row["calls"] >= 2
    assert found["best"]["images_per_s"] == max(row["images_per_s"] for row in rows)
    assert found["fastest"]["median_ms"] == min(row["median_ms"] for row in rows)


def test_what_cannot_be_timed_is_refused(plain: Bundle) -> None:
    with pytest.raises(ConfigError, match="choose of torch"):
        bench(plain, runtimes=("openvino",))
    with pytest.raises(ConfigError, match="1 or more"):
        bench(plain, batches=(0,))


def test_the_verb(plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = write_bundle(tmp_path / "car", plain), tmp_path / "bench.json"
    words = ["--batches", "1", "2", "--threads", "1", "--seconds", "0.02", "--json", str(file)]
    assert main(["bench", str(folder), *words]) == 0
    assert "test_resnet at 48 x 64 px" in capsys.readouterr().out
    assert len(json.loads(file.read_text())["rows"]) == 2


@pytest.fixture(scope="module")
def artifact(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_bundle(plain, tmp_path_factory.mktemp("artifacts") / "onnx", form="onnx")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmmr"


def test_every_plan_gives_the_same_answers(artifact: Artifact) -> None:
    """However a call is cut, and whatever runs side by side."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    wanted = artifact.runtime("onnxruntime")(pixels)
    tested = [
        Plan(name, 2, streams, batch)
        for name, streams in (("onnxruntime", 1), ("openvino", 1), ("openvino", 2), ("openvino", 3))
        for batch in (1, 2, 3, 7, 8)
    ]
    for plan in tested:
        runtime = plan.made(artifact)
        for count in (7, 1, 4):
            found = runtime(pixels[:count])
            for name, values in found.items():
                np.testing.assert_allclose(values, wanted[name][:count], atol=1e-4, err_msg=str(plan))
        kept = runtime(pixels)["logits"]
        runtime(255 - pixels)
        np.testing.assert_allclose(kept, wanted["logits"], atol=1e-4)  # not a buffer that the next call fills


def test_runtimes_of_other_distributions_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("vmmr.export.tuned.version", version)
    assert set(machine()["runtimes"].values()) == {""}


def test_what_is_worth_a_try(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmr.export.tuned.cores", lambda: 4)
    found = plans(artifact, batches=(1, 4, 8))
    assert [(p.runtime, p.threads, p.streams, p.batch) for p in found] == [
        ("onnxruntime", 4, 1, 1),
        ("onnxruntime", 4, 1, 4),
        ("onnxruntime", 4, 1, 8),
        ("openvino", 4, 1, 1),
        ("openvino", 4, 1, 4),
        ("openvino", 4, 1, 8),
        ("openvino", 4, 4, 1),
        ("openvino", 4, 4, 4),  # no 8: two of four streams would have a call of 16
    ]
    assert {plan.runtime for plan in plans(artifact, ["openvino"])} == {"openvino"}
    assert {plan.runtime for plan in plans(replace(artifact, precision="int8"))} == {"onnxruntime"}
    rows = tried(artifact, [Plan("onnxruntime", 1, 1, 1), Plan("openvino", 1, 1, 4)], seconds=0.05)
    assert rows[0][1] >= rows[1][1] > 0


def test_what_bench_found_is_what_load_uses(
    artifact: Artifact,
    kept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vmmr.export.artifact import write_artifact

    folder = write_artifact(tmp_path / "car", artifact)
    assert load(folder).runtime.name == "onnxruntime"  # nothing is remembered
    words = ["bench", str(folder), "--batches", "1", "--threads", "1", "--seconds", "0.02", "--runtimes", "openvino"]
    assert main([*words, "--json", str(tmp_path / "bench.json")]) == 0
    [file] = kept.iterdir()
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    best = json.loads((tmp_path / "bench.json").read_text())["plans"][0]
    assert best["runtime"] == "openvino"
    record = json.loads(file.read_text())
    assert record == {**{key: best[key] for key in ("runtime", "threads", "streams", "batch")}, "machine": machine()}
    assert load(folder).runtime.name == "openvino"
    assert load(folder, runtime="onnxruntime").runtime.name == "onnxruntime"
    monkeypatch.setattr("vmmr.export.tuned.cores", lambda: 99)
    assert load(folder).runtime.name == "onnxruntime"  # another machine


@pytest.mark.parametrize(
    "wrong",
    [
        {"runtime": "torch"},
        {"runtime": ["openvino"]},
        {"threads": 0},
        {"streams": "2"},
        {"batch": 10**9},
        {"batch": True},
    ],
)
def test_a_record_that_makes_no_sense_counts_as_none(artifact: Artifact, kept: Path, wrong: dict[str, object]) -> None:
    plan = Plan("openvino", 1, 1, 4)
    place = remember(artifact, plan)
    assert remembered(artifact) == plan
    assert place.parent == kept
    place.write_text(json.dumps({**asdict(plan), **wrong}))
    assert remembered(artifact) is None
    place.write_bytes(b"{")
    assert remembered(artifact) is None
    place.unlink()
    assert remembered(artifact) is None


def _tied() -> set[str]:
    """Threads of this process that may not run on all of its cores."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            if os.sched_getaffinity(int(task.name)) != os.sched_getaffinity(0):
                found.add(task.name)
    return found


@pytest.mark.skipif(sys.platform != "linux" or cores() < 2, reason="threads have no affinities here, or no choice")
@pytest.mark.parametrize(
    ("name", "threads", "streams"), [("openvino", 1, 1), ("openvino", 2, 2), ("onnxruntime", None, 1)]
)
def test_threads_are_not_tied_to_the_first_cores(
    artifact: Artifact, name: str, threads: int | None, streams: int
) -> None:
    """A second process of one thread would be tied to the same core, and both would have half of it."""
    before = _tied()  # other libraries may have tied threads of theirs
    runtime = artifact.runtime(name, threads=threads, streams=streams, batch=2)
    pixels = np.zeros((8 * streams, *runtime.size, 3), np.uint8)
    asked, done = 0, threading.Event()

    def ask() -> None:
        nonlocal asked
        while not done.is_set():
            runtime(pixels)
            asked += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        tied = set()
        for _ in range(200):
            tied |= _tied()
            time.sleep(0.001)
    finally:
        done.set()
        asking.join()
    assert asked
    assert tied <= before
