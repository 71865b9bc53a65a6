"""Which pictures share a pass, and what becomes of those that do not get one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from vmmr.serving.batcher import Batcher, Picture
from vmmr.serving.frames import Frame
from vmmr.serving.metrics import Metrics
from vmmr.serving.schema import RefusalError
from vmmr.serving.supervisor import WorkerLostError


class Worker:
    """Stands where the supervisor does: a pass takes `pass_s`, a result is its own blob."""

    def __init__(self, pass_s: float) -> None:
        self.pass_s, self.passes, self.model, self.lost = pass_s, list[int](), {"version": "1"}, False

    async def do(self, items: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> Frame:
        """One pass."""
        self.passes.append(len(blobs))
        await asyncio.sleep(self.pass_s)
        if self.lost:
            raise WorkerLostError
        return {"results": [{"said": blob} for blob in blobs], "read_ms": 0.0, "pass_ms": 1e3 * self.pass_s}, []


def run(
    story: Callable[[Batcher, Worker], Coroutine[Any, Any, None]], *, pass_s: float = 0.05, **settings: Any
) -> Worker:
    async def told() -> Worker:
        worker = Worker(pass_s)
        options = {"batch": 4, "latency_s": 0.02, "queue": 8, "deadline_s": 5.0, **settings}
        batcher = Batcher(worker, Metrics(), **options)  # type: ignore[arg-type]
        task = asyncio.create_task(batcher.run())
        async with asyncio.timeout(30):
            await story(batcher, worker)
        task.cancel()
        return worker

    return asyncio.run(told())


def pictures(*names: str) -> list[Picture]:
    return [Picture({}, name.encode()) for name in names]


async def asked(batcher: Batcher, *names: str) -> str:
    """The results as text, or the code of the refusal."""
    try:
        replies = await batcher.ask(pictures(*names))
    except RefusalError as error:
        return error.code
    return "".join(result["said"].decode() for result in replies.results)


def test_what_waits_together_goes_together_and_comes_back_to_its_own() -> None:
    async def story(batcher: Batcher, _: Worker) -> None:
        groups = ["a", "bc", "defgh", "i"]
        said = await asyncio.gather(*(asked(batcher, *group) for group in groups))
        assert said == groups

    assert run(story, queue=16).passes == [4, 4, 1]


def test_a_lone_client_never_waits_for_company() -> None:
    async def story(batcher: Batcher, _: Worker) -> None:
        for _ in range(3):
            replies = await batcher.ask(pictures("a"))
            assert replies.timing["wait"] < 1000  # of ten seconds that company would be given

    assert run(story, latency_s=10.0).passes == [1, 1, 1]


def test_a_pass_waits_until_it_is_as_large_as_the_last() -> None:
    async def story(batcher: Batcher, _: Worker) -> None:
        assert await asyncio.gather(asked(batcher, "a"), asked(batcher, "b"), asked(batcher, "c")) == ["a", "b", "c"]
        first = asyncio.create_task(asked(batcher, "d"))
        await asyncio.sleep(0.1)
        assert not first.done()
        assert await asyncio.gather(first, asked(batcher, "e"), asked(batcher, "f")) == ["d", "e", "f"]
        # Nobody else comes: after its time it goes alone, and the next one at once.
        batcher._latency_s = 0.1
        assert await asked(batcher, "g") == "g"
        batcher._latency_s = 10.0
        assert await asyncio.wait_for(asked(batcher, "h"), 5) == "h"

    assert run(story, latency_s=10.0, pass_s=0.01).passes == [3, 3, 1, 1]


def test_a_full_queue_refuses_at_once() -> None:
    async def story(batcher: Batcher, worker: Worker) -> None:
        running = asyncio.create_task(asked(batcher, "a"))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(asked(batcher, name)) for name in "bcd"]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 3
        assert await asked(batcher, "e", "f") == "overloaded"
        with pytest.raises(RefusalError, match="too many"):
            batcher.check(2)
        batcher.check(1)
        assert await asyncio.gather(running, *waiting) == ["a", "b", "c", "d"]
        assert await asked(batcher, *"ghijkl") == "ghijkl"  # more than the queue, while nothing waits
        batcher.stopping = True
        assert await asked(batcher, "m") == "stopping"
        batcher.stopping, worker.model = False, None  # type: ignore[assignment]
        assert await asked(batcher, "n") == "not_ready"

    run(story, queue=4)


def test_what_waits_too_long_or_is_no_longer_wanted_takes_no_pass() -> None:
    async def story(batcher: Batcher, _: Worker) -> None:
        running = asyncio.create_task(asked(batcher, "a"))
        await asyncio.sleep(0.01)
        left = asyncio.create_task(asked(batcher, "b"))
        late = asyncio.create_task(asked(batcher, "c"))
        await asyncio.sleep(0.01)
        left.cancel()
        assert await asyncio.gather(running, late) == ["late", "late"]
        assert batcher.waiting == 0
        await asyncio.sleep(0.6)

    assert run(story, pass_s=0.5, deadline_s=0.2).passes == [1]


def test_a_lost_worker_fails_what_waits_as_well() -> None:
    async def story(batcher: Batcher, worker: Worker) -> None:
        worker.lost = True
        said = await asyncio.gather(*(asked(batcher, name) for name in "abcdef"))
        assert said == ["worker_lost"] * 6
        worker.lost = False
        assert await asked(batcher, "g") == "g"

    assert run(story).passes == [4, 1]


def test_places_are_for_those_that_come_as_much_as_for_those_that_wait() -> None:
    async def story(batcher: Batcher, _: Worker) -> None:
        def full() -> bool:
            try:
                with batcher.place():
                    return False
            except RefusalError as error:
                return error.code == "overloaded"

        with ExitStack() as coming:
            places = [coming.enter_context(batcher.place()) for _ in range(8)]
            assert full()  # though nothing waits
            work = [asyncio.create_task(batcher.ask(pictures("a"), place)) for place in places[:5]]
            await asyncio.sleep(0)
            assert (batcher.waiting, full()) == (5, True)
            results = [reply.results for reply in await asyncio.gather(*work)]
            assert results == [[{"said": b"a"}]] * 5
            assert [full() for _ in range(5)] == [False] * 5
            with ExitStack() as more:
                for _ in range(5):
                    more.enter_context(batcher.place())
                assert full()
        with ExitStack() as again:
            for _ in range(8):
                again.enter_context(batcher.place())
            batcher.stopping = True
            with pytest.raises(RefusalError) as caught, batcher.place():
                pass
            assert caught.value.code == "stopping"

    run(story)
