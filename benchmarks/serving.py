"""What HTTP costs, and what overload does: a server in a process of its own, asked from this one.

    python benchmarks/serving.py BUNDLE [--images FOLDER] [--seconds 10] [--rounds 5] [--runtime auto] [--json FILE]

    one            milliseconds for one picture, `Recognizer` in this process and over HTTP, taking turns; medians
    batches        pictures a second in requests of 16, likewise; HTTP keeps two requests on their way
    clients        pictures a second of 16 clients with one picture a request: what batching makes of them
    overload       five times that rate, arriving as a Poisson process: pictures answered a second as a share of it,
                   requests refused, and how long a refusal takes
    recovery       seconds from the end of the overload to the first answer as fast as twice the median

Both processes share the machine's cores; on few of them the client takes time from the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vmmr
from vmmr.recognizer import Recognizer

BATCH, CLIENTS, OVERLOAD = 16, 16, 5
COMMAND = "import sys; from vmmr.cli import main; sys.argv[0] = 'vmmr'; raise SystemExit(main())"


def pictures(folder: str | None) -> list[bytes]:
    """Sixteen JPEGs: of the folder, or made up, 480 x 360."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))[:BATCH]]
    source, made = np.random.default_rng(0), []
    for _ in range(BATCH):
        file = BytesIO()
        coarse = Image.fromarray(source.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((480, 360), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def request(images: Sequence[bytes]) -> bytes:
    """A whole request for answers to these."""
    parts = b"".join(
        b'--edge\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n%s\r\n' % image
        for image in images
    )
    body = parts + b"--edge--\r\n"
    return b"POST /v1/recognize HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=edge\r\n" + (
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, asked: bytes) -> tuple[int, float]:
        """Status, and seconds until the last byte was here."""
        started = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        return int(head[9:12]), time.perf_counter() - started

    async def close(self) -> None:
        """End it."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


@contextmanager
def serving(bundle: str, runtime: str) -> Iterator[int]:
    """The port of a server that is ready."""
    words = ["serve", bundle, "--port", "0", "--runtime", runtime]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r":(\d+);", process.stdout.readline())
    assert found is not None
    try:
        for _ in range(600):
            status = asyncio.run(Client(int(found[1])).ask(b"GET /readyz HTTP/1.1\r\nconnection: close\r\n\r\n"))[0]
            if status == 200:
                break
            time.sleep(0.1)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(30)


async def closed(port: int, asked: Sequence[bytes], clients: int, seconds: float) -> list[float]:
    """Seconds of every request, by so many clients that ask again as soon as they are answered."""
    end, took = time.perf_counter() + seconds, []

    async def one(number: int) -> None:
        client = Client(port)
        while time.perf_counter() < end:
            status, elapsed = await client.ask(asked[number % len(asked)])
            assert status == 200, status
            took.append(elapsed)
            number += clients
        await client.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return took


async def opened(port: int, asked: Sequence[bytes], rate: float, seconds: float) -> list[tuple[int, float]]:
    """Status and seconds of every request, arriving whether or not others were answered."""
    source, tasks, idle = random.Random(0), [], [Client(port) for _ in range(64)]

    async def one(number: int) -> tuple[int, float]:
        client = idle.pop() if idle else Client(port)
        try:
            return await client.ask(asked[number % len(asked)])
        finally:
            idle.append(client)

    start, at = time.perf_counter(), 0.0
    while at < seconds:
        at += source.expovariate(rate)
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(len(tasks))))
    said = await asyncio.gather(*tasks)
    for client in idle:
        await client.close()
    return said


async def recovered(port: int, asked: bytes, fast: float) -> float:
    """Seconds until an answer takes no longer than that."""
    started, client = time.perf_counter(), Client(port)
    for _ in range(1000):
        status, elapsed = await client.ask(asked)
        if status == 200 and elapsed <= fast:
            break
        await asyncio.sleep(0.01)
    await client.close()
    return time.perf_counter() - started


def measure(recognizer: Recognizer, port: int, images: list[bytes], seconds: float, rounds: int) -> dict[str, Any]:
    """All numbers of the head of this file."""
    single, sixteen = [request([image]) for image in images], [request(images)]
    here: list[float] = []
    there: list[float] = []
    batch_here: list[float] = []
    batch_there: list[float] = []
    share = seconds / rounds
    for image in images:
        recognizer(image)
    asyncio.run(closed(port, single, 1, min(1.0, share)))
    for _ in range(rounds):
        end = time.perf_counter() + share
        while time.perf_counter() < end:
            started = time.perf_counter()
            recognizer(images[len(here) % BATCH])
            here.append(time.perf_counter() - started)
        there += asyncio.run(closed(port, single, 1, share))
        started, count = time.perf_counter(), 0
        while time.perf_counter() < started + share:
            recognizer.answers(images)
            count += BATCH
        batch_here.append(count / (time.perf_counter() - started))
        started = time.perf_counter()
        count = BATCH * len(asyncio.run(closed(port, sixteen, 2, share)))
        batch_there.append(count / (time.perf_counter() - started))
    started = time.perf_counter()
    peak = len(asyncio.run(closed(port, single, CLIENTS, seconds))) / (time.perf_counter() - started)
    started = time.perf_counter()
    said = asyncio.run(opened(port, single, OVERLOAD * peak, seconds))
    good = sum(status == 200 for status, _ in said) / (time.perf_counter() - started)
    refused = sorted(elapsed for status, elapsed in said if status == 503)
    one = statistics.median(there)
    return {
        "one_ms": {"here": 1e3 * statistics.median(here), "http": 1e3 * one},
        "overhead_ms": 1e3 * (one - statistics.median(here)),
        "batches_per_s": {"here": statistics.median(batch_here), "http": statistics.median(batch_there)},
        "batch_share": statistics.median(batch_there) / statistics.median(batch_here),
        "clients_per_s": peak,
        "overload": {
            "asked_per_s": OVERLOAD * peak,
            "answered_share_of_peak": good / peak,
            "refused": len(refused) / len(said),
            "refusal_ms": {q: 1e3 * refused[int(share * len(refused))] for q, share in (("p50", 0.5), ("p99", 0.99))}
            if refused
            else None,
            "other": sum(status not in (200, 503) for status, _ in said),
        },
        "recovery_s": asyncio.run(recovered(port, single[0], 2 * one)),
    }


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--images", help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=10.0, help="each measurement takes")
    parser.add_argument("--rounds", type=int, default=5, help="turns between here and HTTP")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--json", help="write the result here")
    args = parser.parse_args()
    recognizer = vmmr.load(args.bundle, runtime=args.runtime)
    with serving(args.bundle, args.runtime) as port:
        found = measure(recognizer, port, pictures(args.images), args.seconds, args.rounds)
    found |= {"runtime": recognizer.runtime.name, "machine": platform.processor(), "bundle": args.bundle}
    print(json.dumps(found, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
