from __future__ import annotations

import pytest
import torch

from vmmr.noise import OPS
from vmmr.noise.weather import plasma


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat(value: float, side: int = 128, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 3, side, side), value)


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


def test_fog_is_the_published_mixture_with_a_plasma() -> None:
    # On black only the plasma is left: c p m / (m + c) with m from one bright pixel; black is where it is thinnest.
    dark = _flat(0.0, 224, batch=2)
    dark[..., 0, 0] = 1
    for severity, c in ((1, 1.5), (3, 2.5), (5, 3.0)):
        plasma = OPS["fog"](dark, severity, generator=_generator())[..., 1:, 1:] * (1 + c) / c
        assert 0 <= plasma.min() < 0.25
        assert 0.75 < plasma.max() <= 1 + 1e-5
        assert torch.equal(plasma[:, 0], plasma[:, 2])
        assert not torch.equal(plasma[0], plasma[1])
        # An affine function of the image: the plasma, and the image's share 1 / (1 + c).
        half = dark + 0.5 * (dark == 0)
        lifted = OPS["fog"](half, severity, generator=_generator()) - OPS["fog"](dark, severity, generator=_generator())
        torch.testing.assert_close(lifted[..., 1:, 1:], _flat(0.5 / (1 + c), 223, batch=2), atol=1e-5, rtol=0)


def test_fog_gets_rougher() -> None:
    dark = _flat(0.0, 224, batch=4)
    dark[..., 0, 0] = 1
    smooth, rough = (OPS["fog"](dark, severity, generator=_generator())[:, 0, 1:, 1:] for severity in (1, 5))
    roughness = [plasma.diff(dim=2).std() / plasma.std() for plasma in (smooth, rough)]
    assert roughness[1] > 2 * roughness[0]


def _plasma_by_loops(draw: torch.Tensor, decay: float) -> torch.Tensor:
    n = len(draw)
    heights = torch.zeros(n, n, dtype=draw.dtype)
    step, amplitude = n, 100.0**2
    while step >= 2:
        half = step // 2
        for row in range(0, n, step):
            for column in range(0, n, step):
                corners = [heights[(row + i) % n, (column + j) % n] for i in (0, step) for j in (0, step)]
                at = (row + half, column + half)
                heights[at] = sum(corners) / 4 + amplitude * (2 * draw[at] - 1)
        for row in range(0, n, half):
            for column in range(half if row % step == 0 else 0, n, step):
                beside = [(row - half, column), (row + half, column), (row, column - half), (row, column + half)]
                around = sum(heights[i % n, j % n] for i, j in beside) / 4
                heights[row, column] = around + amplitude * (2 * draw[row, column] - 1)
        step, amplitude = half, amplitude / decay**2
    heights = heights - heights.min()
    return heights / heights.max()


def test_plasma_is_diamond_square() -> None:
    draw = torch.rand(2, 16, 16, generator=_generator(), dtype=torch.float64)
    decay = torch.tensor([2.0, 1.4], dtype=torch.float64)[:, None, None]
    expected = torch.stack([_plasma_by_loops(one, d) for one, d in zip(draw, (2.0, 1.4), strict=True)])
    torch.testing.assert_close(plasma(draw, decay), expected)


def test_snow_whitens_and_its_flakes_are_symmetric() -> None:
    black = _flat(0.0, 96, batch=12)
    out = OPS["snow"](black, 3, generator=_generator())
    # (1 - .7) * .5 of white everywhere, and the flakes with themselves turned by half a circle.
    flakes = out - 0.15
    assert flakes.min().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(flakes, flakes.rot90(2, (2, 3)), atol=1e-5, rtol=0)
    assert 0.05 < (flakes > 0.05).float().mean() < 0.8
    assert flakes.diff(dim=3).square().mean() > 1.2 * flakes.diff(dim=2).square().mean()


def test_frost_is_the_published_mixture_with_ice() -> None:
    black = _flat(0.0, 64, batch=8)
    ice = OPS["frost"](black, 3, generator=_generator()) / 0.7
    assert 0.4 < ice.mean() < 0.7
    assert (ice[:, 2] >= ice[:, 0]).all()
    weaker = OPS["frost"](black, 1, generator=_generator()) / 0.4
    torch.testing.assert_close(weaker, ice, atol=1e-5, rtol=0)
    dim = _flat(0.2, 64, batch=8)
    torch.testing.assert_close(
        OPS["frost"](dim, 3, generator=_generator()), (0.7 * 0.2 + 0.7 * ice).clamp(max=1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("severity", "share"), [(1, 0.0289), (2, 0.1435), (3, 0.2391)])
def test_water_covers_what_exceeds_the_threshold(severity: int, share: float) -> None:
    # P(N(0, 1) > (.69 - .65) * 2 sqrt(pi) * 4 / .3) and so on.
    wet = OPS["spatter"](_flat(0.0, 224, batch=8), severity, generator=_generator())[..., 16:-16, 16:-16]
    assert (wet[:, 0] > 0).float().mean().item() == pytest.approx(share, rel=0.15)
    torch.testing.assert_close(wet[:, 0] * 238, wet[:, 1] * 175, atol=1e-3, rtol=0)


@pytest.mark.parametrize("side", [112, 224])
def test_drops_cover_the_same_share_at_any_size(side: int) -> None:
    wet = OPS["spatter"](_flat(0.0, side, batch=8), 2, generator=_generator())
    assert (wet[:, 0] > 0).float().mean().item() == pytest.approx(0.1435, rel=0.15)


def test_mud_hides_what_is_below() -> None:
    dirty = [OPS["spatter"](_flat(value, 224), 5, generator=_generator())[0] for value in (0.2, 1.0)]
    # Where the neighbourhood is all wet, mud is all there is: the same brown over dark and bright.
    deep = (dirty[0] - dirty[1]).abs().amax(0) < 0.02
    assert deep.float().mean() > 0.002
    brown = torch.tensor([63, 42, 20]) / 255
    torch.testing.assert_close(dirty[0][:, deep].mean(1), brown, atol=0.01, rtol=0)
    clean = (dirty[1] == 1).all(0)
    assert 0.5 < clean.float().mean() < 0.95
