"""Run by test_resume.py in a process of its own: one training run, killed by SIGKILL again and again.

    python killed_run.py PICTURES OUT SETTINGS(json) KILLS(json list of [place, count])

Each kill forks a child that trains (resuming what there is) and kills itself: at the count-th optimiser update, or
inside the count-th checkpoint between its tensors and its rename. A last child trains to the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vmmr.training.loop as loop
import vmmr.training.state as state
from vmmr.config import TrainConfig
from vmmr.training.run import train


def _deadly(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return counted


def _child(pictures: str, out: str, settings: dict[str, Any], place: str, count: int) -> int:
    """The wait status of a forked child that trains."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        torch.set_num_threads(1)
        if place == "update":
            loop.clear_gradients = _deadly(loop.clear_gradients, count)
        elif place == "checkpoint":
            state._sync = _deadly(state._sync, 3 * count - 1)  # tensors, state and folder: three a checkpoint
        train(
            TrainConfig(**settings),
            pictures,
            out,
            resume=Path(out, "checkpoints").exists(),
            accelerator="cpu",
            progress=False,
            test=False,
        )
        code = 0
    finally:
        os._exit(code)


def main(pictures: str, out: str, settings: str, kills: str) -> None:
    import lightning.fabric  # noqa: F401  (once, for all children)
    import torch.utils.tensorboard  # noqa: F401

    for place, count in json.loads(kills):
        status = _child(pictures, out, json.loads(settings), place, count)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"the run was to die at {place} {count}, but ended with {status}")
        if (Path(out) / "bundle").exists():
            sys.exit("a bundle before the end")
    sys.exit(os.waitstatus_to_exitcode(_child(pictures, out, json.loads(settings), "nowhere", 0)))


if __name__ == "__main__":
    main(*sys.argv[1:])
