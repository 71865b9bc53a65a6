from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.data.rendered import World, draw
from vmmr.errors import ConfigError
from vmmr.noise import OPS, TRAIN_OPS
from vmmr.noise.benchmark import CAMERA, COMMON, CORRUPTIONS, VALIDATION, corrupt


def test_the_groups_are_whole_and_the_validation_ones_are_never_trained_on() -> None:
    assert (len(COMMON), len(VALIDATION), len(CAMERA)) == (15, 4, 6)
    assert list(CORRUPTIONS) == [*COMMON, *VALIDATION, *CAMERA]
    assert set(CORRUPTIONS) == set(OPS)
    assert not set(VALIDATION) & set(TRAIN_OPS)


def _pictures(n: int, side: int = 48) -> torch.Tensor:
    """Pictures of different brightness with soft and hard edges, [n, 3, side, side]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    shade = torch.stack([0.2 + 0.6 * columns, 0.5 + 0.4 * torch.sin(9 * rows), 0.3 + 0.5 * rows * columns])
    shade = torch.where(((columns - 0.5).abs() < 0.3) & ((rows - 0.55).abs() < 0.2), 0.8, shade)
    return torch.stack([shade ** (0.5 + i / 2) for i in range(n)])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_meets_the_same_in_any_batch_and_order(name: str) -> None:
    x, keys = _pictures(5), torch.tensor([4, 0, 11, 7, 2**40])
    whole = corrupt(x, name, 4, keys=keys, seed=3)
    order = torch.tensor([3, 1, 4, 0, 2])
    for split in ([5], [1, 4], [2, 2, 1], [1] * 5):
        parts = [
            corrupt(a, name, 4, keys=b.numpy(), seed=3)
            for a, b in zip(x[order].split(split), keys[order].split(split), strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts), whole[order], atol=2e-5, rtol=0)
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    assert ((whole >= 0) & (whole <= 1)).all()
    assert torch.equal(corrupt(x, name, 0, keys=keys), x)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(CORRUPTIONS)), cut=st.integers(0, 4), severity=st.floats(0, 5, width=32))
def test_cutting_a_batch_in_two_changes_nothing(name: str, cut: int, severity: float) -> None:
    x, keys = _pictures(4, 32), np.arange(4)
    parts = [corrupt(x[:cut], name, severity, keys=keys[:cut]), corrupt(x[cut:], name, severity, keys=keys[cut:])]
    torch.testing.assert_close(torch.cat(parts), corrupt(x, name, severity, keys=keys), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["elastic", "fog", "frost", "h264", "motion_blur", "rain", "shot", "snow", "spatter"])
def test_key_and_seed_decide(name: str) -> None:
    x = _pictures(1)
    one = corrupt(x, name, 3, keys=[1], seed=0)
    assert torch.equal(one, corrupt(x, name, 3, keys=[1], seed=0))
    assert not torch.equal(one, corrupt(x, name, 3, keys=[2], seed=0))
    assert not torch.equal(one, corrupt(x, name, 3, keys=[1], seed=1))


def test_corruptions_draw_apart() -> None:
    grey = torch.full((1, 3, 64, 64), 0.5)
    gaussian, speckle = (corrupt(grey, name, 1, keys=[5]) - 0.5 for name in ("gaussian", "speckle"))
    assert torch.corrcoef(torch.stack([gaussian.flatten(), speckle.flatten()]))[0, 1].abs() < 0.05


def test_neighbouring_keys_draw_apart() -> None:
    grey = torch.full((40, 3, 16, 16), 0.5)
    noise = corrupt(grey, "gaussian", 1, keys=torch.arange(40)) - 0.5
    # 768 values: the correlation of two unrelated images has a deviation of 1 / sqrt(768).
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 5 / 768**0.5


def test_from_level_to_level_the_same_grains_grow() -> None:
    grey = torch.full((2, 3, 32, 32), 0.5)
    weak, strong = (corrupt(grey, "impulse", severity, keys=[0, 1]) != 0.5 for severity in (1, 5))
    assert (weak & strong).sum() == weak.sum() > 0
    first, second = (corrupt(grey, "gaussian", severity, keys=[0, 1]) - 0.5 for severity in (1, 2))
    torch.testing.assert_close(first / 0.08, second / 0.12, atol=1e-4, rtol=0)


@pytest.mark.parametrize("keys", [[0], [0, 1, 2], [0.0, 1.0], [[0, 1]], torch.tensor([0.5, 1.5])])
def test_bad_keys_are_named(keys: Any) -> None:
    with pytest.raises(ConfigError, match="keys name no batch"):
        corrupt(_pictures(2), "fog", 1, keys=keys)


def test_an_unknown_corruption_is_named() -> None:
    with pytest.raises(ConfigError, match="no such corruption; got 'hail'"):
        corrupt(_pictures(1), "hail", 1, keys=[0])


# As published: the roughness of fog, the shares of frost, the iterations of glass and the size of flakes change as
# well, and water turns to mud.
NOT_WORSE = {("fog", 2), ("fog", 3), ("fog", 4), ("frost", 3), ("glass_blur", 1), ("glass_blur", 3), ("snow", 2)}
NOT_WORSE |= {("spatter", 3)}


@pytest.fixture(scope="module")
def vehicles() -> torch.Tensor:
    """Rendered vehicles, [8, 3, 112, 112]."""
    return torch.from_numpy(draw(World(), 8, size=112, seed=7)["image"]).permute(0, 3, 1, 2).contiguous() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_level_is_worse_than_the_one_before(name: str, vehicles: torch.Tensor) -> None:
    keys = np.arange(len(vehicles))
    noisy = [corrupt(vehicles, name, severity, keys=keys) for severity in range(1, 6)]
    psnr = [-10 * (one - vehicles).square().mean((1, 2, 3)).log10().mean().item() for one in noisy]
    for level in range(1, 5):
        if (name, level) not in NOT_WORSE:
            assert psnr[level] < psnr[level - 1], (name, level)
    assert psnr[4] < psnr[0] - 0.5
