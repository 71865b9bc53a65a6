from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmmr.cli import main
from vmmr.errors import ConfigError
from vmmr.export.bench import bench
from vmmr.export.bundle import Bundle, write_bundle


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
