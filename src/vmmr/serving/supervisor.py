"""Keeps one worker process alive: started, watched, killed where it hangs, replaced where it died.

What tells a dead worker: its end of the pipe. A stopped one: no beat for a few ticks. A hung one: no answer to a job
for `work_s`. Ticks are counted rather than seconds, so that a server which was itself suspended does not blame its
worker. A job whose worker is lost fails; it is not tried again, since it may be what the worker died of.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from vmmr.serving.frames import Frame, pack, receive_frame

__all__ = ["Supervisor", "WorkerLostError", "WorkerRefusedError"]

_TICK_S = 0.5
_SILENT_TICKS = 6  # three seconds, six beats
_BRIEF_S = 10.0  # a worker that lived shorter than this makes the next one wait
_LOG = logging.getLogger("vmmr.serving")


class WorkerLostError(Exception):
    """The worker died, hung or is not there."""


class WorkerRefusedError(Exception):
    """The worker says why it cannot serve: the next one could not either."""


class Supervisor:
    """command: what starts a worker. settings: the first frame that it gets. start_s: patience until it is ready;
    work_s: until it has done a job. on_start is called for every worker that is started."""

    def __init__(
        self,
        command: Sequence[str],
        settings: dict[str, Any],
        *,
        start_s: float = 300.0,
        work_s: float = 60.0,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._command, self._settings = tuple(command), settings
        self._start_s, self._work_ticks = start_s, max(1, round(work_s / _TICK_S))
        self._on_start = on_start
        self._process: asyncio.subprocess.Process | None = None
        self._job: asyncio.Future[Frame] | None = None  # None or done: idle
        self._job_ticks, self._jobs, self._heard = 0, 0, False
        self.model: dict[str, Any] | None = None
        """What the worker said of its model when it was ready; None while none is."""

    async def run(self) -> None:
        """Keep a worker alive until cancelled. Raises WorkerRefusedError."""
        brief = 0
        while True:
            started = time.monotonic()
            self._on_start()
            try:
                reason = await self._live()
            except (EOFError, OSError, TimeoutError) as error:
                reason = f"it ended before it was ready ({type(error).__name__})"
            brief = brief + 1 if time.monotonic() - started < _BRIEF_S else 0
            pause = min(10.0, 0.25 * 2**brief) if brief else 0.0
            _LOG.warning("the worker is replaced in %.1f s: %s", pause, reason)
            await asyncio.sleep(pause)

    async def do(self, items: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> Frame:
        """Have one job done; one at a time. Raises WorkerLostError."""
        if self.model is None or self._process is None:
            raise WorkerLostError
        assert not self._working, "one job at a time"
        stdin = self._process.stdin
        assert stdin is not None
        self._jobs += 1
        self._job, self._job_ticks = asyncio.get_running_loop().create_future(), 0
        stdin.write(pack({"job": self._jobs, "items": list(items)}, blobs))
        return await self._job

    @property
    def _working(self) -> bool:
        return self._job is not None and not self._job.done()

    async def _live(self) -> str:
        """One worker from start to end; what ended it."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=1 << 22)
        assert process.stdin is not None
        assert process.stdout is not None
        hearing: asyncio.Task[None] | None = None
        try:
            process.stdin.write(pack(self._settings))
            async with asyncio.timeout(self._start_s):
                while "beat" in (first := (await receive_frame(process.stdout))[0]):
                    pass
            if "refused" in first:
                raise WorkerRefusedError(first["refused"])
            self._process, self.model = process, first["ready"]
            hearing = asyncio.create_task(self._hear(process.stdout))
            return await self._watch(hearing)
        finally:
            self._process, self.model = None, None
            if hearing is not None:
                hearing.cancel()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            process.stdin.close()
            if self._job is not None and not self._job.done():
                self._job.set_exception(WorkerLostError())
            await process.wait()

    async def _hear(self, stream: asyncio.StreamReader) -> None:
        while True:
            frame: Frame = await receive_frame(stream)
            self._heard = True
            if self._job is not None and not self._job.done() and frame[0].get("job") == self._jobs:
                self._job.set_result(frame)

    async def _watch(self, hearing: asyncio.Task[None]) -> str:
        silent = 0
        while True:
            await asyncio.wait({hearing}, timeout=_TICK_S)
            if hearing.done():
                return f"it has left ({type(hearing.exception()).__name__})"
            silent, self._heard = (0 if self._heard else silent + 1), False
            self._job_ticks = self._job_ticks + 1 if self._working else 0
            if silent >= _SILENT_TICKS:
                return "it is silent"
            if self._job_ticks > self._work_ticks:
                return "it hangs on a job"
