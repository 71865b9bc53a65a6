"""Pictures of different requests that share a pass through the network.

While a pass runs, pictures wait; what has gathered goes into the next one together. Waiting for more pays only where
more will come: a pass waits until it is as large as the last one was, at most `latency_s`. So a client that asks one
picture after the other never waits, and sixteen that do so soon share their passes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vmmr.serving.metrics import Metrics
from vmmr.serving.schema import RefusalError
from vmmr.serving.supervisor import Supervisor, WorkerLostError

__all__ = ["Batcher", "Picture", "Replies"]

_PASS_BYTES = 64 * 1024 * 1024  # of encoded pictures in one pass


@dataclass(frozen=True, slots=True)
class Picture:
    """item: what is wanted of it (`vmmr.serving.worker`). blob: its bytes."""

    item: dict[str, Any]
    blob: bytes


@dataclass(frozen=True, slots=True)
class Replies:
    """results: one for every picture; a drawn picture is {"png": bytes}. timing: milliseconds by name, of the slowest
    pass that they took part in."""

    results: list[dict[str, Any]]
    timing: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    picture: Picture
    since: float
    reply: asyncio.Future[tuple[dict[str, Any], dict[str, float]]] = field(default_factory=asyncio.Future)


class Batcher:
    """batch: pictures in one pass at most. queue: pictures that may wait. deadline_s: for a request, from queue to
    answer."""

    def __init__(
        self,
        supervisor: Supervisor,
        metrics: Metrics,
        *,
        batch: int,
        latency_s: float,
        queue: int,
        deadline_s: float,
    ) -> None:
        self._supervisor, self._metrics = supervisor, metrics
        self._batch, self._latency_s, self._most, self._deadline_s = batch, latency_s, queue, deadline_s
        self._queue: deque[_Waiting] = deque()
        self._places: set[object] = set()  # of requests that were let in and have not asked yet
        self._arrived = asyncio.Event()
        self.stopping = False

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """Whether a warm worker is there and requests are taken."""
        return self._supervisor.model is not None and not self.stopping

    def check(self, pictures: int = 1) -> None:
        """Raises RefusalError where so many more pictures would not be taken now."""
        if self.stopping:
            raise RefusalError("stopping")
        if self._supervisor.model is None:
            raise RefusalError("not_ready")
        # A request larger than the whole queue may come while nothing waits.
        if self._queue and len(self._queue) + pictures > self._most:
            raise RefusalError("overloaded")

    @contextmanager
    def place(self) -> Iterator[object]:
        """A place in the queue, kept for a request whose pictures are still on their way, until it is given to `ask` or
        the context ends. Raises RefusalError as `check`, and where all places are taken: so no request is let in,
        received and read only to be refused then, unless it holds several pictures."""
        self.check(0)
        if len(self._queue) + len(self._places) >= self._most:
            raise RefusalError("overloaded")
        place = object()
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)

    async def ask(self, pictures: Sequence[Picture], place: object = None) -> Replies:
        """The results of one request. place: what `place` kept for it. Raises RefusalError: overloaded, not_ready,
        stopping, late, worker_lost.

        Cancelled, it takes back what has not been started.
        """
        self._places.discard(place)
        self.check(len(pictures))
        now = time.monotonic()
        mine = [_Waiting(picture, now) for picture in pictures]
        self._queue.extend(mine)
        self._arrived.set()
        try:
            async with asyncio.timeout(self._deadline_s):
                replies = await asyncio.gather(*(waiting.reply for waiting in mine))
        except TimeoutError:
            raise RefusalError("late") from None
        except WorkerLostError:
            raise RefusalError("worker_lost") from None
        finally:
            for waiting in mine:
                if not waiting.reply.done():
                    waiting.reply.cancel()
                elif not waiting.reply.cancelled():
                    waiting.reply.exception()  # seen
            self._queue = deque(waiting for waiting in self._queue if not waiting.reply.done())
        results = [result for result, _ in replies]
        for result in results:
            self._metrics.pictures.labels(result.get("error", "answered")).inc()
        return Replies(results, {name: max(t[name] for _, t in replies) for name in replies[0][1]})

    async def run(self) -> None:
        """Send passes to the worker until cancelled."""
        last = 1
        while True:
            await self._gathered(min(last, self._batch))
            part = self._next_pass()
            last = len(part)
            if not part:
                continue
            self._metrics.passes.observe(len(part))
            started = time.monotonic()
            try:
                done, drawn = await self._supervisor.do([w.picture.item for w in part], [w.picture.blob for w in part])
            except WorkerLostError:
                for waiting in (*part, *self._queue):
                    if not waiting.reply.done():
                        waiting.reply.set_exception(WorkerLostError())
                self._queue.clear()
                continue
            for waiting, result in zip(part, done["results"], strict=True):
                if not waiting.reply.done():  # its client may have left
                    said = {"png": drawn[result["png"]]} if "png" in result else result
                    timing = {"wait": 1e3 * (started - waiting.since), "read": done["read_ms"], "pass": done["pass_ms"]}
                    waiting.reply.set_result((said, timing))

    async def _gathered(self, enough: int) -> None:
        """Return when a picture waits, and either enough do or the first has waited long enough."""
        while True:
            self._arrived.clear()
            left = self._queue[0].since + self._latency_s - time.monotonic() if self._queue else None
            if left is not None and (len(self._queue) >= enough or left <= 0):
                return
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next_pass(self) -> list[_Waiting]:
        part: list[_Waiting] = []
        size = 0
        while self._queue and len(part) < self._batch:
            size += len(self._queue[0].picture.blob)
            if part and size > _PASS_BYTES:
                break
            part.append(self._queue.popleft())
        return part
