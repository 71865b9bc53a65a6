from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vmmr.config import TrainConfig
from vmmr.models import Backbone
from vmmr.training.plain import Plain

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def ends(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two processes ended with, and one process alone."""
    out = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(pictures), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runpy.run_path(str(SCRIPT))["main"](str(pictures), str(out / "alone"))
    return out


def test_two_processes_end_like_one(ends: Path) -> None:
    one, two = load_file(ends / "alone" / "plain-1-0.safetensors"), load_file(ends / "plain-2-0.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    config = TrainConfig(backbone="test_convnext")
    torch.manual_seed(0)
    start = Plain(Backbone("test_convnext", 4), config).network.state_dict()
    moved = max((one[k] - start[k]).abs().max().item() for k in one)
    assert moved > 1e-2  # far more than the tolerance


@pytest.mark.parametrize("name", ["plain", "pmal", "levels", "surgery"])
def test_both_processes_end_alike(name: str, ends: Path) -> None:
    first, second = (load_file(ends / f"{name}-2-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_a_process_may_lack_a_level(ends: Path) -> None:
    """The weights that the first process logs are those of both: the other's end alike."""
    rows = [line.split(",") for line in (ends / "levels" / "log.csv").read_text().splitlines()[1:]]
    weights = [float(value) for *_, name, value in rows if name == "weights/class"]
    norms = [float(value) for *_, name, value in rows if name == "norms/class"]
    assert weights
    assert norms[0] > 0


def test_one_process_writes_for_both(ends: Path) -> None:
    lines = (ends / "pmal" / "log.csv").read_text().splitlines()
    assert sum(",val_top1," in line for line in lines) == 2  # once an epoch
    assert len(list((ends / "pmal" / "checkpoints").iterdir())) == 2
