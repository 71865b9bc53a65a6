"""Bytes to pixels: the one hardened image decoder, in training and in serving.

JPEG, PNG and WebP, told apart by content. Sizes are checked in the header, before pixels are decoded. What comes
out is always uint8 [H, W, 3] RGB, upright, or an ImageError; never a partial image, never another exception
(ConfigError aside, for a call that makes no sense).

    1, L, P, RGB     to RGB
    LA, RGBA, tRNS   laid over mid-grey (128), which every usual normalisation maps close to zero
    CMYK             to RGB by Pillow's plain formula, after Adobe's inversion; colour profiles are not applied
    16 bit grey      value / 257, rounded, so that 65535 becomes 255 (16 bit colour: the high byte, as Pillow reads it)
    EXIF orientation applied; an EXIF block that cannot be read counts as none
    animations       first frame

The plugin classes of Pillow are called directly. `Image.open` would do the same work after a look through its
global registry, with decompression-bomb warnings that depend on global state and with readers for multi-picture
files that are not wanted here.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vmmr.errors import ConfigError, ImageError

__all__ = ["DecodeLimits", "decode"]

_BACKGROUND = 128
_MAX_SCANS = 32  # an ordinary progressive JPEG has about 10; each further scan costs a pass over all coefficients
_STRIP_PIXELS = 1 << 22  # mode conversion goes by strips, so that large images are not held three times over

_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # the next marker behind entropy-coded data


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image may be at most; larger ones are refused before their pixels are decoded.

    max_bytes: size of the file. max_pixels: width * height. max_side: longer side in pixels.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 40_000_000
    max_side: int = 12_000


_DEFAULT_LIMITS = DecodeLimits()


def decode(
    source: bytes | str | os.PathLike[str],
    *,
    limits: DecodeLimits = _DEFAULT_LIMITS,
    name: str | None = None,
    shrink_to: int | None = None,
) -> NDArray[np.uint8]:
    """Decode one image to RGB, uint8 [H, W, 3], C-contiguous and writable.

    source: the bytes of the image, or the path of a regular file. name: what errors call it (default: the path).
    shrink_to: JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size as long as the shorter side stays at or above
    this many pixels (faster for large photographs; other formats are not shrunk).

    Raises ImageError for anything that is not a complete, acceptable image, and ConfigError for a shrink_to below 1
    or while `ImageFile.LOAD_TRUNCATED_IMAGES` is set, which would let partial images through. Beyond detection are
    damages that leave a valid file: a flipped bit in the coded data of a JPEG or WebP, which carry no checksum, and
    data that ends early under an end mark of its own.

    >>> from io import BytesIO
    >>> file = BytesIO()
    >>> Image.new("L", (3, 2), 7).save(file, "PNG")
    >>> decode(file.getvalue()).tolist() == [[[7, 7, 7]] * 3] * 2
    True
    """
    if shrink_to is not None and shrink_to < 1:
        raise ConfigError("shrink_to is a side in pixels", got=shrink_to, do="pass 1 or more, or None")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "Pillow is told to pass truncated images",
            got="ImageFile.LOAD_TRUNCATED_IMAGES = True",
            do="leave it False: a partial image would be taken for a whole one",
        )
    if isinstance(source, bytes):
        data, name = source, name or "the image"
    else:
        name = name or os.fsdecode(source)
        data = _read(source, name, limits)
    if len(data) > limits.max_bytes:
        raise _too_large(name, f"{len(data):,} bytes", f"{limits.max_bytes:,} bytes")
    plugin = _plugin(data)
    if plugin is None:
        raise ImageError(f"{name} is no JPEG, PNG or WebP", got=_describe(data), do="convert it to one of these")
    try:
        if plugin is WebPImageFile:  # its reader allocates the canvas as soon as it is made
            _check_size(_webp_size(data), name, limits)
        if plugin is _Jpeg and _has_too_many_scans(data):
            raise ImageError(f"{name} has too many scans", got=f"over {_MAX_SCANS}", do="save it again as a plain JPEG")
        image = plugin(BytesIO(data))
        _check_size(image.size, name, limits)
        quick = _quick_pixels(image, data, shrink_to) if plugin is _Jpeg else None
        if quick is None:
            if shrink_to is not None:
                image.draft(None, (shrink_to, shrink_to))
            image.load()
        pixels = _pixels(image) if quick is None else quick
        turn = _TURNS.get(_orientation(image.info.get("exif", b"")))
        image.close()
        return pixels if turn is None else np.ascontiguousarray(turn(pixels))
    except ImageError:
        raise
    except Exception as error:  # the readers raise a dozen kinds on hostile bytes: all mean the same to a caller
        reason = f"{type(error).__name__}: {error}"
        raise ImageError(f"{name} is corrupt or truncated", got=reason, do="replace or remove it") from error


def _read(path: str | os.PathLike[str], name: str, limits: DecodeLimits) -> bytes:
    # Non-blocking: opening a named pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(f"{name} is no regular file", do="pass the path of an image file")
            if info.st_size > limits.max_bytes:
                raise _too_large(name, f"{info.st_size:,} bytes", f"{limits.max_bytes:,} bytes")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(info.st_size + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read", got=reason, do="check path and permissions") from error


def _too_large(name: str, got: str, most: str) -> ImageError:
    return ImageError(f"{name} is too large", got=got, do=f"pass at most {most}")


def _check_size(size: tuple[int, int], name: str, limits: DecodeLimits) -> None:
    width, height = size
    got = f"{width} x {height} pixels"
    if max(size) > limits.max_side:
        raise _too_large(name, got, f"{limits.max_side:,} pixels a side")
    if width * height > limits.max_pixels:
        raise _too_large(name, got, f"{limits.max_pixels:,} pixels")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nothing: the resolution is not needed, and reading it warns about odd EXIF blocks."""


def _plugin(data: bytes) -> type[ImageFile.ImageFile] | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    return None


def _describe(data: bytes) -> str:
    return f"{len(data):,} bytes that start with {data[:8].hex(' ')}" if data else "an empty file"


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas of a WebP from its first chunk; (0, 0) where there is none, for the reader to refuse."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _has_too_many_scans(data: bytes) -> bool:
    values = np.frombuffer(data, np.uint8)  # several times as fast as `bytes.count`, and lets other threads decode
    pairs = np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))
    if pairs <= _MAX_SCANS:  # an upper bound: the pair also occurs in thumbnails and trailers
        return False
    scans, at = 0, 2
    while at + 4 <= len(data) and scans <= _MAX_SCANS:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xD9:
            break
        if marker == 0xFF:  # padding
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            scans += 1
            following = _AFTER_SCAN.search(data, at)
            at = len(data) if following is None else following.start()
    return scans > _MAX_SCANS


def _quick_pixels(image: Image.Image, data: bytes, shrink_to: int | None) -> NDArray[np.uint8] | None:
    """The pixels of an ordinary JPEG, equal to Pillow's to the last bit, from libjpeg-turbo without a detour.

    None where Pillow has to judge: other colours than RGB and grey, and data that the library so much as warns about.
    """
    if image.mode not in ("RGB", "L"):
        return None
    width, height = image.size
    room = 1 if shrink_to is None else min(width // shrink_to, height // shrink_to)
    factor = next((factor for factor in (8, 4, 2) if room >= factor), 1)  # as `draft` chooses
    size = -(-height // factor), -(-width // factor)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=size[0], min_width=size[1], min_factor=factor
        )
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == size else None


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        pixels[:] = _rgb(image)
    else:
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            pixels[top:bottom] = _rgb(image.crop((0, top, width, bottom)))
    return pixels


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode[0] in "IF":  # 16 bit grey; Pillow's own conversion clips at 255
        grey = np.rint(np.asarray(image, np.float64).clip(0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        front = image.convert("RGBA")
        image = Image.new("RGB", image.size, (_BACKGROUND,) * 3)
        image.paste(front, mask=front.getchannel("A"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


# EXIF orientation (TIFF tag 0x0112), 1 being upright. Read here and not by Pillow, whose reader visits every tag of
# the block and warns about each that it does not like.
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def _orientation(exif: bytes) -> int:
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return int(value) if (kind, count) == (3, 1) else 1
    except struct.error:  # the block ends early
        pass
    return 1
