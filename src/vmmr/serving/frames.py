"""What the server and its worker say to each other: a JSON header, then raw bytes. Nothing that could run.

    4 bytes: length of the header | 4 bytes: length of the rest | header, JSON | the blobs, one after the other

The header's "sizes" tells where each blob ends. Both lengths are big endian.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

__all__ = ["Frame", "pack", "read_frame", "receive_frame"]

Frame = tuple[dict[str, Any], list[bytes]]
"""A header and its blobs."""

_LENGTHS = struct.Struct(">II")


def pack(header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """One frame.

    >>> from io import BytesIO
    >>> read_frame(BytesIO(pack({"job": 1}, [b"ab", b"", b"c"])))
    ({'job': 1, 'sizes': [2, 0, 1]}, [b'ab', b'', b'c'])
    """
    sizes = [len(blob) for blob in blobs]
    text = json.dumps({**header, "sizes": sizes}, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), sum(sizes)), text, *blobs))


def read_frame(file: BinaryIO) -> Frame:
    """The next frame of a blocking stream. Raises EOFError where it ends."""
    header, rest = _LENGTHS.unpack(_exactly(file, _LENGTHS.size))
    return _unpack(_exactly(file, header), _exactly(file, rest))


async def receive_frame(stream: asyncio.StreamReader) -> Frame:
    """The next frame of an asyncio stream. Raises EOFError (asyncio.IncompleteReadError) where it ends."""
    header, rest = _LENGTHS.unpack(await stream.readexactly(_LENGTHS.size))
    return _unpack(await stream.readexactly(header), await stream.readexactly(rest))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError("the other side has left")
    return data


def _unpack(text: bytes, rest: bytes) -> Frame:
    header: dict[str, Any] = json.loads(text)
    blobs, start = [], 0
    for size in header["sizes"]:
        blobs.append(rest[start : start + size])
        start += size
    return header, blobs
