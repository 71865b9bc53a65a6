"""A worker that dies, stops or hangs, clients that leave, signals: a clean refusal, and back within seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from .conftest import FAKE, Reply, Server, Start, form

REFUSED = {"worker_lost", "not_ready", "overloaded", "late", "stopping"}


def checksum(reply: Reply) -> str:
    make: str = reply.json()["results"][0]["make"]
    return make


def under_load(server: Server, fault: Callable[[], None], seconds: float = 4.0) -> Counter[str]:
    """What eight clients get, "answered" or a code, while the fault happens; every answer is that of its picture."""
    right = {f"picture {client}": checksum(server.post("/v1/recognize", b"picture %d" % client)) for client in range(8)}
    assert len(set(right.values())) == 8
    said: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def ask(client: int) -> None:
        while time.monotonic() < end:
            reply = server.post("/v1/recognize", b"picture %d" % client)
            if reply.status == 200:
                assert checksum(reply) == right[f"picture {client}"]
                said["answered"] += 1
            else:
                assert reply.status == 503
                assert reply.headers["retry-after"] == "1"
                said[reply.code] += 1
                time.sleep(0.02)

    with ThreadPoolExecutor(9) as pool:
        asking = [pool.submit(ask, client) for client in range(8)]
        time.sleep(0.5)
        fault()
        for future in asking:
            future.result()
    return said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_worker_that_is_lost_under_load_is_replaced(start: Start, number: int) -> None:
    server = start(worker={"ms": 200})
    first = server.worker.pid

    def lose_it_at_work() -> None:
        server.wait_for("vmmr_pass_pictures_count", server.metric("vmmr_pass_pictures_count") + 1)
        os.kill(first, number)

    said = under_load(server, lose_it_at_work, seconds=6 if number == signal.SIGSTOP else 4)
    assert set(said) <= {"answered", *REFUSED}
    assert said["answered"] > 20
    assert said["worker_lost"] > 0
    assert server.wait(timeout=20).worker.pid != first
    assert not psutil.pid_exists(first)
    assert server.metric("vmmr_workers_started_total") == 2
    assert server.post("/v1/recognize", b"picture").status == 200
    status, told = server.end()
    assert status == 0
    assert "the worker is replaced" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("word", [b"DIE ", b"STOP", b"HANG"])
def test_a_picture_that_takes_the_worker_down_costs_a_refusal(start: Start, word: bytes) -> None:
    server = start(work_s=1.0)
    reply = server.post("/v1/recognize", word)
    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "worker_lost", "1")
    assert server.wait(timeout=20).post("/v1/recognize", b"a").status == 200


def test_a_suspended_server_does_not_blame_its_worker(start: Start) -> None:
    server = start()
    first = server.worker.pid
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(server.process.pid, signal.SIGCONT)
    time.sleep(1)
    assert server.post("/v1/recognize", b"a").status == 200
    assert server.worker.pid == first


def test_what_waits_longer_than_its_deadline_is_refused(start: Start) -> None:
    server = start(worker={"ms": 1500}, deadline_s=0.5)
    started = time.monotonic()
    reply = server.post("/v1/recognize", b"a")
    assert (reply.status, reply.code) == (503, "late")
    assert time.monotonic() - started < 1.4


def test_a_full_queue_refuses_before_the_body(start: Start) -> None:
    server = start(worker={"ms": 3000}, queue=2, batch=1)
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(server.post, "/v1/recognize", b"a")]
        server.wait_for("vmmr_pass_pictures_count", 1)  # it runs; the queue is empty
        asking += [pool.submit(server.post, "/v1/recognize", b"a") for _ in range(2)]
        server.wait_for("vmmr_waiting_pictures", 2)
        with closing(server.connect(timeout=5)) as connection:
            connection.sendall(b"POST /v1/recognize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n")
            said = b""
            while b"}" not in said and (more := connection.recv(65536)):
                said += more  # not a byte of the body has been sent
        assert said.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in said
        assert b'"overloaded"' in said
        assert [future.result().status for future in asking] == [200] * 3


def test_a_client_that_leaves_takes_its_pictures_back(start: Start) -> None:
    server = start(worker={"ms": 700}, batch=1)
    body, headers = form(b"a")
    head = b"POST /v1/recognize HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n" % len(body)
    head += b"".join(f"{k}: {v}\r\n".encode() for k, v in headers.items()) + b"\r\n"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "/v1/recognize", b"a")
        time.sleep(0.2)
        leaving = [server.connect() for _ in range(5)]
        for connection in leaving:
            connection.sendall(head + body)
        time.sleep(0.2)
        assert server.metric("vmmr_waiting_pictures") == 5
        for connection in leaving:
            connection.close()
        time.sleep(0.2)
        assert server.metric("vmmr_waiting_pictures") == 0
        assert first.result().status == 200
    assert server.post("/v1/recognize", b"b").status == 200
    assert server.metric("vmmr_pass_pictures_count") == 2
    assert "Traceback" not in server.end()[1]


def test_sigterm_lets_requests_end(start: Start) -> None:
    server = start(worker={"ms": 1000})
    worker = server.worker
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(server.post, "/v1/recognize", b"a")
        time.sleep(0.4)
        started = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        assert asking.result().status == 200
    assert server.end()[0] == 0
    assert time.monotonic() - started < 10
    assert not worker.is_running()


def test_sigterm_does_not_wait_for_ever(start: Start) -> None:
    server = start(worker={"ms": 60_000}, drain_s=1.0, deadline_s=90.0)
    with ThreadPoolExecutor(1) as pool, closing(server.connect()) as sending:
        sending.sendall(b"POST /v1/recognize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf")
        asking = pool.submit(server.post, "/v1/recognize", b"a")
        time.sleep(0.4)
        started = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        reply = asking.result()
        with suppress(ConnectionResetError):
            assert sending.recv(100) == b""
    assert (reply.status, reply.code) == (503, "worker_lost")
    status, said = server.end()
    assert (status, said) == (0, "")
    assert time.monotonic() - started < 10


def test_readiness_is_that_of_the_model(start: Start) -> None:
    server = start(worker={"start_s": 1.5}, wait=False)
    assert server.request("GET", "/healthz").status == 200
    for path in ("/readyz", "/v2/health/ready", "/v2/models/vmmr/ready", "/v2/models/vmmr"):
        assert (server.request("GET", path).status, server.request("GET", path).code) == (503, "not_ready")
    reply = server.post("/v1/recognize", b"a")
    assert (reply.code, reply.headers["retry-after"]) == ("not_ready", "1")
    assert server.metric("vmmr_ready") == 0
    server.wait()
    assert server.metric("vmmr_ready") == 1


def test_a_worker_dies_with_its_server(start: Start) -> None:
    server = start()
    worker = server.worker
    server.end(signal.SIGKILL)
    worker.wait(timeout=20)
    assert not worker.is_running()


def test_a_model_that_cannot_be_loaded_ends_the_server(start: Start, tmp_path: Path) -> None:
    server = start(worker={"refuse": "no such bundle"}, wait=False)
    server.process.wait(timeout=30)
    status, said = server.end()
    assert status != 0
    assert "no such bundle" in said
    # And the command says so in one sentence.
    command = [sys.executable, "-c", "from vmmr.cli import main; raise SystemExit(main())"]
    words = ["serve", str(tmp_path / "gone"), "--port", "0"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("vmmr: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_address_in_use_is_refused(fake: Server) -> None:
    settings = json.dumps({"bundle": "{}", "port": fake.port})
    done = subprocess.run([sys.executable, str(FAKE), settings], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "cannot listen" in done.stderr
