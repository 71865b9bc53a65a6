"""Nothing grows: neither memory nor descriptors, of the server and of its worker; and the measurement can tell."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from .conftest import Server, Start

MIB = 1 << 20
COMMAND = "import sys; from vmmr.cli import main; sys.argv[0] = 'vmmr'; raise SystemExit(main())"


def sizes(server: Server) -> tuple[float, int]:
    """MiB of both processes, and the descriptors of both."""
    both = (psutil.Process(server.process.pid), server.worker)
    return sum(p.memory_info().rss for p in both) / MIB, sum(p.num_fds() for p in both)


def growth(server: Server, image: bytes, *, requests: int, seconds: float = 0.0) -> tuple[float, int]:
    """How much the sizes grow over so many requests, or so much time, after a tenth of them to warm up. Good pictures,
    bad ones, large ones, leaving clients and refused bodies take turns."""

    def one(number: int) -> None:
        match number % 5:
            case 0:
                with closing(server.connect()) as connection:
                    connection.sendall(b"POST /v1/embed HTTP/1.1\r\nhost: [::1]\r\ncontent-length: 100000\r\n\r\nleft")
            case 1:
                assert server.post("/v1/recognize", b"BAD").status in (200, 422)
            case 2:
                assert server.request("POST", "/v1/recognize", b"x" * (17 * MIB)).status == 413
            case 3:
                assert server.post("/v1/embed", image + bytes(MIB)).status == 200
            case _:
                assert server.post("/v1/recognize", image, image).status == 200

    def some(requests: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(requests)))
            while time.monotonic() < end:
                list(pool.map(one, range(50)))

    some(requests // 10, seconds / 10)
    time.sleep(0.5)
    memory, descriptors = sizes(server)
    some(requests, seconds)
    time.sleep(0.5)  # clients that left have been noticed
    grown, opened = sizes(server)
    return grown - memory, opened - descriptors


@pytest.mark.parametrize("leak", [False, True])
def test_nothing_grows(start: Start, leak: bool) -> None:
    """A worker that keeps 200 kB of every pass is told from one that does not."""
    memory, descriptors = growth(start(worker={"leak": leak}), b"picture", requests=500)
    assert descriptors == 0
    assert (memory > 20) == leak, memory


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("leak", [False, True])
def test_nothing_grows_in_ten_minutes(start: Start, tiny_run: Path, tiny_cars: Path, leak: bool) -> None:
    if leak:
        server = start(worker={"leak": True})
    else:
        server = Server(["-c", COMMAND, "serve", str(tiny_run / "bundle"), "--port", "0"]).wait()
    image = next((tiny_cars / "test").rglob("*.png")).read_bytes()
    memory, descriptors = growth(server, image, requests=0, seconds=600)
    assert descriptors == 0
    assert (memory > 70) == leak, memory
    server.end()
