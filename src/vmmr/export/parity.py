"""Is it still the same network? Golden pictures, what torch answered to them, and how far a runtime may be off.

The pictures are made by code and go through the real decoder. They travel with an artifact, with torch's outputs, so
that whoever loads it can see on the machine at hand that decoding, preprocessing and network give what they gave where
it was exported.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vmmr.data.decode import decode
from vmmr.data.preprocess import Preprocess
from vmmr.errors import BundleError, DataError
from vmmr.export.bundle import Bundle, Facts
from vmmr.export.runtime import Runtime, TorchRuntime

__all__ = [
    "MAX_DIFFERENCE",
    "MAX_RELATIVE",
    "Golden",
    "Parity",
    "golden_pictures",
    "golden_set",
    "measure",
    "require_parity",
    "require_pixels",
]

MAX_DIFFERENCE = 1e-3
"""Of any logit and any feature in fp32, in its own units; the first answer has to be the same for every picture."""

MAX_RELATIVE = {"bf16": 0.1, "int8": 0.4}
"""||found - torch|| of a picture's logits and features together, over ||torch||, the median over the golden pictures.
They are no cars, some are unkind to reduced precision, and a network whose normalisation is lost is off by about 1 on
all of them: this tells that it is still the same network. What a precision costs is told by real images."""

_MAX_PIXELS = 2.0  # levels of 255, the mean over a golden picture: decoders differ by less than 1
_MOST = 64  # golden pictures of a stranger's artifact


@dataclass(frozen=True)
class Golden:
    """Encoded pictures, their pixels uint8 [N, H, W, 3], and torch's logits [N, outputs] and features [N, D]."""

    pictures: tuple[bytes, ...]
    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """As golden.safetensors holds it."""
        encoded = {f"picture_{n}": np.frombuffer(data, np.uint8) for n, data in enumerate(self.pictures)}
        rows = {"pixels": self.pixels, "logits": self.logits, "features": self.features}
        return save({**encoded, **{name: np.ascontiguousarray(array) for name, array in rows.items()}})

    @classmethod
    def from_bytes(cls, data: bytes) -> Golden:
        """The inverse. BundleError where tensors are missing, or of other kinds or numbers."""
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise BundleError("golden.safetensors is malformed", got=error) from error
        count = len(tensors) - 3
        names = [f"picture_{n}" for n in range(count)]
        if not 1 <= count <= _MOST or set(tensors) != {*names, "pixels", "logits", "features"}:
            raise BundleError("golden.safetensors holds other tensors", got=sorted(tensors)[:8])
        pixels, logits, features = (tensors[name] for name in ("pixels", "logits", "features"))
        bytes_like = all(tensors[name].ndim == 1 and tensors[name].dtype == np.uint8 for name in names)
        floats = all(rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count for rows in (logits, features))
        if not bytes_like or not floats or pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != count:
            raise BundleError("golden.safetensors holds tensors of other shapes", got=list(pixels.shape))
        return cls(tuple(tensors[name].tobytes() for name in names), pixels, logits, features)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _png16(grey: NDArray[np.uint16]) -> bytes:
    """A grey PNG of 16 bit, which Pillow reads and writes only in part: written out."""
    height, width = grey.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def golden_pictures() -> tuple[bytes, ...]:
    """Encoded pictures that meet every branch of the decoder: wide, tall and tiny, turned by EXIF, grey, CMYK, 16 bit,
    palette with alpha, WebP, noise, black. The same bytes every time, with the same Pillow."""
    random = np.random.default_rng(7)
    y, x = np.mgrid[0:120, 0:200].astype(np.float64)
    waves = np.stack([np.sin(x / 9) + np.cos(y / 5), np.sin((x + y) / 17), np.cos(x * y / 900)], axis=-1)
    scene = Image.fromarray(np.uint8(127 + 60 * waves))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(random.integers(0, 256, (90, 90, 3), dtype=np.uint8))
    palette = scene.resize((64, 48)).quantize(16)
    return (
        _saved(scene, "JPEG", quality=90),
        _saved(scene.rotate(90, expand=True), "JPEG", quality=85, exif=exif),
        _saved(scene.resize((1600, 960)), "JPEG", quality=80),  # large enough to be decoded at a reduced size
        _saved(scene.convert("L"), "JPEG", quality=85),
        _saved(scene.convert("CMYK"), "JPEG", quality=85),
        _saved(noise, "PNG"),
        _saved(noise.resize((3, 2)), "PNG"),
        _png16((random.integers(0, 65536, (40, 60))).astype(np.uint16)),
        _saved(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        _saved(scene.transpose(Image.Transpose.ROTATE_90), "WEBP", quality=80),
        _saved(Image.new("RGB", (50, 50)), "PNG"),
    )


def golden_set(bundle: Bundle) -> Golden:
    """The golden pictures as this bundle prepares and, in torch, answers them."""
    pictures = golden_pictures()
    pixels = np.stack([_pixels(data, bundle.preprocess) for data in pictures])
    return Golden(pictures, pixels, **TorchRuntime(bundle)(pixels))


def _pixels(data: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    return preprocess.pixels(decode(data, shrink_to=preprocess.shrink_to))


@dataclass(frozen=True)
class Parity:
    """How far outputs are from torch's. difference: the largest of a logit or a feature; relative: the median over rows
    of ||found - torch|| / ||torch||, logits and features side by side; agreement: share of rows with the same
    first answer."""

    difference: float
    relative: float
    agreement: float


def measure(facts: Facts, golden: Golden, runtime: Runtime) -> Parity:
    """What the runtime gives for the golden pixels against what torch gave. NaN counts as infinitely far."""
    found = runtime(golden.pixels)
    if found["logits"].shape != golden.logits.shape or found["features"].shape != golden.features.shape:
        return Parity(np.inf, np.inf, 0.0)
    apart = [
        np.abs(found[key] - wanted).max() for key, wanted in (("logits", golden.logits), ("features", golden.features))
    ]
    wanted = np.hstack([golden.logits, golden.features])
    off = np.linalg.norm(np.hstack([found["logits"], found["features"]]) - wanted, axis=1)
    norm = np.median(off / np.linalg.norm(wanted, axis=1).clip(min=1e-12))
    first = [facts.class_scores(torch.from_numpy(logits)).argmax(dim=1) for logits in (found["logits"], golden.logits)]
    numbers = np.nan_to_num([max(apart), norm], nan=np.inf)
    return Parity(float(numbers[0]), float(numbers[1]), (first[0] == first[1]).float().mean().item())


def require_parity(facts: Facts, golden: Golden, runtime: Runtime) -> Parity:
    """BundleError unless the runtime is within the bounds of its precision."""
    found = measure(facts, golden, runtime)
    if runtime.precision == "fp32":
        good = found.difference <= MAX_DIFFERENCE and found.agreement == 1
        bound = f"at most {MAX_DIFFERENCE:g}, and the same first answers"
    else:
        limit = MAX_RELATIVE[runtime.precision]
        good, bound = found.relative <= limit, f"at most {limit:g} of the norm"
    if not good:
        raise BundleError(
            f"{runtime.name} in {runtime.precision} does not give what torch gave for the golden pictures",
            got=f"outputs off by {found.difference:.3g} ({found.relative:.3g} of their norm, in the median), "
            f"{found.agreement:.0%} of the first answers the same",
            do=f"{bound}; export it anew with the versions that are installed",
        )
    return found


def require_pixels(golden: Golden, preprocess: Preprocess) -> None:
    """BundleError unless the golden pictures are decoded, resized and cropped to the golden pixels, or nearly."""
    for number, (data, wanted) in enumerate(zip(golden.pictures, golden.pixels, strict=True)):
        try:
            found = _pixels(data, preprocess)
        except DataError as error:
            raise BundleError(f"golden picture {number} cannot be read", got=error) from error
        if found.shape != wanted.shape or not np.abs(found.astype(int) - wanted).mean() <= _MAX_PIXELS:
            raise BundleError(
                f"golden picture {number} is prepared differently here than where the network was exported",
                do="check preprocess.json against the bundle's",
            )
