"""The server process: uvicorn around the app, from the first address to the last answer."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from vmmr.errors import ConfigError, VmmrError
from vmmr.serving.app import create_app
from vmmr.serving.protocol import GuardedProtocol
from vmmr.serving.settings import Settings, read_token

__all__ = ["WORKER", "serve"]

WORKER = (sys.executable, "-m", "vmmr.serving.worker")


def serve(settings: Settings, *, worker: Sequence[str] = WORKER) -> None:
    """Serve until SIGTERM or SIGINT; then no new request is taken, and those in flight get `drain_s`.

    worker: what starts the process with the model. Raises ConfigError where the address cannot be listened on, and
    VmmrError with what the worker says where it cannot load the model.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # strangers' mistakes fill no log
    token = None if settings.token_file is None else read_token(settings.token_file)
    refused: list[str] = []

    def on_refused(why: str) -> None:
        refused.append(why)
        server.should_exit = True

    app = create_app(settings, worker, token=token, on_refused=on_refused)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(GuardedProtocol, read_s=settings.read_s),  # type: ignore[arg-type]  # called as the class would be
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,  # addresses of clients are nobody's business; /metrics counts
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(settings.drain_s) + 2,  # by then, nobody is left
    )
    server = _Server(config, app, settings)
    try:
        server.run()
    except SystemExit as error:  # uvicorn has said why
        raise ConfigError("cannot listen", got=f"{settings.host}, port {settings.port}", do="name another") from error
    if refused:
        raise VmmrError(refused[0])


class _Server(uvicorn.Server):
    """Says where it listens, ends with status 0 on a signal, and lets requests in flight end."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self._app, self._settings = app, settings

    async def startup(self, sockets: Any = None) -> None:
        """Of uvicorn."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what lasts as long as the server; looking through it would hold all requests up, 45 ms at a time
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        print(f"vmmr listens on {host}:{port}; Ctrl-C ends it", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn, which would raise the signal again at the end."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Of uvicorn: take no more, give what is in flight its time, then refuse it as well; hang up on who is still
        sending."""
        self._app.state.batcher.stopping = True
        loop, seconds = asyncio.get_running_loop(), self._settings.drain_s
        loop.call_later(seconds, self._app.state.worker.cancel)
        loop.call_later(seconds + 0.5, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
