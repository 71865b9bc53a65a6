"""What is refused before anything looks at it, seen from the outside."""

from __future__ import annotations

import json
import re
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import Reply, Server, Start, form

HEAD = b"POST /v1/recognize HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=edge\r\n"
MIB = 1 << 20


def exchange(server: Server, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send pieces, one after the other; all that comes back until the server closes, which it has to."""
    with closing(server.connect(timeout=10)) as connection:
        said = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:  # it has closed already
            pass
        try:
            while part := connection.recv(65536):
                said += part
        except ConnectionResetError:
            pass
        return said


def status(said: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+)", said)
    assert found is not None, said[:100]
    return int(found[1])


def test_the_body_is_capped_by_what_it_says_and_by_what_comes(fake: Server) -> None:
    assert fake.post("/v1/recognize", b"x" * (MIB - 1000)).status == 200
    # By its length, before anything of it has come.
    said = exchange(fake, HEAD + b"content-length: 1048577\r\nconnection: close\r\n\r\n")
    assert (status(said), b"too_large" in said) == (413, True)
    # In chunks, which announce nothing.
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    said = exchange(fake, HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n", *[chunk] * 17)
    assert (status(said), b"too_large" in said) == (413, True)
    assert fake.post("/v1/recognize", b"still there").status == 200


def test_a_refused_client_gets_to_read_why(fake: Server) -> None:
    """It is still sending when the answer comes: an early close would reset the connection under it."""
    body, headers = form(b"x" * (8 * MIB))
    reply = fake.request("POST", "/v1/recognize", body, headers)
    assert (reply.status, reply.code) == (413, "too_large")


def test_a_million_tiny_chunks_are_a_body_like_any_other(fake: Server) -> None:
    body, _ = form(b"x" * 100_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    said = exchange(fake, HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n", chunks)
    assert status(said) == 200
    said = exchange(fake, HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n", chunks[:-5] * 11)
    assert status(said) == 413


@pytest.mark.parametrize(
    "fields",
    [
        b"content-length: -1\r\n",
        b"content-length: 1_0\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"content-length: 3\r\ncontent-length: 4\r\n",
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"na\x00me: value\r\n",
    ],
)
def test_wrong_lengths_and_fields_are_no_http(fake: Server, fields: bytes) -> None:
    said = exchange(fake, HEAD + fields + b"\r\nabc")
    assert status(said) in (400, 413)
    assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["code"] in ("bad_http", "too_large")


def test_the_head_is_capped(fake: Server) -> None:
    for fields in (b"x: y\r\n" * 100, b"x: " + b"y" * 40_000 + b"\r\n", b"x: " + b"y" * 400_000):
        said = exchange(fake, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + fields + b"\r\n")
        assert status(said) == 431, fields[:20]
        assert b'"header_too_large"' in said
    said = exchange(fake, b"GET /healthz?" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert status(said) == 431
    assert status(exchange(fake, b"GET /healthz HTTP/1.1\r\nconnection: close\r\n" + b"x: y\r\n" * 50 + b"\r\n")) == 200


def test_a_pipeline_has_an_end(fake: Server) -> None:
    said = exchange(fake, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1000)
    assert said.count(b"HTTP/1.1") <= 20
    assert said.rstrip().endswith(b"}}")  # the last answer is the refusal


def test_slow_heads_and_bodies_are_not_waited_for(fake: Server) -> None:
    """Patience is one second here. A byte every quarter of a second keeps no connection open."""
    started = time.monotonic()
    assert exchange(fake, b"") == b""
    assert exchange(fake, *[bytes([byte]) for byte in b"GET /healthz HTTP/1.1\r\n" * 2][:12], pause=0.25) == b""
    said = exchange(fake, HEAD + b"content-length: 100\r\nconnection: close\r\n\r\n", *[b"x"] * 12, pause=0.25)
    assert (status(said), b"slow_request" in said) == (408, True)
    # Refused at once, the rest of the body is waited for no longer either.
    said = exchange(fake, HEAD + b"content-length: 9999999\r\n\r\n", *[b"x"] * 12, pause=0.25)
    assert status(said) == 413
    assert time.monotonic() - started < 60
    assert fake.request("GET", "/healthz").status == 200


def test_half_a_body_is_no_request(fake: Server) -> None:
    before = fake.metric("vmmr_pass_pictures_count")
    with closing(fake.connect()) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\nhalf")
        connection.shutdown(socket.SHUT_WR)
    assert fake.request("GET", "/healthz").status == 200
    assert fake.metric("vmmr_pass_pictures_count") == before


def test_parts_are_counted(fake: Server) -> None:
    assert len(fake.post("/v1/recognize", *[b"a"] * 16).json()["results"]) == 16
    for images, boxes in ((17, None), (0, None), (2, [None])):
        reply = fake.post("/v1/recognize", *[b"a"] * images, boxes=boxes)
        assert reply.code in ("bad_multipart", "bad_request"), images
    for body, kind in (
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=" + "e" * 5000),
        (b"--edge\r\n\r\n\r\n--edge--", "multipart/form-data; boundary=edge; charset=idna"),
        (b"--edge\r\ncontent-disposition: form-data; name=x\r\n\r\n\r\n--edge--", "multipart/form-data; boundary=edge"),
    ):
        reply = fake.request("POST", "/v1/recognize", body, {"content-type": kind})
        assert reply.code in ("bad_multipart", "bad_request"), kind
    assert fake.request("POST", "/v1/recognize", b"{}", {"content-type": "application/json"}).status == 415
    assert fake.request("POST", "/v1/recognize").status == 415


@pytest.mark.parametrize(
    "boxes",
    [
        b"",
        b"{",
        b"[[0, 0, 1]]",
        b"[[0, 0, 0, 5]]",
        b"[[5, 0, 2, 5]]",
        b"[[0, 0, 1e9, 5]]",
        b'["a"]',
        b"[" * 5000,
        b"[[-1, 0, 5, 5]]",
        b"[[0, 0, 5, 5], null]",
        b"\xff",
    ],
)
def test_boxes_are_checked(fake: Server, boxes: bytes) -> None:
    reply = fake.post("/v1/recognize", b"a", boxes=boxes)
    assert (reply.status, reply.code) == (422, "bad_request")


def test_a_token_opens_what_is_not_public(start: Start, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery\n")
    token.chmod(0o600)
    server = start(token_file=str(token))
    for path in ("/", "/page.js", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert server.request("GET", path).status == 200, path
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer correct-horse-batter",
        "Basic correct-horse-battery",
        "correct-horse-battery",
    ]
    for given in wrong:
        for path in ("/metrics", "/openapi.json", "/v2", "/nothing", "/healthz/", "//healthz"):
            reply = server.request("GET", path, headers={"authorization": given})
            assert (reply.status, reply.code, reply.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        assert server.post("/v1/recognize", b"a", authorization=given).status == 401
    for given in ("Bearer correct-horse-battery", "bearer correct-horse-battery"):
        assert server.post("/v1/recognize", b"a", authorization=given).status == 200
    # Nor is the body of a stranger read.
    said = exchange(server, HEAD + b"content-length: 100000\r\nconnection: close\r\n\r\n")
    assert status(said) == 401


def test_every_answer_is_signed_and_guarded(fake: Server) -> None:
    def lasting(reply: Reply) -> dict[str, str]:
        return {k: v for k, v in reply.headers.items() if k not in ("date", "x-request-id", "server-timing")}

    for path in ("/", "/healthz", "/nothing", "/metrics"):
        one, other = fake.request("GET", path), fake.request("GET", path, headers={"x-request-id": "mine-1"})
        assert re.fullmatch(r"[0-9a-f]{16}", one.headers["x-request-id"])
        assert other.headers["x-request-id"] == "mine-1"
        assert "default-src 'none'" in one.headers["content-security-policy"]
        assert one.headers["x-content-type-options"] == "nosniff"
        assert "server" not in one.headers
    for odd in ("a b", "a" * 65, "é"):
        assert fake.request("GET", "/healthz", headers={"x-request-id": odd}).headers["x-request-id"] != odd
    assert lasting(fake.post("/v1/recognize", b"a")) == lasting(fake.post("/v1/recognize", b"a"))
