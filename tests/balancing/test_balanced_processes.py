from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("balanced_processes.py")
Weights = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    """By rule, the weights of three batches: of the first and the second of two processes, and of one alone."""
    together, alone = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("alone")
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), "2", str(together)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    runpy.run_path(str(SCRIPT))["main"](0, 1, alone)
    for process in started:
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint[-3000:]
    return [json.loads(path.read_text()) for path in (together / "0.json", together / "1.json", alone / "0.json")]


def test_weights_are_equal_on_all_processes(found: list[Weights]) -> None:
    first, second, _ = found
    assert len(first) == 10
    for name, batches in first.items():
        assert batches == second[name], name
        assert batches[2].keys() == {"a", "b", "c"}  # also where one of them had no c


def test_two_processes_weigh_like_one(found: list[Weights]) -> None:
    together, _, alone = found
    for name, batches in alone.items():
        for batch in range(2):
            assert together[name][batch] == pytest.approx(batches[batch], rel=1e-3), name
