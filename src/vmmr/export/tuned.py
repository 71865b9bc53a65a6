"""What runs an artifact fastest on this machine: tried once by `vmmr bench`, remembered, and used by `vmmr.load`.

A record is a small JSON file in the user's cache, `$XDG_CACHE_HOME/vmmr` or `~/.cache/vmmr`, named after the artifact's
digest and after what the times depend on: processor, cores, versions of the runtimes. Another machine or another
version finds no record, and takes the defaults. Nothing but speed depends on it: the golden pictures are asked anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vmmr.data.pixels import cores
from vmmr.errors import BundleError
from vmmr.export.artifact import Artifact, runtimes_for
from vmmr.export.folder import parse_json, to_json
from vmmr.export.runtime import Runtime
from vmmr.files import whole_file

__all__ = ["Plan", "machine", "plans", "remember", "remembered"]

_MOST = 4096  # of a number in a record
_SHARED = 16  # pictures that still keep all streams busy


@dataclass(frozen=True, slots=True)
class Plan:
    """runtime: onnxruntime or openvino. threads, streams, batch: see `Artifact.runtime`."""

    runtime: str
    threads: int
    streams: int
    batch: int

    def made(self, artifact: Artifact) -> Runtime:
        """The runtime that it describes."""
        return artifact.runtime(self.runtime, threads=self.threads, streams=self.streams, batch=self.batch)


def plans(
    artifact: Artifact,
    runtimes: Iterable[str] = (),
    batches: Iterable[int] = (1, 2, 4, 8, 16),
    *,
    threads: int | None = None,
) -> list[Plan]:
    """What is worth a try: parts of every size, one after the other or side by side. Side by side they are so small
    that a call of 16 keeps all streams busy, as calls are not always full.

    runtimes: only these. threads: None for all cores.
    """
    wanted, threads = tuple(runtimes), threads or cores()
    return [
        Plan(name, threads, streams, batch)
        for name in runtimes_for(artifact.format, artifact.precision)
        if not wanted or name in wanted
        for streams in ((1, threads) if name == "openvino" and threads > 1 else (1,))
        for batch in batches
        if streams == 1 or batch <= max(1, _SHARED // streams)
    ]


def machine() -> dict[str, Any]:
    """What times depend on."""
    return {"processor": _processor(), "cores": cores(), "runtimes": _versions()}


def remember(artifact: Artifact, plan: Plan) -> Path:
    """Write it down for the next `vmmr.load` of this artifact on this machine; where to."""
    place = _place(artifact)
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(place) as file:
        file.write(to_json({**asdict(plan), "machine": machine()}))
    return place


def remembered(artifact: Artifact) -> Plan | None:
    """What was found, or None: never an error, since nothing depends on it but speed."""
    try:
        found = parse_json(_place(artifact).read_bytes(), "the record")
    except (OSError, RuntimeError, BundleError):  # RuntimeError: nobody knows where home is
        return None
    name = found.get("runtime")
    numbers: list[Any] = [found.get(key) for key in ("threads", "streams", "batch")]
    sound = all(type(number) is int and 1 <= number <= _MOST for number in numbers)
    if not sound or name not in runtimes_for(artifact.format, artifact.precision):
        return None
    return Plan(name, *numbers)


def _place(artifact: Artifact) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    here = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()
    return Path(home) / "vmmr" / f"{artifact.digest[:24]}-{here[:16]}.json"


def _versions() -> dict[str, str]:
    found = {}
    for name in runtimes_for("onnx", "fp32"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the module of a distribution of another name, such as onnxruntime-gpu
            found[name] = ""
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
