from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (30, 47, 3), np.uint8)


def test_squash_is_pillows_resize_and_the_formula() -> None:
    spec = Preprocess(16, 20, crop=0.8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert spec.resized_size == (20, 25)
    resized = np.asarray(Image.fromarray(IMAGE).resize((25, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(spec.resized(IMAGE), resized)
    expected = (resized[2:18, 2:22] / 255 - spec.mean) / spec.std
    got = spec(IMAGE)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_shrinking_is_antialiased() -> None:
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checker[:, :, None], 3, axis=2).astype(np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        inner = Preprocess(16, 16, interpolation=interpolation).resized(image)[2:-2, 2:-2].astype(int)
        assert np.abs(inner - 127).max() <= 2


@pytest.mark.parametrize("resize", ["squash", "shortest", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_kept_pixels_give_the_same_bits(resize: Any, interpolation: Any) -> None:
    spec = Preprocess(33, 21, resize, 0.83, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = [IMAGE, IMAGE[:7], IMAGE[:, :5], np.repeat(IMAGE, 9, axis=0)]
    kept = torch.stack([torch.from_numpy(spec.resized(image)).permute(2, 0, 1) for image in images])
    later = spec.normalise(spec.centre_crop(kept))
    batch = spec.batch(images)
    assert batch.shape == (4, 3, 33, 21)
    assert torch.equal(later, batch)
    for image, row in zip(images, batch, strict=True):
        assert torch.equal(spec(image), row)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["squash", "shortest", "letterbox"]),
    st.floats(0.3, 1),
)
def test_every_shape_reaches_the_size(h: int, w: int, height: int, width: int, resize: Any, crop: float) -> None:
    spec = Preprocess(height, width, resize, crop)
    flat = np.full((h, w, 3), 200, np.uint8)
    resized = spec.resized(flat)
    assert resized.shape == (*spec.resized_size, 3)
    if resize != "letterbox":
        assert (resized == 200).all()
    else:  # the flat image, and the mean colour around it
        assert set(np.unique(resized)) <= {128, 200}
        rows, columns = (resized[..., 0] == 200).any(1).sum(), (resized[..., 0] == 200).any(0).sum()
        assert rows == spec.resized_size[0] or columns == spec.resized_size[1]
    assert spec(flat).shape == (3, height, width)


def test_shortest_keeps_the_shape_and_the_middle() -> None:
    ramp = np.repeat(np.tile(np.arange(100, dtype=np.uint8), (50, 1))[:, :, None], 3, axis=2)
    resized = Preprocess(50, 50, "shortest").resized(ramp)
    np.testing.assert_array_equal(resized[:, :, 0], ramp[:, 25:75, 0])
    tall = Preprocess(50, 50, "shortest").resized(ramp.swapaxes(0, 1).copy())
    np.testing.assert_array_equal(tall[:, :, 0], ramp[:, 25:75, 0].T)


def test_letterbox_centres_over_the_mean_colour() -> None:
    resized = Preprocess(60, 60, "letterbox", mean=(0.2, 0.4, 0.6)).resized(np.full((20, 40, 3), 255, np.uint8))
    assert (resized[15:45] == 255).all()
    assert (resized[:15] == [51, 102, 153]).all()
    assert (resized[45:] == [51, 102, 153]).all()


def test_normalise_and_back() -> None:
    spec = Preprocess(4, 4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = pixels.clone()
    image = pixels.double() / 255
    torch.testing.assert_close(spec.normalise(pixels), spec.normalise(image).float())
    torch.testing.assert_close(spec.denormalise(spec.normalise(image)), image)
    assert spec.normalise(image.half()).dtype == torch.half
    assert torch.equal(pixels, before)
    with pytest.raises(DataError, match="int64"):
        spec.normalise(pixels.long())


def test_shapes_refused() -> None:
    spec = Preprocess(8, 8)
    for image in (IMAGE[..., 0], IMAGE.astype(np.float32), IMAGE[:0], IMAGE[..., :2]):
        with pytest.raises(DataError, match="uint8"):
            spec(image)
    with pytest.raises(DataError, match="7 x 9"):
        spec.centre_crop(torch.zeros(3, 7, 9))
    assert spec.batch([]).shape == (0, 3, 8, 8)


def test_json_round_trip() -> None:
    spec = Preprocess(224, 192, "letterbox", 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    again = Preprocess.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    for text in ("{", "[]", "null", '{"height": 3}', "[" * 100_000, b"\xff\xfe\xfa"):
        with pytest.raises(ConfigError):
            Preprocess.from_json(text)
    settings_ = json.loads(spec.to_json())
    with pytest.raises(ConfigError, match="unknown"):
        Preprocess.from_json(json.dumps(settings_ | {"colour": 1}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"height": 8193},
        {"width": 3.0},
        {"width": True},
        {"resize": "crop"},
        {"resize": ["squash"]},
        {"interpolation": "nearest"},
        {"crop": 0},
        {"crop": 1.01},
        {"crop": 1e-4},
        {"crop": 1e-320},
        {"crop": float("nan")},
        {"crop": "1"},
        {"mean": (0.5, 0.5)},
        {"mean": 0.5},
        {"mean": (0.5, 0.5, float("inf"))},
        {"mean": (0.5, 0.5, 10**400)},
        {"std": (0.5, 0.5, 0)},
        {"std": (0.5, 0.5, "1")},
    ],
)
def test_settings_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Preprocess(**{"height": 8, "width": 8, **wrong})
    text = json.loads(Preprocess(8, 8).to_json()) | wrong
    with pytest.raises(ConfigError):
        Preprocess.from_json(json.dumps(text))


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from(["squash", "shortest", "letterbox"]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from([1.0, 0.8]),
)
def test_pixels_of_a_runtime_are_the_resized_ones_within_a_level(
    size: tuple[int, int], target: tuple[int, int], resize: Any, interpolation: Any, crop: float
) -> None:
    spec = Preprocess(height=target[0], width=target[1], resize=resize, interpolation=interpolation, crop=crop)
    image = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.flags.writeable = False
    found, wanted = spec.pixels(image), spec.cropped(spec.resized(image))
    assert (found.dtype, found.shape) == (np.uint8, (*target, 3))
    assert np.abs(found.astype(int) - wanted).max() <= 1
    tensor = spec.centre_crop(torch.from_numpy(spec.resized(image)).permute(2, 0, 1))
    assert np.array_equal(wanted, tensor.permute(1, 2, 0).numpy())


def test_pixels_in_place_are_those_of_planes() -> None:
    """How the channels lie in memory decides how fast a picture is resized, not what comes out."""
    random = np.random.default_rng(0)
    for shape in ((301, 200), (40, 64), (64, 900)):
        image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        planes = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        expected = functional.interpolate(planes, (64, 64), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        found = Preprocess(64, 64).pixels(image)
        assert found.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(found, expected.numpy())
