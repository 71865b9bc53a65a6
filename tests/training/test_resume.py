from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vmmr.config import TrainConfig
from vmmr.errors import TrainingError
from vmmr.export.bundle import read_bundle
from vmmr.training.run import train
from vmmr.training.state import latest_checkpoint

Settings = Callable[..., TrainConfig]
QUIET: dict[str, Any] = {"accelerator": "cpu", "progress": False, "test": False}


def _killed(pictures: Path, out: Path, config: TrainConfig, kills: list[tuple[str, int]]) -> None:
    script = Path(__file__).with_name("killed_run.py")
    arguments = [str(pictures), str(out), json.dumps(config.to_dict()), json.dumps(kills)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_killed_thrice_ends_bit_for_bit_like_one_left_alone(
    pictures: Path, tiny: Settings, tmp_path: Path
) -> None:
    # Everything with a state: noise, views, SAM, moments, running statistics, weight average, best epoch so far.
    config = tiny(method="pmal", noise="strong", sam_rho=0.05, ema=0.9, padding=2, checkpoint_minutes=0.0)
    # Six batches with an update and a checkpoint each; every kill leaves some to do.
    at = random.Random()
    kills = [("update", at.randint(2, 4)), ("checkpoint", at.randint(1, 2)), ("update", at.randint(1, 2))]
    print("kills", kills)
    _killed(pictures, tmp_path / "killed", config, kills)
    whole = train(config, pictures, tmp_path / "whole", **QUIET)
    killed = json.loads((tmp_path / "killed" / "metrics.json").read_text())
    ours, theirs = (read_bundle(tmp_path / name / "bundle") for name in ("killed", "whole"))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert [k for k in ours.tensors if not torch.equal(ours.tensors[k], theirs.tensors[k])] == []
    assert ours.digest == theirs.digest  # every file of the bundle
    for name in ("val_top1", "val_top5", "best_epoch", "splits"):
        assert killed[name] == whole[name]
    assert [row["step"] for row in killed["history"]] == [row["step"] for row in whole["history"]]


def _interrupted(pictures: Path, out: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops in its second epoch, with checkpoints."""
    import vmmr.training.loop as loop

    calls = 0

    def stop(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "clear_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, pictures, out, **QUIET)


def test_resuming_wants_the_same_settings_and_whole_checkpoints(
    pictures: Path, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "run", tiny(optimizer="sgd", checkpoint_minutes=0.0)
    _interrupted(pictures, out, config, monkeypatch)
    with pytest.raises(TrainingError, match="holds a run"):
        train(config, pictures, out, **QUIET)
    with pytest.raises(TrainingError, match="other settings") as caught:
        train(config.with_(lr=0.5, seed=3), pictures, out, resume=True, **QUIET)
    for named in ("lr=0.01 there, 0.5 here", "seed=0 there, 3 here"):
        assert named in str(caught.value)
    newest = latest_checkpoint(out / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000004"
    tensors = newest / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrainingError, match="altered"):
        train(config, pictures, out, resume=True, **QUIET)
    assert not (out / "bundle").exists()
    tensors.unlink()
    (newest / "state.json").unlink()
    newest.rmdir()  # as the message says: back to the one before
    resumed = train(config, pictures, out, resume=True, **QUIET)
    alone = train(config, pictures, tmp_path / "alone", **QUIET)
    assert read_bundle(out / "bundle").digest == read_bundle(tmp_path / "alone" / "bundle").digest
    assert resumed["val_top1"] == alone["val_top1"]
    assert not (out / "checkpoints").exists()


def test_resuming_where_nothing_was_is_starting(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(epochs=1)
    train(config, pictures, tmp_path / "a", resume=True, **QUIET)
    train(config, pictures, tmp_path / "b", **QUIET)
    assert read_bundle(tmp_path / "a" / "bundle").digest == read_bundle(tmp_path / "b" / "bundle").digest


def test_another_seed_is_another_run(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tiny(epochs=1, seed=seed), pictures, tmp_path / str(seed), **QUIET)
    first, second = (read_bundle(tmp_path / str(seed) / "bundle") for seed in (0, 1))
    assert first.digest != second.digest
