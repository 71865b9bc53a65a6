"""What `vmmr serve` can be told; contradictions are refused before anything starts."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from vmmr.config import RuntimeName
from vmmr.errors import ConfigError
from vmmr.serving.hosts import Hosts, stays_here

__all__ = ["Settings", "read_token"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve.

    Args:
        bundle: bundle folder, or artifact folder that `vmmr export` wrote
        host: address to listen on; beyond this machine it takes a token, or insecure
        port: port to listen on; 0 takes a free one
        name: what /v2/models calls the model
        token_file: file with the bearer token that requests must bring; not readable for everybody
        insecure: listen beyond this machine without a token
        allowed_hosts: further names by which requests may call the server, with commas between them
        runtime: auto, torch, onnxruntime or openvino
        device: where torch computes
        batch: pictures in one pass at most
        latency_ms: how long a picture may wait for others to share its pass
        queue: pictures that may wait; beyond, requests are refused at once with 503
        deadline_s: how long a request may take from queue to answer; then 503
        body_mib: largest request body in MiB
        read_s: patience for the head of a request, and, with a second more for every 64 KiB, for its body
        work_s: how long one pass may take before the worker counts as hung and is replaced
        drain_s: how long requests in flight may still take after SIGTERM

    Raises ConfigError for settings that make no sense.

    >>> Settings("bundle", host="0.0.0.0")
    Traceback (most recent call last):
    vmmr.errors.ConfigError: the server would be open to the network; got host 0.0.0.0 without a token; pass \
--token-file, or --insecure where something else guards it
    """

    bundle: str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "vmmr"
    token_file: str | None = None
    insecure: bool = False
    allowed_hosts: str = ""
    runtime: RuntimeName = "auto"
    device: str = "cpu"
    batch: int = 32
    latency_ms: float = 5.0
    queue: int = 64
    deadline_s: float = 10.0
    body_mib: int = 16
    read_s: float = 10.0
    work_s: float = 60.0
    drain_s: float = 8.0

    def __post_init__(self) -> None:
        for name in ("batch", "queue", "deadline_s", "body_mib", "read_s", "work_s"):
            if not 0 < getattr(self, name) <= 1_000_000:
                raise ConfigError(f"{name} is above 0", got=getattr(self, name))
        if self.latency_ms < 0 or self.drain_s < 0 or not 0 <= self.port < 1 << 16:
            raise ConfigError(
                "latency, drain and port are no negative numbers", got=(self.latency_ms, self.drain_s, self.port)
            )
        if not re.fullmatch(r"[\w.-]{1,64}", self.name, re.ASCII):
            raise ConfigError("the name stands in addresses", got=repr(self.name), do="use letters, digits, . _ -")
        if self.token_file is None and not self.insecure and not stays_here(self.host):
            raise ConfigError(
                "the server would be open to the network",
                got=f"host {self.host} without a token",
                do="pass --token-file, or --insecure where something else guards it",
            )
        _ = self.hosts

    @property
    def hosts(self) -> Hosts:
        """Who may call, and from where."""
        return Hosts(self.host, tuple(filter(None, self.allowed_hosts.split(","))))


def read_token(path: str) -> bytes:
    """The token in a file: its text without the white space around it.

    Raises ConfigError for a file that cannot be read, that everybody may read or write, or whose text is no token.
    """
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
        if mode & 0o007:
            raise ConfigError("everybody may open the token file", got=f"mode {mode:o}", do=f"chmod 600 {path}")
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError("cannot read the token file", got=error) from error
    if not re.fullmatch(rb"[!-~]{16,512}", token):
        raise ConfigError("no token", got=f"{len(token)} bytes", do="16 to 512 visible ASCII characters in one word")
    return token
