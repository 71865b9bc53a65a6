from __future__ import annotations

import math

import pytest
import torch

from vmmr.noise import OPS


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat(value: float, side: int = 128, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 3, side, side), value)


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


@pytest.mark.parametrize(("severity", "exposure"), [(1, 0.5), (3, 0.18), (5, 0.06)])
def test_low_light_divides_linear_light(severity: float, exposure: float) -> None:
    dark = OPS["low_light"](_flat(0.9, 256), severity, generator=_generator())
    assert (dark**2.2).mean().item() == pytest.approx(0.9**2.2 * exposure, rel=0.01)


def test_low_light_has_the_noise_of_its_sensor() -> None:
    light = OPS["low_light"](_flat(0.9, 256), 5, generator=_generator()) ** 2.2
    expected = math.sqrt(0.9**2.2 * 0.06 * 0.002 + 0.006**2)
    assert light.std().item() == pytest.approx(expected, rel=0.02)
