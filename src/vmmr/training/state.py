"""Checkpoints that survive a kill at any moment: tensors as safetensors, the rest as JSON, renamed into place.

A checkpoint is a folder `step-NNNNNNNN` with `tensors.safetensors` and `state.json`; the latter carries the SHA-256 of
both. Folders appear by rename only, so that one that exists is whole; the last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vmmr.errors import TrainingError

__all__ = ["latest_checkpoint", "read_checkpoint", "write_checkpoint"]

_KEEP = 2
_TENSOR = "__tensor__"


def _flatten(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # Tied or viewed storage must not be written twice under two names, and layouts travel as values.
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: key}
    if isinstance(value, dict):
        return [[k, _flatten(v, f"{key}/{k}", tensors)] for k, v in value.items()]
    if isinstance(value, list | tuple):
        return {"list": [_flatten(v, f"{key}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TrainingError("cannot write this into a checkpoint", got=f"{type(value).__name__} at {key}")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return {k: _restore(v, tensors) for k, v in value}
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return [_restore(v, tensors) for v in value["list"]]
    return value


def _digest(folder: Path, document: Any) -> str:
    tensors = (folder / "tensors.safetensors").read_bytes()
    return hashlib.sha256(tensors + json.dumps(document).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (nested dicts and lists of tensors, numbers, strings) as of global step `step`; returns its folder.

    Dict keys are strings or integers; tuples come back as lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    draft = folder / f".draft-{os.getpid()}-{step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tensors: dict[str, Tensor] = {}
    document = _flatten(state, "", tensors)
    save_file(tensors, draft / "tensors.safetensors")
    digest = _digest(draft, document)
    (draft / "state.json").write_text(json.dumps({"step": step, "sha256": digest, "state": document}), encoding="utf-8")
    for file in draft.iterdir():
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync(folder)
    for old in sorted(folder.glob("step-*"))[:-_KEEP]:
        shutil.rmtree(old)
    for stray in folder.glob(".draft-*"):
        shutil.rmtree(stray, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in the folder, or None."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return found[-1] if found else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` was given. TrainingError where a file is missing, altered or no checkpoint."""
    try:
        document = json.loads((path / "state.json").read_text(encoding="utf-8"))
        expected, state = document["sha256"], document["state"]
        digest = _digest(path, state)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"cannot read the checkpoint {path.name}", got=error, do="remove its folder to fall back to the one before"
        ) from error
    if digest != expected:
        raise TrainingError(
            f"the checkpoint {path.name} was altered or cut short",
            got=f"SHA-256 {digest[:12]}, expected {str(expected)[:12]}",
            do="remove its folder to fall back to the one before",
        )
    restored: dict[str, Any] = _restore(state, load_file(path / "tensors.safetensors"))
    return restored
