"""uvicorn's connections with ends that it does not set: to the head of a request, to time, to a silent or greedy peer.

no head within `read_s`                    closed
a head of more than 32 KiB or 64 fields    431
a request answered before its body ended   the rest is read and dropped, for `read_s`
an answer that nobody reads                closed, `read_s` after the connection fell idle
more than 512 connections                  503; beyond 1,024, closed
an idle connection                         closed after 75 s, or, where there are more than 256, after 5 s
more than 8 requests in a pipeline         400

Where the connection is to end and the client may still be sending, our half of it is ended alone, and what comes is
dropped, for `read_s` at most: were it closed, its system would answer to the next bytes with a reset, at which clients
and proxies drop the answer that they have not read yet.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vmmr.serving.limits import refusal
from vmmr.serving.schema import RefusalError

__all__ = ["GuardedProtocol"]

_HEAD_BYTES, _HEAD_FIELDS = 32 * 1024, 64
_CONNECTIONS, _HEARD_OUT = 512, 1024
_IDLE_S, _CROWDED_S = 75, 5  # proxies keep theirs for a minute, and would ask on one that has just ended
_PIPELINE = 8


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, read_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._read_s = read_s
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = self._in_body = self._ended = False
        self._reason = "bad_http"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio."""
        super().connection_made(transport)
        if len(self.connections) > _HEARD_OUT:
            transport.abort()
        elif len(self.connections) > _CONNECTIONS:
            self._refuse("overloaded")
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.cycle = None  # type: ignore[assignment]  # which holds this connection

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        if self._ended or self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse("header_too_large")
            elif self._timer is None:
                self._wait()

    def on_message_begin(self) -> None:
        """Of the parser: the first line of a request is about to come."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Of the parser. What is raised here ends the connection with status 400, or 431."""
        self._in_head, self._in_body = False, True
        self._stop_waiting()
        if len(self.headers) > _HEAD_FIELDS or sum(map(len, (self.url, *sum(self.headers, ())))) > _HEAD_BYTES:
            self._reason = "header_too_large"
            raise ValueError(self._reason)
        if len(self.pipeline) >= _PIPELINE:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self.cycle.transport = _Side(self)  # type: ignore[assignment]  # all of it that a cycle uses

    def on_message_complete(self) -> None:
        """Of the parser: the body has ended."""
        super().on_message_complete()
        self._in_body = False
        if self.cycle.response_complete:  # long answered: from now on the connection is idle
            self._wait()

    def on_response_complete(self) -> None:
        """Of the cycle: the answer is on its way."""
        self.timeout_keep_alive = _IDLE_S if 2 * len(self.connections) <= _CONNECTIONS else _CROWDED_S
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._wait()

    def timeout_keep_alive_handler(self) -> None:
        """Of uvicorn: nothing has come since the last answer."""
        if self.transport.get_write_buffer_size():
            self._wait()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn: the parser has given up."""
        self._refuse(self._reason)

    def _refuse(self, code: str) -> None:
        status, headers, body = refusal("/", RefusalError(code))
        headers |= {b"content-length": str(len(body)).encode(), b"connection": b"close"}
        head = b"".join(b"%s: %s\r\n" % pair for pair in headers.items())
        self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (status, head, body))
        self._hear_out()

    def say(self, data: bytes) -> None:
        """Of a cycle."""
        if not self._ended:
            self.transport.write(data)

    def end(self) -> None:
        """Of a cycle whose answer was the last one."""
        if self._in_body:
            self._hear_out()
        else:
            self.transport.close()

    def _hear_out(self) -> None:
        self._ended = True
        self.pipeline.clear()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self._read_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Side:
    """The transport as the cycle of a request sees it: how a connection ends is the connection's business."""

    def __init__(self, connection: GuardedProtocol) -> None:
        self.write, self.close, self.is_closing = connection.say, connection.end, connection.transport.is_closing
