from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from vmmr.noise import OPS


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat(value: float, side: int = 128, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 3, side, side), value)


@pytest.mark.parametrize("name", ["defocus", "gaussian_blur", "glass_blur", "motion_blur", "travel_blur", "zoom_blur"])
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
        # A uniform path of 30.2 px has a variance of 30.2^2 / 12; the line is about a pixel wide.
        assert along.item() == pytest.approx(30.2**2 / 12, rel=0.08)
        assert across.item() < 0.4


def test_motion_takes_every_direction_from_image_to_image() -> None:
    x = torch.zeros(64, 3, 64, 64)
    x[..., 32, 32] = 1
    out = OPS["motion_blur"](x, 5, generator=_generator())[:, 0]
    rows, columns = torch.meshgrid(*(torch.arange(64.0) - 32,) * 2, indexing="ij")
    double = torch.atan2((2 * rows * columns * out).sum((1, 2)), ((columns**2 - rows**2) * out).sum((1, 2)))
    quarters = torch.bucketize(double, torch.tensor([-math.pi / 2, 0, math.pi / 2])).bincount(minlength=4)
    assert (quarters > 6).all()


@pytest.mark.parametrize(("severity", "sigma"), [(1, 1), (2.5, 2.5), (5, 6)])
def test_gaussian_blur_is_scipys(severity: float, sigma: float) -> None:
    x = torch.rand(1, 3, 224, 230, generator=_generator(), dtype=torch.float64)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest")
    np.testing.assert_allclose(OPS["gaussian_blur"](x, severity).numpy(), expected, atol=1e-9)


def test_travel_is_motion_that_stays_near_the_horizontal() -> None:
    x = torch.zeros(24, 3, 112, 112)
    x[..., 56, 56] = 1
    out = OPS["travel_blur"](x, 5, generator=_generator())[:, 0].double()
    rows, columns = torch.meshgrid(*(torch.arange(112.0, dtype=torch.float64) - 56,) * 2, indexing="ij")
    moments = torch.stack([(a * b * out).sum((1, 2)) for a, b in ((columns, columns), (columns, rows), (rows, rows))])
    # A path of 44 px at 224 px is 22 px here; its angle is that of the axis of its second moments.
    np.testing.assert_allclose(moments[0] + moments[2], 22**2 / 12, rtol=0.06)
    angle = (0.5 * torch.atan2(2 * moments[1], moments[0] - moments[2])).rad2deg()
    assert angle.abs().max() < 16
    assert angle.min() < -5
    assert angle.max() > 5


def test_zoom_blur_is_the_mean_over_its_zooms() -> None:
    x = torch.rand(1, 3, 96, 96, generator=_generator(), dtype=torch.float64)
    x = OPS["gaussian_blur"](x, 5)  # a smooth picture, for which interpolating four times is as good as once
    zooms = 1.3 ** (np.arange(16) / 15)
    rows, columns = np.mgrid[:96, :96] - 47.5
    total = np.zeros((3, 96, 96))
    for zoom in zooms:
        at = [rows / zoom + 47.5, columns / zoom + 47.5]
        total += np.stack([ndimage.map_coordinates(channel, at, order=1) for channel in x[0].numpy()])
    expected = total / 16 + (x[0].numpy() - total / 16) / 12
    np.testing.assert_allclose(OPS["zoom_blur"](x, 5)[0].numpy(), expected, atol=2e-3)


def test_zoom_blur_leaves_the_centre_and_smears_outwards() -> None:
    x = torch.zeros(1, 3, 101, 101)
    x[..., 50, 50] = 1
    x[..., 50, 90] = 1
    out = OPS["zoom_blur"](x, 5)[0, 0]
    assert out[50, 50] > 0.5
    smeared = out[:, 70:].sum(0)
    # What was 40 px from the centre goes outwards, and out of the picture beyond 1.25 times that.
    assert smeared[:18].sum() < 1e-3
    assert smeared[20:].count_nonzero() > 8


def test_glass_reads_every_pixel_from_its_drift_and_spread() -> None:
    ramp = torch.linspace(0, 1, 448, dtype=torch.float64).expand(1, 3, 448, 448).contiguous()
    for x, across in ((ramp, 3), (ramp.mT.contiguous(), 2)):
        moved = (OPS["glass_blur"](x, 5, generator=_generator()) - x)[..., 60:-60, 60:-60] * 447
        # At 448 px twice the constants; blurring a shuffled ramp with 3 px keeps its mean and averages its spread away.
        assert moved.mean().item() == pytest.approx(-2 * 1.8, abs=0.1)
        assert moved.std().item() == pytest.approx(2 * 4.0 / (2 * math.sqrt(math.pi) * 3), rel=0.1)
        assert torch.equal(moved[:, 0], moved[:, 2]), across


def test_weak_glass_is_two_gaussian_blurs() -> None:
    # At 16 px no pixel of level 1 moves: its drift of 1 px at 224 px is 0.07 px.
    x = torch.rand(1, 3, 16, 16, generator=_generator(), dtype=torch.float64)
    expected = x.numpy()
    for _ in range(2):
        expected = ndimage.gaussian_filter(expected, (0, 0, 0.05, 0.05), mode="nearest")
    np.testing.assert_allclose(OPS["glass_blur"](x, 1, generator=_generator()).numpy(), expected, atol=1e-6)
