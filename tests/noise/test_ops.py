from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import ConfigError, DataError
from vmmr.noise import HELD_OUT_OPS, OPS, TRAIN_OPS


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _picture(side: int = 96, batch: int = 1) -> torch.Tensor:
    """Smooth shading with hard edges, [batch, 3, side, side]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    shade = torch.stack([0.2 + 0.6 * columns, 0.5 + 0.4 * torch.sin(9 * rows), 0.3 + 0.5 * rows * columns])
    body = ((columns - 0.5).abs() < 0.3) & ((rows - 0.55).abs() < 0.2)
    wheels = torch.hypot((columns - 0.5).abs() - 0.2, rows - 0.75) < 0.08
    shade = torch.where(body, torch.tensor([0.8, 0.1, 0.15])[:, None, None], shade)
    return torch.where(wheels, torch.tensor(0.05), shade).expand(batch, 3, side, side).contiguous()


def _flat(value: float, side: int = 128, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 3, side, side), value)


def _psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


CERTAIN = {
    "brightness",
    "contrast",
    "defocus",
    "downscale",
    "gaussian_blur",
    "jpeg",
    "pixelate",
    "saturate",
    "zoom_blur",
}
"""What draws nothing."""


def test_families() -> None:
    assert list(OPS) == sorted(OPS)
    assert sorted(TRAIN_OPS + HELD_OUT_OPS) == list(OPS)
    assert not set(TRAIN_OPS) & set(HELD_OUT_OPS)


@pytest.mark.parametrize("name", OPS)
def test_severity_zero_is_the_identity_bit_for_bit(name: str) -> None:
    x = _picture(batch=2)
    assert torch.equal(OPS[name](x, 0), x)
    mixed = OPS[name](x, torch.tensor([0.0, 3.0]))
    assert torch.equal(mixed[0], x[0])
    assert not torch.equal(mixed[1], x[1])


@pytest.mark.parametrize("name", OPS)
def test_psnr_falls_with_severity_between_and_at_levels(name: str) -> None:
    x = _picture(batch=6)
    # As published, what gets worse from one of these levels to the next is not the PSNR, or not by much.
    levels = {"fog": (0.05, 0.5, 1, 2, 3), "frost": (0.05, 0.5, 1, 2, 3), "glass_blur": (0.05, 0.5, 1, 4)}
    levels |= {"pixelate": (0.05, 0.5, 1, 3, 4, 5), "saturate": (0.05, 0.5, 1, 2), "snow": (0.05, 0.5, 1, 2, 4, 5)}
    chosen = levels.get(name, (0.05, 0.5, 1, 1.5, 2, 3, 4, 5))
    psnr = [_psnr(OPS[name](x, float(s), generator=_generator()), x).mean().item() for s in chosen]
    assert all(weak > strong for weak, strong in pairwise(psnr)), psnr
    # The weakest is near the identity: no jump where an op sets in.
    assert psnr[0] > psnr[-1] + 8


@pytest.mark.parametrize("name", OPS)
def test_same_generator_same_noise_and_the_input_stays(name: str) -> None:
    x = _picture(batch=2)
    before = x.clone()
    first = OPS[name](x, 2.5, generator=_generator(7))
    assert torch.equal(first, OPS[name](x, 2.5, generator=_generator(7)))
    assert torch.equal(x, before)
    if name in CERTAIN:
        assert torch.equal(first, OPS[name](x, 2.5))
    else:
        assert not torch.equal(first, OPS[name](x, 2.5, generator=_generator(8)))


@pytest.mark.parametrize("name", OPS)
def test_images_do_not_touch_each_other(name: str) -> None:
    x = _picture(batch=3)
    # Poisson draws take as many numbers as the intensity asks for: only what comes after a change may differ.
    other = x.clone()
    other[2] = 1 - other[2]
    severity = torch.tensor([1.0, 5.0, 3.0])
    a, b = (OPS[name](images, severity, generator=_generator()) for images in (x, other))
    assert torch.equal(a[:2], b[:2])


@pytest.mark.parametrize("name", OPS)
def test_one_severity_for_all_is_the_same_as_one_for_each(name: str) -> None:
    x = _picture(batch=2)
    each = OPS[name](x, torch.tensor([3.0, 3.0]), generator=_generator())
    assert torch.equal(each, OPS[name](x, 3, generator=_generator()))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(OPS)),
    batch=st.integers(0, 3),
    height=st.integers(12, 40),
    width=st.integers(12, 40),
    severity=st.floats(0, 5, width=32),
    seed=st.integers(0, 2**31),
)
def test_shape_range_and_dtype_hold(name: str, batch: int, height: int, width: int, severity: float, seed: int) -> None:
    x = torch.rand(batch, 3, height, width, generator=_generator(seed))
    out = OPS[name](x, severity, generator=_generator(seed))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.isfinite(out).all()
    assert ((out >= 0) & (out <= 1)).all()


@pytest.mark.parametrize("bad", [-0.1, 5.1, math.nan, torch.tensor([1.0, 6.0]), torch.tensor([1.0, 1.0, 1.0])])
def test_a_bad_severity_is_named(bad: float | torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="severity"):
        OPS["gaussian"](_picture(batch=2), bad)


def test_generators_must_be_one_or_one_for_each() -> None:
    with pytest.raises(ConfigError, match="generators fit no batch; got 3"):
        OPS["gaussian"](_picture(batch=2), 1, generator=[_generator()] * 3)


@pytest.mark.parametrize("name", OPS)
def test_a_generator_for_each_image_makes_it_independent_of_its_batch(name: str) -> None:
    x = torch.stack([_picture(48)[0], 1 - _picture(48)[0], _picture(48)[0] ** 2])
    severity = torch.tensor([3.0, 4.0, 0.7])
    together = OPS[name](x, severity, generator=[_generator(i) for i in range(3)])
    for i in range(3):
        alone = OPS[name](x[i : i + 1], severity[i].item(), generator=[_generator(i)])
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)


def test_bad_images_are_named() -> None:
    with pytest.raises(DataError, match=r"outside of \[0, 1\]; got -1 \.\. 1"):
        OPS["jpeg"](torch.tensor([-1.0, 1.0]).expand(1, 3, 16, 2), 1)
    with pytest.raises(DataError, match="no batch"):
        OPS["jpeg"](torch.zeros(3, 16, 16), 1)
    with pytest.raises(DataError, match="no batch"):
        OPS["jpeg"](torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 1)
    with pytest.raises(DataError, match="outside"):
        OPS["jpeg"](torch.full((1, 3, 16, 16), math.nan), 1)
