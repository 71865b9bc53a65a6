from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vmmr.noise import StrongNoise, augmixed, varied
from vmmr.noise.augmix import AUGMIX_OPS, augmix

SIZE = (40, 30)  # width, height


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _picture() -> Image.Image:
    coarse = np.random.default_rng(0).integers(25, 230, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def _affine(*coefficients: float) -> Callable[[Image.Image], Image.Image]:
    return lambda p: p.transform(p.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)


# What google-research/augmix does with Pillow at level 2, with the sign +.
PILLOW: dict[str, Callable[[Image.Image], Image.Image]] = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "posterize": lambda p: ImageOps.posterize(p, 4 - int(2 * 4 / 10)),
    "rotate": lambda p: p.rotate(int(2 * 30 / 10), resample=Image.Resampling.BILINEAR),
    "solarize": lambda p: ImageOps.solarize(p, 256 - int(2 * 256 / 10)),
    "shear_x": _affine(1, 2 * 0.3 / 10, 0, 0, 1, 0),
    "shear_y": _affine(1, 0, 0, 2 * 0.3 / 10, 1, 0),
    "translate_x": _affine(1, 0, int(2 * SIZE[0] / 3 / 10), 0, 1, 0),
    "translate_y": _affine(1, 0, 0, 0, 1, int(2 * SIZE[1] / 3 / 10)),
}


@pytest.mark.parametrize("name", AUGMIX_OPS)
def test_every_operation_is_pillows(name: str) -> None:
    picture = _picture()
    found = AUGMIX_OPS[name](_tensor(picture), torch.tensor([2.0]), torch.ones(1))
    error = 255 * (found - _tensor(PILLOW[name](picture))).abs()
    assert not torch.equal(found, _tensor(picture))
    inside = error[..., 3:-3, 3:-3]  # Pillow fills a little more of the edge
    assert inside.mean() < 1
    assert inside.max() < 4


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_the_sign_turns_a_movement_round(name: str) -> None:
    x = _tensor(_picture())
    away = AUGMIX_OPS[name](x, torch.tensor([2.0]), torch.ones(1))
    back = AUGMIX_OPS[name](away, torch.tensor([2.0]), -torch.ones(1))
    inside = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    assert (back - x)[inside].abs().mean() < 0.02 < (away - x)[inside].abs().mean()


def test_each_image_has_its_own_level_and_sign() -> None:
    x = _tensor(_picture()).repeat(3, 1, 1, 1)
    level, sign = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, -1.0])
    for operation in AUGMIX_OPS.values():
        together = operation(x, level, sign)
        for row in range(3):
            alone = operation(x[row : row + 1], level[row : row + 1], sign[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 4), height=st.integers(8, 24), width=st.integers(8, 24), seed=st.integers(0, 10**6))
def test_it_stays_in_range_repeats_itself_and_leaves_its_input(batch: int, height: int, width: int, seed: int) -> None:
    x = torch.rand(batch, 3, height, width, generator=_generator(seed))
    before = x.clone()
    mixed = augmix(x, generator=_generator(seed))
    assert mixed.shape == x.shape
    assert 0 <= mixed.min() <= mixed.max() <= 1
    assert torch.equal(mixed, augmix(x, generator=_generator(seed)))
    assert torch.equal(x, before)


def test_chains_without_operations_leave_the_image() -> None:
    x = torch.rand(8, 3, 12, 12, generator=_generator())
    torch.testing.assert_close(augmix(x, depth=0, generator=_generator()), x)


def test_the_mixture_is_between_the_image_and_its_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AUGMIX_OPS:
        monkeypatch.setitem(AUGMIX_OPS, name, lambda x, level, sign: torch.ones_like(x))
    mixed = augmix(torch.zeros(4000, 3, 2, 2), generator=_generator())
    share = mixed[:, 0, 0, 0]
    assert torch.equal(mixed, share[:, None, None, None].expand_as(mixed))
    # Every chain is white and the weights add up to 1, so what is left is m ~ U(0, 1).
    quantiles = share.quantile(torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.03, rtol=0)


def test_a_chain_has_one_to_three_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def first(x: torch.Tensor, level: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    for name in AUGMIX_OPS:
        monkeypatch.setitem(AUGMIX_OPS, name, first)
    x = torch.rand(30, 3, 2, 2, generator=_generator())
    torch.testing.assert_close(augmix(x, generator=_generator()), x)
    assert 90 <= sum(calls) <= 270  # one to three operations on each of 90 chains
    assert sum(calls) == pytest.approx(180, abs=30)


def test_varied_noise_is_strong_noise_on_what_augmix_made() -> None:
    x = 2 * torch.rand(6, 3, 24, 24, generator=_generator(1)) - 1
    out = varied(x, generator=_generator(2))
    same = _generator(2)
    scene = augmixed(x, generator=same)
    assert torch.equal(scene["target"], x)
    camera = StrongNoise()(scene["noisy"], generator=same)
    assert torch.equal(out["target"], scene["noisy"])
    assert torch.equal(out["noisy"], camera["noisy"])
    assert torch.equal(out["severity"], camera["severity"])
