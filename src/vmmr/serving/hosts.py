"""By which names the server may be called, and from whose pages.

A site can point its own name at 127.0.0.1 (DNS rebinding); to a browser its pages and this server are then of one
origin, and the pages read every answer. So a server on loopback answers only to names of this machine. And any page may
send a form anywhere, though not read what comes back: a browser names the page's origin, and others than ours are
refused before they cost anything.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from vmmr.errors import ConfigError

__all__ = ["Hosts", "stays_here"]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"https?://(.+)")


def stays_here(host: str) -> bool:
    """Whether this name or address is of this machine alone.

    >>> [stays_here(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "localhost.example.org")]
    [True, True, True, False, False]
    """
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


@dataclass(frozen=True, slots=True)
class Hosts:
    """listens: the address that the server listens on. listed: further names by which it may be called.

    Names of this machine are always good. Beyond it every name is, unless some are listed: then those, and addresses,
    which nobody can point elsewhere. ConfigError for what is no name.

    >>> here = Hosts("127.0.0.1", ("cars.example.org",))
    >>> [here.called(host) for host in ("localhost:8000", "[::1]:8000", "cars.example.org", "evil.example.org:8000")]
    [True, True, True, False]
    """

    listens: str
    listed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.listed:
            if _name(name) != name:
                raise ConfigError("no name of a host", got=repr(name), do="pass a.b,c.d: small letters, without ports")

    def called(self, host: str) -> bool:
        """Whether a request with this Host may pass."""
        name = _name(host)
        if name is None:
            return False
        if stays_here(name) or name in self.listed:
            return True
        return not stays_here(self.listens) and (not self.listed or _is_address(name))

    def asked_from(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask the server that it calls so: its own, or one of a listed name on the
        usual port, behind whatever proxy. Other ports of this machine are other people's servers."""
        found = _ORIGIN.fullmatch(origin)
        if found is None:
            return False
        named = found[1].lower()
        return named == host.lower() or (named in self.listed and not stays_here(named))


def _name(host: str) -> str | None:
    """A host without port and brackets, in small letters; None where it is none."""
    found = _HOST.fullmatch(host.lower())
    return None if found is None else found[1].strip("[]").rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
