"""What a full server says, and that everybody gets to hear it, however much they are sending."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from .conftest import Server, Start, form

HEAD = b"POST /v1/recognize HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=edge\r\n"
MIB = 1 << 20

# A client as people have it: `urllib` wants the connection closed, `http.client` keeps it.
CLIENT = """
import http.client, json, sys, threading, urllib.error, urllib.request
port, count, size = map(int, sys.argv[1:])
heads, said, body = {"content-type": "multipart/form-data; boundary=edge"}, [], b"x" * size

def once():
    try:
        address = f"http://127.0.0.1:{port}/v1/recognize"
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(urllib.request.Request(address, body, heads))
        said.append("answered")
    except urllib.error.HTTPError as error:
        said.append([error.code, error.headers["retry-after"], json.loads(error.read())["error"]["code"]])
    except OSError as error:
        said.append(repr(error))

def kept():
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(3):
        try:
            connection.request("POST", "/v1/recognize", body, heads)
            reply = connection.getresponse()
            said.append([reply.status, reply.headers["retry-after"], json.loads(reply.read())["error"]["code"]])
        except (OSError, http.client.HTTPException) as error:
            said.append(repr(error))

threads = [threading.Thread(target=work) for work in (once, kept) for _ in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(said))
"""


@pytest.fixture
def full(start: Start) -> Iterator[Server]:
    """A server whose worker is at work for long, and whose one place in the queue is taken."""
    server = start(worker={"ms": 60_000}, queue=1, read_s=3.0)
    body, _ = form(b"x")
    with ExitStack() as held:
        for what in ("vmmr_pass_pictures_count", "vmmr_waiting_pictures"):
            connection = held.enter_context(closing(server.connect()))
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body))
            server.wait_for(what, 1)
        yield server


def said_to(connection: socket.socket) -> bytes:
    """All that comes until the server ends its half."""
    said = b""
    while part := connection.recv(65536):
        said += part
    return said


def test_every_client_gets_its_503_however_large_its_body(full: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(full.port), "12", str(6 * MIB)], capture_output=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == [[503, "1", "overloaded"]] * 48


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_connection_that_ends_is_heard_out(full: Server, version: bytes) -> None:
    """As proxies ask: HTTP/1.0, or with `Connection: close`. A reset would take the answer with it."""
    with closing(full.connect()) as connection:
        head = HEAD.replace(b"1.1", version) + b"connection: close\r\ncontent-length: %d\r\n\r\n" % (4 * MIB)
        connection.sendall(head + b"x" * 1000)
        time.sleep(0.3)  # the answer is here, and all of the body still to come
        for _ in range(4):
            connection.sendall(bytes(MIB - 250))
        said = said_to(connection)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert (said.count(b"HTTP/1.1"), b"connection: close" in said.lower(), said.endswith(b"}}")) == (1, True, True)


def test_who_asks_first_is_told_before_sending(full: Server) -> None:
    with closing(full.connect()) as connection:
        connection.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 1000\r\n\r\n")
        said = said_to(connection)  # nobody knows whether the body will come: the connection ends
    assert (said[:13], b" 100 " in said, b"connection: close" in said.lower()) == (b"HTTP/1.1 503 ", False, True)


def test_who_is_heard_out_has_an_end(full: Server) -> None:
    with closing(full.connect()) as connection:
        connection.sendall(HEAD + b"connection: close\r\ncontent-length: 10000000\r\n\r\n")
        started = time.monotonic()
        with suppress(OSError):  # a broken pipe or a reset
            while time.monotonic() < started + 30:
                connection.sendall(b"x")
                time.sleep(0.1)
    assert 2.5 < time.monotonic() - started < 10


def test_places_are_taken_by_heads(start: Start) -> None:
    """While nothing waits, too: no more bodies are received than would find a place."""
    server = start(queue=3)
    body, _ = form(b"x")
    head = HEAD + b"content-length: %d\r\n\r\n" % len(body)
    with ExitStack() as held:
        coming = [held.enter_context(closing(server.connect())) for _ in range(5)]
        for connection in coming:
            connection.sendall(head)
            time.sleep(0.1)
        refused = [connection.recv(65536)[:13] for connection in coming[3:]]
        assert refused == [b"HTTP/1.1 503 "] * 2
        for connection in coming[:3]:
            connection.sendall(body)
        assert [connection.recv(65536)[:13] for connection in coming[:3]] == [b"HTTP/1.1 200 "] * 3
        for connection in coming[:3]:  # and nobody keeps a place
            connection.sendall(head)
        for connection in coming[:3]:
            connection.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                said_to(connection)
    assert server.post("/v1/recognize", b"x").status == 200


def test_more_connections_than_there_are_places_for_hear_so(start: Start) -> None:
    server = start()
    with ExitStack() as held:
        many = [held.enter_context(closing(server.connect())) for _ in range(530)]
        time.sleep(1)
        last = many[-1]
        last.sendall(HEAD + b"content-length: 100000\r\n\r\n")
        last.sendall(bytes(50_000))
        said = said_to(last)
        assert (said[:13], b'"overloaded"' in said) == (b"HTTP/1.1 503 ", True)
    assert server.wait("/healthz").request("GET", "/healthz").status == 200


def test_an_idle_connection_outlasts_the_pause_between_two_pictures(start: Start) -> None:
    server = start()
    with closing(server.connect()) as connection:
        for pause in (6, 0):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                part = connection.recv(65536)
                assert part
                said += part
            assert said.startswith(b"HTTP/1.1 200 ")
            time.sleep(pause)
