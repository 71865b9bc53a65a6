"""Requests made up from the server's own description, and bytes that are no requests: every answer is one that it
describes, and none is a 5xx but 503."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from vmmr.serving.app import create_app
from vmmr.serving.schema import CODES
from vmmr.serving.settings import Settings

from .conftest import Server, Start

SCHEMA = schemathesis.openapi.from_dict(create_app(Settings("{}"), (), on_refused=print).openapi())
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
LOOKED_AT = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
MODES = [
    pytest.param(mode, operation, id=f"{operation.method} {operation.path} {mode.value}")
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode == GenerationMode.POSITIVE or operation.body  # of a name in an address, none is wrong
]
UNHURRIED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
WORDS = ("{}", "\r\n", "é", "\0", "Bearer", "multipart/form-data", "application/json", "chunked", "close", "9" * 30)


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Server]:
    server = start(read_s=1.0, name="cars", worker={"restores": True})
    yield server
    worker = server.worker
    assert server.metric("vmmr_workers_started_total") == 1
    assert worker.is_running()
    status, said = server.end()
    assert (status, said) == (0, "")  # no traceback


def fuzz(server: Server, operation: Any, mode: GenerationMode, cases: int) -> None:
    seen: Counter[int] = Counter()

    @settings(max_examples=cases, **UNHURRIED)  # type: ignore[arg-type]
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if "model" in case.path_parameters and len(case.path_parameters["model"]) % 2:
            case.path_parameters["model"] = "cars"  # else no request would come past the name
        response = case.call(base_url=f"http://127.0.0.1:{server.port}", timeout=30)
        case.validate_response(response, checks=LOOKED_AT)
        assert response.status_code < 500 or response.status_code == 503
        if response.status_code >= 400:
            error = response.json()["error"]
            code = error["code"] if isinstance(error, dict) else error.split(":")[0]
            assert CODES[code][0] == response.status_code
        seen[response.status_code] += 1

    run()
    if mode == GenerationMode.NEGATIVE:
        assert any(status >= 400 for status in seen)
    elif "infer" not in operation.path:  # few made-up tensors have the data that their shapes promise
        assert seen[200] > 0


@pytest.mark.parametrize(("mode", "operation"), MODES)
def test_requests_from_the_schema(server: Server, mode: GenerationMode, operation: Any) -> None:
    fuzz(server, operation, mode, 30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("mode", "operation"), MODES)
def test_ten_thousand_requests_from_the_schema(server: Server, mode: GenerationMode, operation: Any) -> None:
    fuzz(server, operation, mode, 1000)


def mutated(random: random.Random) -> bytes:
    """A request with a few bytes replaced, doubled, cut out or shuffled in from elsewhere."""
    body = b'--e\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\nab\r\n--e--\r\n'
    infer = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["YWI="]}]}).encode()
    kind = b"content-type: multipart/form-data; boundary=e\r\n"
    request = random.choice(
        [
            b"POST /v1/recognize?top=2 HTTP/1.1\r\nhost: [::1]\r\n%scontent-length: %d\r\n\r\n%s"
            % (kind, len(body), body),
            b"POST /v1/embed HTTP/1.1\r\nhost: [::1]\r\n%stransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
            % (kind, len(body), body),
            b"POST /v2/models/cars/infer HTTP/1.1\r\nhost: [::1]\r\ncontent-length: %d\r\n\r\n%s" % (len(infer), infer),
            b"GET /v2/models/cars HTTP/1.1\r\nhost: [::1]\r\nauthorization: Bearer x\r\n\r\n",
        ]
    )
    data = bytearray(request)
    for _ in range(random.randrange(1, 6)):
        at = random.randrange(len(data) + 1)
        match random.randrange(4):
            case 0:
                data[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del data[at : at + random.randrange(1, 20)]
            case 2:
                data[at:at] = random.choice(WORDS).encode()
            case _:
                start = random.randrange(len(request))
                data[at:at] = request[start : start + random.randrange(1, 60)]
    return bytes(data)


def send_mutated(server: Server, cases: int) -> None:
    source, seen = random.Random(0), set()
    for _ in range(cases):
        request = mutated(source)
        with closing(server.connect(timeout=10)) as connection:
            said = b""
            try:
                connection.sendall(request)
                connection.settimeout(0.05)  # it may wait for more, which does not come
                while part := connection.recv(65536):
                    said += part
            except (ConnectionResetError, TimeoutError):
                pass
        for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", said):
            assert int(code) < 500 or code == b"503", (request, said)
            seen.add(int(code))
    assert {200, 400, 404, 422} <= seen


def test_mutated_bytes(server: Server) -> None:
    send_mutated(server, 300)
    assert server.post("/v1/recognize", b"a").status == 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_requests(server: Server) -> None:
    send_mutated(server, 10_000)
    assert server.post("/v1/recognize", b"a").status == 200
