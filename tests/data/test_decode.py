from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from vmmr.data.decode import DecodeLimits, _rgb, decode
from vmmr.errors import ConfigError, ImageError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 24, 3), np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png(header: bytes, rows: bytes, *before: tuple[bytes, bytes]) -> bytes:
    parts = ((b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SMALL = {
    "jpeg": encode(NOISE, "JPEG"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "exif": encode(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "png": encode(NOISE, "PNG"),
    "palette": encode(Image.fromarray(NOISE).quantize(16), "PNG", transparency=bytes(range(16))),
    "animated": encode(NOISE, "PNG", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
    "webp": encode(NOISE, "WEBP"),
    "lossless": encode(NOISE, "WEBP", lossless=True),
    "moving": encode(NOISE, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
}


@pytest.mark.parametrize("kind", ["png", "animated", "lossless", "moving"])
def test_lossless_formats_give_their_first_frame_back(kind: str) -> None:
    pixels = decode(SMALL[kind])
    np.testing.assert_array_equal(pixels, NOISE)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("kind", ["jpeg", "progressive"])
def test_jpeg_has_the_pixels_of_pillow(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"  # the suffix is no evidence
    path.write_bytes(SMALL[kind])
    expected = np.asarray(Image.open(BytesIO(SMALL[kind])))
    np.testing.assert_array_equal(decode(path), expected)
    np.testing.assert_array_equal(decode(str(path)), expected)


def test_modes() -> None:
    grey = NOISE[:, :, 0]
    spread = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(encode(grey, "PNG")), spread)
    bits = Image.fromarray(grey > 127)
    np.testing.assert_array_equal(decode(encode(bits, "PNG")), (spread > 127) * np.uint8(255))
    palette = Image.fromarray(NOISE).quantize(256)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(decode(encode(grey, "JPEG")).std(axis=2), 0)


def test_alpha_lies_over_mid_grey() -> None:
    rgba = np.dstack([NOISE, RNG.integers(0, 256, NOISE.shape[:2], np.uint8)])
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    alpha = rgba[:, :, 3:] / 255
    expected = NOISE * alpha + 128 * (1 - alpha)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = decode(encode(rgba, kind, **options))
        assert np.abs(pixels - expected).max() <= 0.51
        assert pixels[0, 0].tolist() == [128] * 3
        np.testing.assert_array_equal(pixels[0, 1], NOISE[0, 1])
    grey = Image.merge("LA", [_band(rgba, 0), _band(rgba, 3)])
    assert np.abs(decode(encode(grey, "PNG")) - (NOISE[:, :, :1] * alpha + 128 * (1 - alpha))).max() <= 0.51


def _band(rgba: np.ndarray, channel: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(rgba[:, :, channel]))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_transparent_colour_becomes_mid_grey(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), (1, 1, 1) if mode == "RGB" else 1)
    clear: Any = (0, 0, 0) if mode == "RGB" else 0
    pixels = decode(encode(image, "PNG", transparency=clear))
    assert pixels[0, 0].tolist() == [128] * 3
    assert (pixels[0, 1] != 128).all()


def test_palette_alpha() -> None:
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([200, 100, 0] * 3)
    pixels = decode(encode(image, "PNG", transparency=bytes([0, 128, 255])))
    assert pixels[0].tolist() == [[128, 128, 128], [164, 114, 64], [200, 100, 0]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    pixels = decode(encode(values, "PNG"))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values / 257))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]
    colour = png(struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">HHH", 0, 0x8081, 65535))
    assert decode(colour).tolist() == [[[0, 0x80, 255]]]


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_wide_modes(mode: str) -> None:
    image = Image.new(mode, (1, 1), 40_000)
    assert _rgb(image).tolist() == [[[156] * 3]]


def test_cmyk_jpeg_is_not_inverted() -> None:
    for rgb in ((255, 0, 0), (10, 200, 30), (255, 255, 255), (0, 0, 0)):
        image = Image.new("RGB", (16, 16), rgb).convert("CMYK")
        assert np.abs(decode(encode(image, "JPEG", quality=95)).astype(int) - rgb).max() <= 6


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_as_pillow_applies_it(kind: str, order: str, orientation: int) -> None:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010F, 2, 4, b"abc\0"), (0x0112, 3, 1, struct.pack(f"{order}HH", orientation, 0))]
    directory = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0" + head + struct.pack(f"{order}IH", 8, 2) + directory + bytes(4)
    data = encode(NOISE, kind, exif=exif)
    with Image.open(BytesIO(data)) as image:
        assert image.getexif()[0x0112] == orientation
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01", b"what"])
def test_broken_exif_is_none(exif: bytes) -> None:
    assert decode(encode(NOISE, "JPEG", exif=b"Exif\0\0" + exif)).shape == NOISE.shape


def test_shrink_keeps_the_shorter_side() -> None:
    data = encode(np.zeros((301, 400, 3), np.uint8), "JPEG")
    shapes = [decode(data, shrink_to=side).shape[:2] for side in (1000, 301, 151, 150, 76, 75, 38, 37, 1)]
    assert shapes == [(301, 400)] * 3 + [(151, 200)] * 2 + [(76, 100)] * 2 + [(38, 50)] * 2
    assert decode(SMALL["png"], shrink_to=2).shape == NOISE.shape
    with pytest.raises(ConfigError, match="shrink_to"):
        decode(data, shrink_to=0)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.dstack([NOISE, RNG.integers(0, 256, NOISE.shape[:2], np.uint8)])
    files = [encode(rgba, "PNG"), SMALL["palette"], SMALL["jpeg"], encode(NOISE[:, :, 0].astype(np.uint16), "PNG")]
    whole = [decode(file) for file in files]
    monkeypatch.setattr("vmmr.data.decode._STRIP_PIXELS", 70)
    for file, expected in zip(files, whole, strict=True):
        np.testing.assert_array_equal(decode(file), expected)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_cut_at_every_byte(kind: str) -> None:
    data = SMALL[kind]
    whole = decode(data)
    for end in range(len(data)):
        try:
            pixels = decode(data[:end], name="cut.bin")
        except ImageError as error:
            assert "cut.bin" in str(error)  # noqa: PT017
        else:  # only marks behind the last pixel were cut off, or a second frame
            assert end > len(data) - 24 or kind in ("animated", "moving")
            np.testing.assert_array_equal(pixels, whole)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_image_errors_only(data: st.DataObject) -> None:
    file = bytearray(SMALL[data.draw(st.sampled_from(sorted(SMALL)))])
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_image_error(bytes(file))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\1\0\0WEBPVP8X", b"RIFF\0\0\0\0WEBPVP8L"]),
    st.binary(max_size=200),
)
def test_random_bytes_raise_image_errors_only(head: bytes, tail: bytes) -> None:
    _decode_or_image_error(head + tail)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(b"eXIf tRNS iCCP zTXt acTL fcTL PLTE gAMA".split()))
def test_random_chunks_raise_image_errors_only(content: bytes, kind: bytes) -> None:
    for colour, size in ((0, 1), (2, 3), (3, 1), (6, 4)):
        _decode_or_image_error(png(struct.pack(">IIBBBBB", 1, 1, 8, colour, 0, 0, 0), bytes(1 + size), (kind, content)))


def _decode_or_image_error(data: bytes) -> None:
    limits = DecodeLimits(max_pixels=1_000_000)
    try:
        pixels = decode(data, limits=limits)
    except ImageError as error:
        assert "the image" in str(error)  # noqa: PT017
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.size <= 3_000_000


def test_bombs_are_refused_by_their_header() -> None:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    with pytest.raises(ImageError, match="20000 x 20000"):
        decode(png(header, bytes(100)))
    with pytest.raises(ImageError, match=r"10000 x 4001.*40,000,000"):
        decode(png(struct.pack(">IIBBBBB", 10_000, 4_001, 8, 0, 0, 0, 0), bytes(100)))
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_000_000).to_bytes(3, "little") * 2
    with pytest.raises(ImageError, match="16000001 x 16000001"):
        decode(b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas)
    for options in ({}, {"lossless": True}):
        with pytest.raises(ImageError, match="24 x 20"):
            decode(encode(NOISE, "WEBP", **options), limits=DecodeLimits(max_side=23))
    jpeg = bytearray(SMALL["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="65535 x 65535"):
        decode(bytes(jpeg))


def test_text_bomb() -> None:
    text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))
    with pytest.raises(ImageError):
        decode(png(struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), b"\0\0", text))


def test_scan_bomb() -> None:
    data = SMALL["progressive"]
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    bomb = data[:-2] + scan * 5000 + data[-2:]
    with pytest.raises(ImageError, match="scans"):
        decode(bomb)
    # What only looks like scans, in a comment or behind the end, is none.
    comment = b"\xff\xfe" + struct.pack(">H", 1002) + b"\xff\xda" * 500
    for harmless in (data[:2] + comment + data[2:], data + b"\xff\xda" * 500):
        np.testing.assert_array_equal(decode(harmless), decode(data))


def test_limits_on_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(SMALL["png"])
    size = len(SMALL["png"])
    assert decode(path, limits=DecodeLimits(max_bytes=size)).shape == NOISE.shape
    for source in (path, SMALL["png"]):
        with pytest.raises(ImageError, match=rf"too large; got {size:,} bytes"):
            decode(source, limits=DecodeLimits(max_bytes=size - 1))


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a" + bytes(30), b"<svg/>", encode(NOISE, "TIFF"), encode(NOISE, "BMP")]
)
def test_other_formats_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"frame\.jpg is no JPEG, PNG or WebP"):
        decode(content, name="frame.jpg")


def test_what_is_no_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, tmp_path / "absent.jpg", fifo, Path(os.devnull), tmp_path / ("x" * 5000)):
        with pytest.raises(ImageError) as caught:
            decode(path)
        assert path.name[:50] in str(caught.value)
    with pytest.raises(ImageError, match="cannot be read"):
        decode("a\0b.jpg")


def test_extreme_shapes() -> None:
    assert decode(encode(np.full((1, 1, 3), 9, np.uint8), "PNG")).tolist() == [[[9, 9, 9]]]
    assert decode(encode(np.zeros((1, 5000, 3), np.uint8), "JPEG")).shape == (1, 5000, 3)


def test_truncated_images_stay_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="truncated"):
        decode(SMALL["jpeg"])


def test_real_images(shared: Path) -> None:
    files = sorted((shared / "data" / "stanford-cars-160" / "train").glob("*/*.jpg"))[::200]
    for file in files:
        pixels = decode(file)
        assert max(pixels.shape) == 160
        assert pixels.std() > 5


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("subsampling", "quality"), [(0, 95), (1, 80), (2, 40)])
def test_an_ordinary_jpeg_has_the_pixels_that_pillow_gives(
    mode: str, progressive: bool, subsampling: int, quality: int
) -> None:
    random = np.random.default_rng(quality)
    rough = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize((331, 217))
    file = BytesIO()
    rough.convert(mode).save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    for shrink_to in (None, 108, 100, 54, 27, 20):
        image = Image.open(BytesIO(file.getvalue()))
        if shrink_to is not None:
            image.draft(None, (shrink_to, shrink_to))
        assert np.array_equal(decode(file.getvalue(), shrink_to=shrink_to), np.asarray(image.convert("RGB")))
