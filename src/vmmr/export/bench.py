"""How fast a model answers here: every runtime that can run it, by batch and threads.

Latency is that of one call, throughput what calls of a batch after one another give; decoding and preprocessing are
not in it. `tried` looks for the best way to run an artifact with all cores, for `vmmr.export.tuned` to remember.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import vmmr
from vmmr.errors import ConfigError
from vmmr.export.artifact import Artifact, runtimes_for
from vmmr.export.bundle import Bundle
from vmmr.export.runtime import Runtime, TorchRuntime
from vmmr.export.tuned import Plan, plans

__all__ = ["bench", "runtimes_of", "tried"]

_CALL, _FINALISTS, _ROUNDS = 32, 3, 5


def runtimes_of(model: Bundle | Artifact, threads: int) -> dict[str, Callable[[], Runtime]]:
    """What can run it here, by name: each makes the runtime with this many threads."""
    if isinstance(model, Bundle):
        return {"torch": lambda: TorchRuntime(model, threads=threads)}
    return {
        name: lambda name=name: model.runtime(name, threads=threads)  # type: ignore[misc]
        for name in runtimes_for(model.format, model.precision)
    }


def bench(
    model: Bundle | Artifact,
    *,
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (),
    runtimes: Sequence[str] = (),
    seconds: float = 2.0,
    rounds: int = 3,
) -> dict[str, Any]:
    """Times as one document: {"model", "machine", "rows": [{"runtime", "precision", "batch", "threads", "median_ms",
    "p90_ms", "images_per_s"}], "best": the row of most images a second, "fastest": that of the shortest call}.

    threads: how many a runtime may use, tried one after another; without any, 1 and all cores. runtimes: only these.
    seconds: spent on each row, in `rounds` that visit the rows in turn, so that a drifting machine hits all alike.
    Raises ConfigError for runtimes that cannot run the model, and for numbers below 1.
    """
    if min((*batches, *threads, rounds)) < 1 or not seconds > 0:
        raise ConfigError(
            "batches, threads and rounds are 1 or more", got=f"{list(batches)}, {list(threads)}, {rounds}"
        )
    cores = os.cpu_count() or 1
    threads = sorted(set(threads or (1, cores)))
    able = list(runtimes_of(model, 1))
    if set(runtimes) - set(able):
        raise ConfigError("this model is not run by it", got=list(runtimes), do=f"choose of {', '.join(able)}")
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    calls: list[Callable[[], object]] = []
    for count in threads:
        for name, make in runtimes_of(model, count).items():
            if runtimes and name not in runtimes:
                continue
            runtime = make()
            for batch in batches:
                pixels = random.integers(0, 256, (batch, *runtime.size, 3), dtype=np.uint8)
                calls.append(lambda runtime=runtime, pixels=pixels: runtime(pixels))  # type: ignore[misc]
                rows.append({"runtime": name, "precision": runtime.precision, "batch": batch, "threads": count})
    before = torch.get_num_threads()
    try:
        times = _timed(calls, seconds / rounds, rounds)
    finally:
        torch.set_num_threads(before)
    for row, found in zip(rows, times, strict=True):
        middle = statistics.median(found)
        row |= {
            "median_ms": 1000 * middle,
            "p90_ms": 1000 * float(np.quantile(found, 0.9)),
            "images_per_s": row["batch"] / middle,
            "calls": len(found),
        }
    return {
        "model": {"name": model.name, "digest": model.digest, "backbone": model.spec.backbone, "size": _size(model)},
        "machine": _machine(cores),
        "rows": rows,
        "best": max(rows, key=lambda row: row["images_per_s"]),
        "fastest": min(rows, key=lambda row: row["median_ms"]),
    }


def tried(artifact: Artifact, candidates: Sequence[Plan] = (), *, seconds: float = 1.0) -> list[tuple[Plan, float]]:
    """Plans and their pictures a second in calls of 32, the fastest first. candidates: all of `plans` where none is
    given. Each is tried alone, so that memory holds one network; the three that seem fastest then once more in turns,
    so that no drift of the machine chooses, and stand first. seconds: spent on each at either time."""
    once = [(plan, _rates(artifact, [plan], seconds, 1)[0]) for plan in candidates or plans(artifact)]
    once.sort(key=lambda pair: -pair[1])
    best = [plan for plan, _ in once[:_FINALISTS]]
    again = list(zip(best, _rates(artifact, best, seconds / _ROUNDS, _ROUNDS), strict=True))
    return sorted(again, key=lambda pair: -pair[1]) + once[_FINALISTS:]


def _rates(artifact: Artifact, candidates: Sequence[Plan], seconds: float, rounds: int) -> list[float]:
    calls: list[Callable[[], object]] = []
    for plan in candidates:
        runtime = plan.made(artifact)
        pixels = np.random.default_rng(0).integers(0, 256, (_CALL, *runtime.size, 3), dtype=np.uint8)
        calls.append(lambda runtime=runtime, pixels=pixels: runtime(pixels))  # type: ignore[misc]
    return [_CALL / statistics.median(times) for times in _timed(calls, seconds, rounds)]


def _timed(calls: Sequence[Callable[[], object]], seconds: float, rounds: int) -> list[list[float]]:
    """Seconds of each call, over and over, the calls in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()  # the first also allocates and chooses algorithms
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end or not found:
                call()
                found.append(time.perf_counter() - start)
    return times


def _size(model: Bundle | Artifact) -> list[int]:
    return [model.preprocess.height, model.preprocess.width]


def _machine(cores: int) -> Mapping[str, Any]:
    return {"cores": cores, "processor": platform.machine(), "vmmr": vmmr.__version__, "torch": version("torch")}
