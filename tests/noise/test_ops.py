from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

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


def test_families() -> None:
    assert list(OPS) == sorted(OPS)
    assert sorted(TRAIN_OPS + HELD_OUT_OPS) == list(OPS)
    assert {"speckle", "fog", "rain"} == set(HELD_OUT_OPS)


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
    levels = (0.05, 0.5, 1, 1.5, 2, 3, 4, 5)
    psnr = [_psnr(OPS[name](x, float(s), generator=_generator()), x).mean().item() for s in levels]
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
    if name not in {"defocus", "downscale", "jpeg"}:
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


def test_bad_images_are_named() -> None:
    with pytest.raises(DataError, match=r"outside of \[0, 1\]; got -1 \.\. 1"):
        OPS["jpeg"](torch.tensor([-1.0, 1.0]).expand(1, 3, 16, 2), 1)
    with pytest.raises(DataError, match="no batch"):
        OPS["jpeg"](torch.zeros(3, 16, 16), 1)
    with pytest.raises(DataError, match="no batch"):
        OPS["jpeg"](torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 1)
    with pytest.raises(DataError, match="outside"):
        OPS["jpeg"](torch.full((1, 3, 16, 16), math.nan), 1)


# --- noise


@pytest.mark.parametrize(("severity", "sigma"), [(0.5, 0.04), (1, 0.08), (2, 0.12), (2.5, 0.15)])
def test_gaussian_has_the_published_sigma(severity: float, sigma: float) -> None:
    noise = OPS["gaussian"](_flat(0.5, 256), severity, generator=_generator()) - 0.5
    # 196 608 values: the standard error of the mean is sigma / 443, of sigma that over sqrt 2. Four of them.
    assert abs(noise.mean().item()) < 4 * sigma / 443
    assert noise.std().item() == pytest.approx(sigma, abs=4 * sigma / 627)
    centred = noise[0].flatten(1)
    assert torch.corrcoef(centred).fill_diagonal_(0).abs().max() < 0.02


@pytest.mark.parametrize(("severity", "photons"), [(1, 60), (2, 25), (3, 12)])
def test_shot_counts_photons(severity: float, photons: int) -> None:
    for intensity in (0.1, 0.4):
        counts = OPS["shot"](_flat(intensity, 256), severity, generator=_generator()) * photons
        unclipped = counts < photons - 0.5
        assert unclipped.float().mean() > 0.995
        torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
        rate = intensity * photons
        assert counts.mean().item() == pytest.approx(rate, abs=4 * math.sqrt(rate / counts.numel()) + 0.01)
        assert counts.var().item() == pytest.approx(rate, rel=0.03)
        zeros = (counts == 0).float().mean().item()
        assert zeros == pytest.approx(math.exp(-rate), abs=4 * math.sqrt(math.exp(-rate) / counts.numel()) + 1e-5)


def test_black_has_neither_shot_nor_speckle() -> None:
    black = _flat(0.0, 16)
    for name in ("shot", "speckle"):
        assert torch.equal(OPS[name](black, 5), black)


def test_speckle_is_proportional_to_the_intensity() -> None:
    for intensity in (0.1, 0.3, 0.5):
        noisy = OPS["speckle"](_flat(intensity, 256), 2, generator=_generator())
        assert noisy.std().item() == pytest.approx(0.2 * intensity, rel=0.02)
        assert noisy.mean().item() == pytest.approx(intensity, rel=0.005)


@pytest.mark.parametrize(("severity", "amount"), [(1, 0.03), (3, 0.09), (5, 0.27), (4.5, 0.22)])
def test_impulse_hits_its_share_half_salt_half_pepper(severity: float, amount: float) -> None:
    noisy = OPS["impulse"](_flat(0.5, 256), severity, generator=_generator())
    error = 4 * math.sqrt(amount / noisy.numel())
    assert (noisy == 1).float().mean().item() == pytest.approx(amount / 2, abs=error)
    assert (noisy == 0).float().mean().item() == pytest.approx(amount / 2, abs=error)
    assert ((noisy == 0) | (noisy == 0.5) | (noisy == 1)).all()


# --- blur


@pytest.mark.parametrize("name", ["defocus", "motion_blur", "downscale"])
def test_blurs_keep_a_flat_image(name: str) -> None:
    for value in (0.3, 1.0):
        flat = _flat(value, 40)
        torch.testing.assert_close(OPS[name](flat, 4.3), flat, atol=1e-5, rtol=0)


def test_defocus_spreads_a_point_over_its_disc() -> None:
    x = torch.zeros(1, 3, 224, 224)
    x[..., 112, 112] = 1
    disc = OPS["defocus"](x, 5)[0, 0]
    assert disc.sum().item() == pytest.approx(1, abs=1e-4)
    assert disc.max().item() == pytest.approx(1 / (math.pi * 10**2), rel=0.01)
    rows, columns = disc.nonzero().unbind(1)
    assert (torch.hypot(rows - 112.0, columns - 112.0) < 10.5).all()
    half = OPS["defocus"](x[..., 56:168, 56:168], 5)[0, 0]
    assert half.max().item() == pytest.approx(1 / (math.pi * 5**2), rel=0.02)


def test_motion_smears_a_point_along_a_line_of_its_length() -> None:
    x = torch.zeros(1, 3, 224, 224)
    x[..., 112, 112] = 1
    for seed in range(6):
        streak = OPS["motion_blur"](x, 5, generator=_generator(seed))[0, 0].double()
        rows, columns = torch.meshgrid(*(torch.arange(224.0, dtype=torch.float64) - 112,) * 2, indexing="ij")
        assert streak.sum().item() == pytest.approx(1, abs=1e-4)
        covariance = torch.stack([rows * rows, rows * columns, rows * columns, columns * columns])
        across, along = torch.linalg.eigvalsh((covariance * streak).sum((1, 2)).view(2, 2))
        # A uniform path of 20 px has a variance of 20^2 / 12; the line is about a pixel wide.
        assert along.item() == pytest.approx(20**2 / 12, rel=0.06)
        assert across.item() < 0.4


def test_motion_takes_every_direction_from_image_to_image() -> None:
    x = torch.zeros(64, 3, 64, 64)
    x[..., 32, 32] = 1
    out = OPS["motion_blur"](x, 5, generator=_generator())[:, 0]
    rows, columns = torch.meshgrid(*(torch.arange(64.0) - 32,) * 2, indexing="ij")
    double = torch.atan2((2 * rows * columns * out).sum((1, 2)), ((columns**2 - rows**2) * out).sum((1, 2)))
    quarters = torch.bucketize(double, torch.tensor([-math.pi / 2, 0, math.pi / 2])).bincount(minlength=4)
    assert (quarters > 6).all()


# --- light, transmission, weather


@pytest.mark.parametrize(("severity", "exposure"), [(1, 0.5), (3, 0.18), (5, 0.06)])
def test_low_light_divides_linear_light(severity: float, exposure: float) -> None:
    dark = OPS["low_light"](_flat(0.9, 256), severity, generator=_generator())
    assert (dark**2.2).mean().item() == pytest.approx(0.9**2.2 * exposure, rel=0.01)


def test_low_light_has_the_noise_of_its_sensor() -> None:
    light = OPS["low_light"](_flat(0.9, 256), 5, generator=_generator()) ** 2.2
    expected = math.sqrt(0.9**2.2 * 0.06 * 0.002 + 0.006**2)
    assert light.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (3, 15), (5, 7), (0.2, 85)])
@pytest.mark.parametrize("side", [96, 101])
def test_jpeg_is_close_to_a_real_encoder(severity: float, quality: int, side: int) -> None:
    x = (_picture(side) * 255).round() / 255
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    real = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None].float() / 255
    ours = OPS["jpeg"](x, severity)
    assert abs(_psnr(ours, x).item() - _psnr(real, x).item()) < 1.0
    # Nearer to the real file than either is to the image.
    assert _psnr(ours, real).item() > _psnr(real, x).item() + 3


def test_downscale_by_an_exact_half_is_area_then_bilinear() -> None:
    # Severity 1 2/3: a factor of 0.6 - 0.15 * 2 / 3 = 0.5.
    x = torch.rand(2, 3, 32, 48)
    expected = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), size=(32, 48), mode="bilinear")
    torch.testing.assert_close(OPS["downscale"](x, 1 + 2 / 3), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.6), (3, 0.33), (5, 0.18)])
def test_downscale_to_any_size_is_area_then_bilinear(severity: float, factor: float) -> None:
    x = torch.rand(1, 3, 50, 37)
    small = (round(50 * factor), round(37 * factor))
    # Fractional areas on a grid that is a multiple of both sizes.
    fine = x.repeat_interleave(small[0], 2).repeat_interleave(small[1], 3)
    cells = F.avg_pool2d(fine, (50, 37))
    assert cells.shape[-2:] == small
    expected = F.interpolate(cells, size=(50, 37), mode="bilinear")
    torch.testing.assert_close(OPS["downscale"](x, severity), expected, atol=5e-5, rtol=0)


def test_fog_draws_everything_towards_the_airlight() -> None:
    black, airlight = _flat(0.0), _flat(0.9)
    torch.testing.assert_close(OPS["fog"](airlight, 5), airlight, atol=1e-6, rtol=0)
    opacity = OPS["fog"](black, 3, generator=_generator()) / 0.9
    assert opacity.min().item() == pytest.approx(0.55 * 0.75, abs=1e-4)
    assert opacity.max().item() == pytest.approx(0.55 * 1.25, abs=1e-4)
    assert torch.equal(opacity[:, 0], opacity[:, 2])


def test_rain_is_bright_steep_and_denser_with_severity() -> None:
    dark = _flat(0.1, 224)
    wet = []
    for severity in (1, 3, 5):
        rain = OPS["rain"](dark, severity, generator=_generator())[0, 0]
        assert rain.min() >= 0.1
        wet.append((rain > rain.min() + 0.05).float().mean().item())
        across, down = rain.diff(dim=1).square().mean(), rain.diff(dim=0).square().mean()
        assert across > 3 * down
    assert wet[0] < wet[1] < wet[2]
    assert 0.01 < wet[0] < 0.2
