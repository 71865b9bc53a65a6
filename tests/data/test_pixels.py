from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmmr.data.decode import decode
from vmmr.data.pixels import Pixels, ordered, read_pixels, thread_map
from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError, ImageError

SPEC = Preprocess(24, 24, crop=0.75)
BOXES = np.array([[-1, -1, -1, -1], [3, 4, 20, 30], [10, 10, 9999, 9999], [-5, 0, 6, 7]] * 3, np.int64)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.jpg" for i in range(12)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (50 + i, 70 - i, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("boxes", [None, BOXES])
def test_held_equals_on_demand_equals_one_by_one(files: list[Path], boxes: np.ndarray | None) -> None:
    order = np.random.default_rng(1).permutation(12)
    held = Pixels(files, SPEC, boxes=boxes)[order]
    assert held.dtype == torch.uint8
    assert held.shape == (12, 3, 32, 32)
    assert torch.equal(held, Pixels(files, SPEC, boxes=boxes, memory_gib=0, workers=3)[order])
    for row, index in zip(held, order, strict=True):
        image = decode(files[index])
        if boxes is not None and index % 4:
            left, top, right, bottom = (max(0, int(side)) for side in boxes[index])
            image = np.ascontiguousarray(image[top:bottom, left:right])
        np.testing.assert_array_equal(row.permute(1, 2, 0).numpy(), SPEC.resized(image))


def test_memory_limit_counts_bytes(files: list[Path]) -> None:
    size = 12 * 3 * 32 * 32
    assert Pixels(files, SPEC, memory_gib=size / 2**30)._held is not None
    assert Pixels(files, SPEC, memory_gib=(size - 1) / 2**30)._held is None


def test_indices(files: list[Path]) -> None:
    for memory in (0.0, 4.0):
        pixels = Pixels(files, SPEC, memory_gib=memory, workers=1, progress=True)
        assert len(pixels) == 12
        everything = pixels[np.arange(12)]
        assert torch.equal(pixels[np.array([-1, 3, 3])], everything[[11, 3, 3]])
        assert torch.equal(pixels[np.arange(12) > 7], everything[8:])
        assert pixels[np.array([], np.int64)].shape == (0, 3, 32, 32)
        with pytest.raises(IndexError):
            pixels[np.array([12])]
        everything.zero_()
        assert pixels[np.array([0])].any()  # what is handed out is a copy


@pytest.mark.parametrize("memory", [0.0, 4.0])
def test_bad_images(files: list[Path], memory: float) -> None:
    files[4].write_bytes(files[4].read_bytes()[:300])
    files[9].unlink()
    with pytest.raises(ImageError, match=r"4\.jpg"):
        Pixels(files, SPEC, memory_gib=memory)[np.arange(12)]
    pixels = Pixels(files, SPEC, memory_gib=memory, on_bad="skip")
    assert [index for index, _ in pixels.bad] == [4, 9]
    assert "truncated" in pixels.bad[0][1]
    assert "9.jpg" in pixels.bad[1][1]
    assert pixels[np.array([3, 5])].shape[0] == 2
    with pytest.raises(ImageError, match="image 9 was skipped"):
        pixels[np.array([3, 9])]


def test_box_outside_is_named(files: list[Path]) -> None:
    for box in ([500, 0, 600, 10], [5, 5, 5, 9], [9, 9, 5, 12]):
        with pytest.raises(ImageError, match=r"2\.jpg holds no pixel; got .* in 68 x 52 pixels"):
            read_pixels(files[2], SPEC, box=box)
    with pytest.raises(ImageError, match="the image holds no pixel"):
        read_pixels(files[2].read_bytes(), SPEC, box=[500, 0, 600, 10])


def test_large_photographs_are_decoded_small_with_hardly_a_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).resize((1200, 800), Image.Resampling.BICUBIC)
    coarse.save(tmp_path / "a.jpg", quality=95)
    full = SPEC.resized(decode(tmp_path / "a.jpg"))
    assert decode(tmp_path / "a.jpg", shrink_to=SPEC.shrink_to).shape == (100, 150, 3)
    assert np.abs(read_pixels(tmp_path / "a.jpg", SPEC).astype(int) - full).mean() < 1.0


def test_arguments_refused(files: list[Path]) -> None:
    with pytest.raises(ConfigError, match="boxes"):
        Pixels(files, SPEC, boxes=BOXES[:3])
    with pytest.raises(ConfigError, match="workers"):
        Pixels(files, SPEC, workers=0)
    with pytest.raises(ConfigError, match="on_bad"):
        Pixels(files, SPEC, on_bad="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_thread_map_keeps_order_and_the_first_exception(count: int) -> None:
    assert thread_map(lambda i: i + 1, count, workers=3) == list(range(1, count + 1))
    if count > 5:
        with pytest.raises(ZeroDivisionError, match="3"):
            thread_map(_fails_from_three, count, workers=3)


def _fails_from_three(index: int) -> int:
    if index >= 3:
        raise ZeroDivisionError(index)
    return index


def test_real_images(shared: Path) -> None:
    files = sorted((shared / "data" / "stanford-cars-160" / "test").glob("*/*.jpg"))[::100]
    pixels = Pixels(files, Preprocess(128, 128, crop=0.875))
    assert pixels[np.arange(len(files))].float().std() > 30


def test_ordered_takes_no_more_than_it_may_and_gives_in_order() -> None:
    taken, given = 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken += 1
            assert taken - given <= 7
            yield number

    def slow_if_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return -number

    for found in ordered(slow_if_even, items(), workers=3, ahead=7):
        assert found == -given
        given += 1
    assert given == taken == 200


def test_ordered_ends_with_the_first_exception_and_when_it_is_left() -> None:
    def fails_at_five(number: int) -> int:
        if number == 5:
            raise KeyError(number)
        return number

    running = ordered(fails_at_five, range(100), workers=2, ahead=4)
    assert list(itertools.islice(running, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="5"):
        next(running)
    started = []
    left = ordered(started.append, range(10_000), workers=2, ahead=4)
    next(left)
    left.close()
    assert len(started) <= 8
