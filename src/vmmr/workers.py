"""Runs of a study in processes of their own: one that fails, or dies, costs nothing but itself.

`python -m vmmr.workers` is such a process: it reads a job a line, and ends when whoever started it does.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.errors import VmmrError

__all__ = ["Job", "Worker", "do_all", "start_workers"]

Job = dict[str, Any]
"""name; key; folder of the run; settings; images, a manifest; split to evaluate; its conditions."""


class Worker:
    """A process that does one job after another, in an environment of its own."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self._log, self.environment = log, dict(environment)
        self._process: subprocess.Popen[str] | None = None

    def do(self, job: Job) -> str | None:
        """The error that the job ended with, or None. A process that died is replaced for the next job."""
        if self._process is None:
            command = [sys.executable, "-m", "vmmr.workers"]
            with self._log.open("w") as log:
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=os.environ | self.environment
                )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(job), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            error = json.loads(answer)["error"]
            return None if error is None else str(error)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self.close()
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process ended with status {process.returncode}: {said[-1] if said else 'it said nothing'}"

    def close(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def start_workers(out: Path, processes: int) -> Iterator[list[Worker]]:
    """So many workers, or, for 0, one a device; each on a device of its own where there are several, several on a CPU
    on one thread each. What they say is in out/worker-0.log and so on. They end with the context."""
    import torch  # slow

    devices = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
    workers = []
    for number in range(processes or max(devices, 1)):
        environment = {"CUDA_VISIBLE_DEVICES": visible[number % devices]} if devices > 1 else {}
        if not devices and processes > 1:
            environment["OMP_NUM_THREADS"] = "1"
        workers.append(Worker(out / f"worker-{number}.log", environment))
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def do_all(workers: Sequence[Worker], jobs: Sequence[Job], verb: str, progress: bool) -> dict[str, str]:
    """Do all jobs; the errors of those that failed, by the key of the run."""
    console = Console(stderr=True, quiet=not progress)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def do(job: Job) -> tuple[str | None, float]:
        worker, started = free.get(), time.monotonic()
        line = shown.add_task(f"  {job['name']}", total=1)
        try:
            return worker.do(job), time.monotonic() - started
        finally:
            shown.remove_task(line)
            free.put(worker)

    errors = {}
    pool = ThreadPoolExecutor(len(workers))
    try:
        with shown:
            whole = shown.add_task(f"[bold]{verb}[/bold]", total=len(jobs))
            futures = {pool.submit(do, job): job for job in jobs}
            for count, future in enumerate(as_completed(futures), 1):
                job, (error, seconds) = futures[future], future.result()
                if error is not None:
                    errors[job["key"]] = error
                shown.update(whole, advance=1)
                end = f"{seconds:.0f} s" if error is None else f"failed: {error}"
                console.print(f"{verb} {count}/{len(jobs)} {job['name']}: {end}", highlight=False, markup=False)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return errors


def _serve() -> None:
    """A worker's life: a job a line on standard input, its error or null on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        error = None
        try:
            _do(json.loads(jobs.get()))
        except VmmrError as problem:
            error = str(problem)
        print(json.dumps({"error": error}), file=answers, flush=True)


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # the study is gone, perhaps killed: nobody waits for this run, and the next study will go on with it


def _do(job: Job) -> None:
    """Train, unless that is done, and evaluate one split."""
    folder, config = Path(job["folder"]), TrainConfig(**job["settings"])

    import torch  # slow, as all of these

    from vmmr.evaluation.evaluate import evaluate
    from vmmr.evaluation.report import write_text
    from vmmr.export.bundle import read_bundle
    from vmmr.training.run import train

    if not (folder / "metrics.json").exists():
        train(config, job["images"], folder, resume=True, progress=False, test=False)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    document = evaluate(
        read_bundle(folder / "bundle"),
        Manifest.load(job["images"]).split(job["split"]),
        wanted=job["conditions"],
        device=device or "cpu",
        memory_gib=config.memory_gib,
    )
    write_text(folder / f"{job['split']}.json", json.dumps(document))


if __name__ == "__main__":
    _serve()
