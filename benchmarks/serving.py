"""What HTTP costs, and what overload does: a server in a process of its own, asked from this one.

    python benchmarks/serving.py [MODEL ...] [--images FOLDER] [--seconds 15] [--rounds 5] [--runtime auto]
        [--json FILE]

MODEL is a bundle or an artifact; without any, networks with fresh weights at 224 px, exported to OpenVINO in fp32 and
int8, which cost what trained ones do. With --json the record is written after each model, and models that it already
holds under the same settings are not measured again.

    one            milliseconds for one picture, `Recognizer` in this process and over HTTP, taking turns; medians
    batches        pictures a second in requests of 16, HTTP keeping two of them on their way, and by
                   `Recognizer.stream`, which reads ahead
    clients        pictures a second of 16 clients with one picture a request: what batching makes of them
    overload       five times that rate, arriving as a Poisson process: what this process managed to ask a second,
                   pictures answered a second as a share of the rate, requests refused, and how long a refusal takes
    recovery       seconds from the end of the overload to the first answer as fast as twice the median

Both processes share the machine's cores; on few of them the client takes time from the server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vmmr
from inference import artifacts, fastest, photographs, random_bundle, say
from vmmr.data.pixels import cores
from vmmr.export.tuned import machine, remember
from vmmr.files import whole_file
from vmmr.recognizer import Recognizer

BATCH, CLIENTS, OVERLOAD = 16, 16, 5
BACKBONES, FORMS = ("mobilenetv2_100", "resnet50"), (("openvino", "fp32"), ("openvino", "int8"))
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
        """Status, and seconds until the last byte was here; status 0 where the connection broke. One that the server
        ends is opened anew for the next."""
        started = time.perf_counter()
        try:
            if self._streams is not None and self._streams[0].at_eof():  # ended while it was idle
                await self.close()
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
        except (asyncio.IncompleteReadError, OSError):
            elapsed = time.perf_counter() - started
            await self.close()
            return 0, elapsed
        elapsed = time.perf_counter() - started
        if b"connection: close" in head.lower():
            await self.close()
        return int(head[9:12]), elapsed

    async def close(self) -> None:
        """End it."""
        if self._streams is not None:
            self._streams[1].close()
            with suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None


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
    gc.collect()
    gc.freeze()  # a full collection of all that is imported here takes longer than any answer
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
        say(f"one picture: {1e3 * statistics.median(here):.1f} ms, over HTTP {1e3 * statistics.median(there):.1f} ms")
        started, count = time.perf_counter(), 0
        for count, _ in enumerate(recognizer.stream(chain.from_iterable(repeat(images))), 1):
            if count % BATCH == 0 and time.perf_counter() >= started + share:
                break
        batch_here.append(count / (time.perf_counter() - started))
        started = time.perf_counter()
        count = BATCH * len(asyncio.run(closed(port, sixteen, 2, share)))
        batch_there.append(count / (time.perf_counter() - started))
        say(f"batches: {batch_here[-1]:.0f} a second, over HTTP {batch_there[-1]:.0f}")
    started = time.perf_counter()
    peak = len(asyncio.run(closed(port, single, CLIENTS, seconds))) / (time.perf_counter() - started)
    say(f"{CLIENTS} clients: {peak:.0f} a second")
    started = time.perf_counter()
    said = asyncio.run(opened(port, single, OVERLOAD * peak, seconds))
    elapsed = time.perf_counter() - started
    recovery = asyncio.run(recovered(port, single[0], 2 * statistics.median(there)))
    good = sum(status == 200 for status, _ in said) / elapsed
    say(f"overload: {len(said) / elapsed:.0f} asked a second, {good:.0f} answered; recovered in {recovery:.2f} s")
    refused = sorted(elapsed for status, elapsed in said if status == 503)
    one = statistics.median(there)
    return {
        "one_ms": {"here": 1e3 * statistics.median(here), "http": 1e3 * one},
        "overhead_ms": 1e3 * (one - statistics.median(here)),
        "batches_per_s": {"here": statistics.median(batch_here), "http": statistics.median(batch_there)},
        "batch_share": statistics.median(batch_there) / statistics.median(batch_here),
        "clients_per_s": peak,
        "overload": {
            "meant_per_s": OVERLOAD * peak,
            "asked_per_s": len(said) / elapsed,
            "answered_share_of_peak": good / peak,
            "refused": len(refused) / len(said),
            "refusal_ms": {q: 1e3 * refused[int(share * len(refused))] for q, share in (("p50", 0.5), ("p99", 0.99))}
            if refused
            else None,
            "other": sum(status not in (200, 503) for status, _ in said),
        },
        "recovery_s": recovery,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: what was measured, a row each, and every model."""
    rows = {
        "one picture, in process, ms": lambda r: f"{r['one_ms']['here']:.2f}",
        "one picture, over HTTP, ms": lambda r: f"{r['one_ms']['http']:.2f}",
        "HTTP adds, ms": lambda r: f"{r['overhead_ms']:.2f}",
        "batches, in process, images/s": lambda r: f"{r['batches_per_s']['here']:.0f}",
        "batches, over HTTP, images/s": lambda r: f"{r['batches_per_s']['http']:.0f} ({r['batch_share']:.0%})",
        f"{CLIENTS} clients, images/s": lambda r: f"{r['clients_per_s']:.0f}",
        "overload: asked a second": lambda r: f"{r['overload']['asked_per_s']:.0f}",
        "overload: answered, of the clients' rate": lambda r: f"{r['overload']['answered_share_of_peak']:.0%}",
        "overload: refused": lambda r: f"{r['overload']['refused']:.0%}",
        "overload: a refusal takes, ms, median and p99": lambda r: _refusals(r["overload"]["refusal_ms"]),
        "overload: anything else": lambda r: str(r["overload"]["other"]),
        "recovery, s": lambda r: f"{r['recovery_s']:.2f}",
    }
    lines = [f"| | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    lines += [f"| {title} | {' | '.join(map(shown, results.values()))} |" for title, shown in rows.items()]
    return "\n".join(lines)


def _refusals(found: dict[str, float] | None) -> str:
    return "none" if found is None else f"{found['p50']:.1f}, {found['p99']:.1f}"


def models(names: Sequence[str], held: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """A title and a folder of each that is not held; what is made here gets the record that `vmmr bench` leaves."""
    if names:
        yield from ((Path(name).name, name) for name in names if Path(name).name not in held)
        return
    os.environ["XDG_CACHE_HOME"] = str(folder)  # these networks do not last
    for backbone in BACKBONES:
        for form in FORMS:
            title, home = f"{backbone}, {' '.join(form)}", folder / backbone
            if title not in held:
                say(f"exporting {title}")
                [made] = artifacts(random_bundle(backbone), photographs(BATCH), home, [form]).values()
                remember(made, fastest(made, cores()))
                yield title, str(home / "-".join(form))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--images", help="folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=15.0, help="each measurement takes")
    parser.add_argument("--rounds", type=int, default=5, help="turns between here and HTTP")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("images", "seconds", "rounds", "runtime")}
    document: dict[str, Any] = {"machine": machine(), "settings": settings, "results": {}}
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if (before["machine"], before["settings"]) == (document["machine"], settings):
            document["results"] = before["results"]
    with tempfile.TemporaryDirectory() as folder:
        for title, model in models(args.models, list(document["results"]), Path(folder)):
            say(title)
            recognizer = vmmr.load(model, runtime=args.runtime)
            with serving(model, args.runtime) as port:
                document["results"][title] = measure(recognizer, port, pictures(args.images), args.seconds, args.rounds)
            if args.json:
                with whole_file(args.json) as file:
                    file.write((json.dumps(document, indent=1) + "\n").encode())
    print(table(document["results"]))


if __name__ == "__main__":
    main()
