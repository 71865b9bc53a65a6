"""What a run says while it works: a progress bar, log.csv and TensorBoard."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

__all__ = ["RunLog"]

_EVERY = 10


class RunLog:
    """Losses every 10 steps and scores every epoch, for one process of a run; the others pass active=False.

    log.csv has the columns time (seconds since 1970), step, epoch, name, value, and is appended to when a run resumes.
    """

    def __init__(self, folder: Path, *, steps: int, start: int, active: bool, progress: bool) -> None:
        self._folder, self._active = folder, active
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]} {task.fields[rate]}"),
            TimeRemainingColumn(),
            disable=not (active and progress and sys.stderr.isatty()),
            transient=True,
        )
        self._lines = active and progress and not sys.stderr.isatty()
        self._task = self._bar.add_task("training", total=steps, completed=start, losses="", rate="")
        self._steps = steps
        self._window: dict[str, list[Tensor]] = {}
        self._balance: dict[str, list[Tensor]] = {}
        self._epoch: dict[str, list[Tensor]] = {}
        self._images = 0
        self._since = time.monotonic()
        self._rate = 0.0

    def __enter__(self) -> RunLog:
        self._bar.start()
        if self._active:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / "log.csv"
            fresh = not file.exists()
            self._file = file.open("a", newline="", encoding="utf-8")
            self._csv = csv.writer(self._file)
            if fresh:
                self._csv.writerow(["time", "step", "epoch", "name", "value"])
            self._board = SummaryWriter(str(self._folder / "tensorboard"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._active:
            self._file.close()
            self._board.close()

    def _write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        if not self._active:
            return
        for name, value in values.items():
            self._csv.writerow([f"{time.time():.3f}", step, epoch, name, f"{value:.6g}"])
            self._board.add_scalar(name, value, step)
        self._file.flush()

    def losses(
        self,
        step: int,
        epoch: int,
        terms: dict[str, Tensor],
        *,
        images: int,
        rate: float,
        balance: dict[str, Tensor] | None = None,
    ) -> dict[str, float] | None:
        """Take one batch's losses; every tenth step, write and return their means. balance: weights, gradient lengths
        and cosines of a balancer by name, whose means are written beside them."""
        for name, value in (balance or {}).items():
            self._balance.setdefault(name, []).append(value)
        for name, term in terms.items():
            self._window.setdefault(name, []).append(term)
            self._epoch.setdefault(name, []).append(term)
        self._images += images
        self._bar.update(self._task, completed=step)
        if step % _EVERY and step != self._steps:
            return None
        values = {name: torch.stack(held).mean().item() for name, held in self._window.items()}
        beside = {name: torch.stack(held).mean().item() for name, held in self._balance.items()}
        self._window, self._balance = {}, {}
        now = time.monotonic()
        self._rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        shown = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        self._bar.update(self._task, losses=shown, rate=f"{self._rate:.0f} img/s")
        losses = {f"loss/{k}": v for k, v in values.items()}
        self._write(step, epoch, losses | beside | {"lr": rate, "images_per_s": self._rate})
        return values

    def epoch_means(self) -> dict[str, float]:
        """The mean of each loss since the last call."""
        means = {name: torch.stack(held).mean().item() for name, held in self._epoch.items()}
        self._epoch = {}
        return means

    def scores(self, step: int, epoch: int, scores: dict[str, float]) -> None:
        """Validation results of an epoch; printed as a line where there is no terminal for a bar."""
        self._write(step, epoch, scores)
        shown = " ".join(f"{name} {value:.4f}" for name, value in scores.items())
        if self._lines:
            print(f"step {step}/{self._steps} epoch {epoch}: {shown} ({self._rate:.0f} img/s)", file=sys.stderr)
        self._bar.update(self._task, description=f"epoch {epoch}: {shown}")
