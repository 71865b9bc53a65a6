"""Real server processes on free ports of this machine, and what one says to them."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

FAKE = Path(__file__).with_name("serve_fake.py")


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of a refusal."""
        error = self.json()["error"]
        return str(error["code"] if isinstance(error, dict) else error.split(":")[0])


def form(*images: bytes, boxes: Any = None) -> tuple[bytes, dict[str, str]]:
    """A multipart body and its headers."""
    parts = [b'name="image"; filename="a"\r\n\r\n' + image for image in images]
    if boxes is not None:
        parts.append(b'name="boxes"\r\n\r\n' + (boxes if isinstance(boxes, bytes) else json.dumps(boxes).encode()))
    body = b"".join(b"--edge\r\ncontent-disposition: form-data; %s\r\n" % part for part in parts) + b"--edge--\r\n"
    return body, {"content-type": "multipart/form-data; boundary=edge"}


class Server:
    """A server process."""

    def __init__(self, words: Sequence[str]) -> None:
        # Signals of the terminal, or of whoever runs the tests, are not for it.
        self.process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"listens on 127.0.0.1:(\d+)", line)
        if found is None:
            raise AssertionError(f"{line}{self.process.communicate(timeout=60)[1]}")
        self.port = int(found[1])

    def connect(self, timeout: float = 30) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, *images: bytes, boxes: Any = None, **headers: str) -> Reply:
        """Pictures in a form."""
        body, own = form(*images, boxes=boxes)
        return self.request("POST", path, body, {**own, **{k.replace("_", "-"): v for k, v in headers.items()}})

    def wait(self, path: str = "/readyz", status: int = 200, timeout: float = 120) -> Server:
        """Until it says so."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.request("GET", path).status == status:
                return self
            time.sleep(0.05)
        raise AssertionError(f"{path} is not {status} after {timeout} s")

    @property
    def worker(self) -> psutil.Process:
        """Its one child."""
        [child] = psutil.Process(self.process.pid).children()
        return child

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        text = self.request("GET", "/metrics").body.decode()
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))

    def wait_for(self, name: str, least: float) -> None:
        """Until a number of /metrics is at least this."""
        until = time.monotonic() + 30
        while self.metric(name) < least:
            assert time.monotonic() < until, f"{name} stays below {least}"
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Signal it; its status and what it said on standard error."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a server with a fake worker: its settings as keywords, `worker` what the fake is told; waits until it is
    ready unless `wait=False`."""
    servers = []

    def begin(*, worker: dict[str, Any] | None = None, wait: bool = True, **settings: Any) -> Server:
        server = Server([str(FAKE), json.dumps({"bundle": json.dumps(worker or {}), "port": 0, **settings})])
        servers.append(server)
        return server.wait() if wait else server

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def fake(start: Start) -> Server:
    """A server with a fake worker and short patience, shared by the tests of a file."""
    return start(read_s=1.0, body_mib=1, queue=8)
