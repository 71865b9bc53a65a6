"""By which names a server may be called, and from whose pages."""

from __future__ import annotations

import re

import pytest

from vmmr.errors import ConfigError
from vmmr.serving.hosts import Hosts
from vmmr.serving.settings import Settings

from .conftest import Server, Start, form

HERE = ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "127.3.2.1", "[::1]:8000", "[::1]", "localhost.")
ELSEWHERE = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "0.0.0.0",
    "10.0.0.1",
)
NONSENSE = ("a b", "a@localhost", "localhost/", "[::1", "localhost:8000:1", "localhost:x", "é", "127.0.0.1\\@evil")


@pytest.mark.parametrize("listens", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_only_names_of_this_machine_are_good(listens: str) -> None:
    hosts = Hosts(listens, ("cars.example.org",))
    assert all(map(hosts.called, (*HERE, "cars.example.org", "Cars.Example.org:443")))
    assert not any(map(hosts.called, (*ELSEWHERE, *NONSENSE, "more.cars.example.org")))


def test_beyond_this_machine_every_name_is_good_until_some_are_listed() -> None:
    assert all(map(Hosts("0.0.0.0").called, (*HERE, *ELSEWHERE)))
    assert not any(map(Hosts("0.0.0.0").called, NONSENSE))
    listed = Hosts("0.0.0.0", ("cars.example.org",))
    good = (*HERE, "cars.example.org", "0.0.0.0", "10.0.0.1:8000", "[2001:db8::1]:8000")  # nobody can move an address
    assert all(map(listed.called, good))
    assert not any(map(listed.called, ("evil.example", *NONSENSE)))


def test_only_our_own_pages_may_ask() -> None:
    hosts = Hosts("127.0.0.1", ("cars.example.org",))
    for origin, host, good in (
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("http://localhost:8001", "localhost:8000", False),
        ("https://cars.example.org", "127.0.0.1:8000", True),  # a proxy that calls us by another name
        ("https://cars.example.org", "cars.example.org", True),
        ("https://evil.example", "127.0.0.1:8000", False),
        ("https://cars.example.org.evil.example", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("file://", "127.0.0.1:8000", False),
        ("", "", False),
    ):
        assert hosts.asked_from(origin, host) is good, origin
    everywhere = Hosts("0.0.0.0", ("localhost", "cars.example.org"))
    assert everywhere.asked_from("http://localhost:8000", "localhost:8000")
    for other in ("http://localhost:3000", "http://localhost", "https://cars.example.org:8443"):
        assert not everywhere.asked_from(other, "localhost:8000"), other


@pytest.mark.parametrize("name", ["https://cars.example.org", "cars.example.org:8000", "*", "Cars", "a b", "a."])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a host"):
        Settings("bundle", allowed_hosts=f"localhost,{name}")


def test_a_name_that_was_pointed_here_gets_nothing(fake: Server) -> None:
    """Not the page, nor health, nor metrics, nor an answer."""
    body, kind = form(b"a")
    for path in ("/", "/page.js", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v2", "/nothing"):
        reply = fake.request("GET", path, headers={"host": f"evil.example:{fake.port}"})
        assert (reply.status, reply.code) == (421, "wrong_host")
    for path in ("/v1/recognize", "/v1/embed", "/v1/restore", "/v2/models/vmmr/infer"):
        reply = fake.request("POST", path, body, {**kind, "host": "evil.example"})
        assert (reply.status, reply.code) == (421, "wrong_host")
    assert fake.request("GET", "/healthz", headers={"host": f"localhost:{fake.port}"}).status == 200


def test_listed_names_and_their_pages_may(start: Start) -> None:
    server = start(allowed_hosts="cars.example.org,localhost")
    for host, status in (("cars.example.org", 200), ("evil.example", 421)):
        assert server.request("GET", "/healthz", headers={"host": host}).status == status
    assert server.post("/v1/recognize", b"a", origin="https://cars.example.org").status == 200
    assert server.post("/v1/recognize", b"a", origin="https://evil.example").code == "cross_origin"


def test_pages_of_other_sites_are_refused_and_may_read_nothing(fake: Server) -> None:
    before = fake.metric("vmmr_pass_pictures_count")
    for origin in ("https://evil.example", "null", f"http://localhost:{fake.port}", "http://127.0.0.1:1"):
        for path in ("/v1/recognize", "/v1/embed", "/v1/restore"):
            reply = fake.post(path, b"a", origin=origin)
            assert (reply.status, reply.code) == (403, "cross_origin")
        asks = {"origin": origin, "access-control-request-method": "POST"}
        assert fake.request("OPTIONS", "/v1/recognize", headers=asks).status == 405
    assert fake.metric("vmmr_pass_pictures_count") == before
    for path in ("/", "/metrics", "/v2", "/openapi.json"):
        headers = fake.request("GET", path, headers={"origin": "https://evil.example"}).headers
        assert not any(name.startswith("access-control") for name in headers)
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"unsafe|\*|https?:", policy)
    assert fake.post("/v1/recognize", b"a", origin=f"http://127.0.0.1:{fake.port}").status == 200
