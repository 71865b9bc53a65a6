"""What a request must pass before any of our code looks at it: host, origin, token, room in the queue, size and speed
of its body.

Pure ASGI, in front of everything. A refusal is sent before the body is read wherever the head is enough to tell; the
rest of the body is then read and dropped by `vmmr.serving.protocol`, so that the client gets to see why. Who is let in
has a place in the queue from its head to its last picture: bodies on their way never outnumber the places that are
left, and none is received and taken apart for nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmmr.serving.hosts import Hosts
from vmmr.serving.metrics import Metrics
from vmmr.serving.schema import RefusalError

__all__ = ["Gate", "refusal"]

_RATE = 64 * 1024  # bytes of a body that earn it one second more
_OPEN = re.compile(r"/(|page\.css|page\.js|healthz|readyz|v2/health/(live|ready))")  # without a token
_GUARDED = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(self), geolocation=(), microphone=()",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def refusal(path: str, error: RefusalError) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of a refusal, in the form of the protocol that the address belongs to."""
    headers = {b"content-type": b"application/json"}
    if error.status == 503:
        headers[b"retry-after"] = b"1"
    if error.status == 401:
        headers[b"www-authenticate"] = b"Bearer"
    if path.startswith("/v2"):
        document: dict[str, object] = {"error": f"{error.code}: {error.message}"}
    else:
        document = {"error": {"code": error.code, "message": error.message}}
    return error.status, headers, json.dumps(document).encode()


class Gate:
    """app behind it. hosts: who may call. token: what requests must bring, None where nothing. place: keeps a place in
    the queue while its context lasts, or raises RefusalError; the app finds the place in `request.state`. read_s:
    patience for a body."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        hosts: Hosts,
        place: Callable[[], AbstractContextManager[object]],
        token: bytes | None,
        body_bytes: int,
        read_s: float,
    ) -> None:
        self._app, self._metrics, self._hosts, self._place = app, metrics, hosts, place
        self._token, self._body_bytes, self._read_s = token, body_bytes, read_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan of the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        send = self._signed(scope, _request_id(headers.get(b"x-request-id", b"")), send)
        try:
            self._admit(scope, headers)
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
                return
            with self._place() as place:
                body = await self._body(receive)
                if body is not None:
                    scope["state"]["place"] = place
                    await self._answered(scope, body, receive, send)
        except RefusalError as error:
            status, said, text = refusal(scope["path"], error)
            if b"expect" in headers:  # whether the body still comes is the client's choice: nobody could tell
                said[b"connection"] = b"close"
            await _respond(send, status, said, text)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._hosts.called(host):  # without one, it is no browser
            raise RefusalError("wrong_host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and scope["method"] == "POST" and not self._hosts.asked_from(origin, host):
            raise RefusalError("cross_origin")
        if self._token is not None and not _OPEN.fullmatch(scope["path"]):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self._token) or scheme.lower() != b"bearer":
                raise RefusalError("unauthorized")
        if int(headers.get(b"content-length", b"0")) > self._body_bytes:
            raise RefusalError("too_large", f"at most {self._body_bytes:,} bytes")

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it, or None where the client has left."""
        body, start = bytearray(), asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._read_s) as patience:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._body_bytes:
                        raise RefusalError("too_large", f"at most {self._body_bytes:,} bytes")
                    if not message.get("more_body", False):
                        return bytes(body)
                    patience.reschedule(start + self._read_s + len(body) / _RATE)
        except TimeoutError:
            raise RefusalError("slow_request") from None

    async def _answered(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the app on a body that is here; give up when the client leaves."""
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                await gone
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def departure() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        gone = asyncio.create_task(departure())
        work = asyncio.create_task(self._run(scope, replay, send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, work):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
        if not work.cancelled():
            work.result()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _signed(self, scope: Scope, request_id: bytes, send: Send) -> Send:
        """`send` with the headers that every answer carries; counts the answer."""
        started = time.perf_counter()

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {**_GUARDED, b"x-request-id": request_id}
                kept = [(name, value) for name, value in message.get("headers", []) if name not in own]
                message = {**message, "headers": [*kept, *own.items()]}
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(route, str(message["status"])).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
            await send(message)

        return signed


async def _respond(send: Send, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
    headers = {**headers, b"content-length": str(len(body)).encode()}
    await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": body})


def _request_id(given: bytes) -> bytes:
    """The client's own where it is a plain word, else a new one."""
    return given if re.fullmatch(rb"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(8).encode()
