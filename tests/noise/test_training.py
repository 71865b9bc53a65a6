from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vmmr.errors import ConfigError
from vmmr.noise import OPS, TRAIN_OPS, TRAINING_NOISE, GaussianNoise, PublishedNoise, StrongNoise, clean, published
from vmmr.noise.training import gaussian_blur


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(batch: int, side: int = 32, seed: int = 1) -> torch.Tensor:
    return 2 * torch.rand(batch, 3, side, side, generator=_generator(seed)) - 1


def test_registry() -> None:
    assert list(TRAINING_NOISE) == ["augmix", "gaussian", "none", "published", "strong", "varied"]
    assert TRAINING_NOISE["published"] is published


@pytest.mark.parametrize("name", TRAINING_NOISE)
def test_every_noise_repeats_itself_and_leaves_its_input_alone(name: str) -> None:
    x = _images(16)
    before = x.clone()
    noise = TRAINING_NOISE[name]
    first, second = noise(x, generator=_generator(5)), noise(x, generator=_generator(5))
    assert first.keys() == second.keys() >= {"target", "noisy"}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(x, before)
    if name != "none":
        assert not torch.equal(first["noisy"], noise(x, generator=_generator(6))["noisy"])


@pytest.mark.parametrize("name", TRAINING_NOISE)
def test_without_a_generator_the_global_state_decides(name: str) -> None:
    x = _images(4)
    noise = TRAINING_NOISE[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = noise(x)["noisy"]
        torch.manual_seed(3)
        assert torch.equal(noise(x)["noisy"], first)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(TRAINING_NOISE)),
    batch=st.integers(1, 5),
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    seed=st.integers(0, 2**31),
)
def test_shapes_hold(name: str, batch: int, height: int, width: int, seed: int) -> None:
    x = 2 * torch.rand(batch, 3, height, width, generator=_generator(seed)) - 1
    out = TRAINING_NOISE[name](x, generator=_generator(seed))
    for key in ("target", "noisy"):
        assert out[key].shape == x.shape
        assert out[key].dtype == x.dtype
        assert torch.isfinite(out[key]).all()
    assert all(len(value) == batch for value in out.values())


def test_clean_gives_the_image_for_both() -> None:
    x = _images(2)
    assert clean(x) == {"target": x, "noisy": x}


# --- the published noise


def test_noise_is_normal_with_a_sigma_per_image_up_to_a_twentieth() -> None:
    out = published(_images(256), generator=_generator())
    epsilon = out["noisy"] - out["target"]
    sigma = out["sigma"]
    assert ((sigma >= 0) & (sigma <= 0.05)).all()
    assert sigma.mean().item() == pytest.approx(0.025, abs=0.003)
    assert sigma.max() > 0.048
    # At least 1 024 independent values an image: 5 standard errors of its standard deviation and mean.
    measured = epsilon.flatten(1).std(1)
    assert ((measured - sigma).abs() < 5 * sigma / (2 * 1024) ** 0.5 + 1e-6).all()
    assert (epsilon.flatten(1).mean(1).abs() < 5 * sigma / 1024**0.5 + 1e-6).all()
    unit = (epsilon / sigma[:, None, None, None])[sigma > 0.01]
    assert unit.mean().item() == pytest.approx(0, abs=0.01)
    assert unit.pow(4).mean().item() == pytest.approx(3, abs=0.1)


def test_half_of_the_images_have_one_noise_for_all_channels() -> None:
    out = PublishedNoise(affine_p=0, blur_p=0)(torch.zeros(400, 3, 12, 12), generator=_generator())
    same = (out["noisy"] == out["noisy"][:, :1]).all(dim=(1, 2, 3))
    assert torch.equal(same, out["shared_channels"])
    assert 0.42 < same.float().mean() < 0.58
    separate = (out["noisy"] / out["sigma"][:, None, None, None])[~same]
    correlation = torch.corrcoef(separate.transpose(0, 1).flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.03


def test_nothing_is_clipped() -> None:
    white = torch.ones(32, 3, 16, 16)
    out = PublishedNoise(affine_p=0, blur_p=0)(white, generator=_generator())
    above = (out["noisy"] > 1).float().mean().item()
    assert above == pytest.approx(0.5, abs=0.02)


def test_sigma_zero_gives_the_target_bit_for_bit() -> None:
    out = PublishedNoise(max_sigma=0)(_images(16), generator=_generator())
    assert torch.equal(out["noisy"], out["target"])


def test_both_gates_off_give_the_image_bit_for_bit() -> None:
    x = _images(16)
    out = PublishedNoise(affine_p=0, blur_p=0)(x, generator=_generator())
    assert torch.equal(out["target"], x)
    assert not out["affine"].any()
    assert not out["blur_sigma"].any()


def test_gates_open_as_often_as_published_and_say_so() -> None:
    x = _images(600, side=12)
    out = published(x, generator=_generator())
    assert 0.15 < out["affine"].float().mean() < 0.25
    blurred = out["blur_sigma"] > 0
    assert 0.44 < blurred.float().mean() < 0.56
    assert out["blur_sigma"][blurred].mean().item() == pytest.approx(1.5, abs=0.2)
    assert out["blur_sigma"].max() <= 3
    changed = (out["target"] != x).any(dim=(1, 2, 3))
    # A sigma near 0 leaves the centre tap alone: whoever changed was touched, and nearly the other way round.
    touched = out["affine"] | blurred
    assert not (changed & ~touched).any()
    assert changed.sum() > 0.9 * touched.sum()


def test_settings_change_nothing_but_what_they_name() -> None:
    x = _images(32)
    full = published(x, generator=_generator())
    loud = PublishedNoise(max_sigma=0.5)(x, generator=_generator())
    assert torch.equal(full["target"], loud["target"])
    torch.testing.assert_close(loud["sigma"], 10 * full["sigma"])


def test_images_are_drawn_independently() -> None:
    x = _images(12)
    other = x.clone()
    other[3] = -other[3]
    a, b = (published(images, generator=_generator()) for images in (x, other))
    rest = [i for i in range(12) if i != 3]
    assert torch.equal(a["noisy"][rest], b["noisy"][rest])
    assert not torch.equal(a["target"][3], b["target"][3])
    same = published(x[:1].expand(12, -1, -1, -1), generator=_generator())["noisy"]
    assert all(not torch.equal(same[i], same[j]) for i in range(12) for j in range(i))


def test_constant_borders_are_grey_to_white() -> None:
    dark = torch.full((300, 3, 16, 16), -1.0)
    target = PublishedNoise(affine_p=1, blur_p=0)(dark, generator=_generator())["target"]
    # One in five has the border "constant", and nearly all of those have some of it in view.
    filled = target.amax(dim=(1, 2, 3))
    filled = filled[filled > -0.99]
    assert 0.13 < len(filled) / 300 < 0.27
    assert ((filled >= -0.5) & (filled <= 1)).float().mean() > 0.9
    flat = PublishedNoise(affine_p=1, blur_p=0, fill=(0, 0))(dark, generator=_generator())["target"]
    assert flat.max() == 0


def test_the_affine_stays_within_its_published_ranges() -> None:
    # The borders repeat, so that a ramp tells scale and shift of the nearest images apart from wild ones.
    ramp = torch.linspace(-1, 1, 41).expand(200, 3, 41, 41).contiguous()
    target = PublishedNoise(affine_p=1, blur_p=0)(ramp, generator=_generator())["target"]
    centre = target[:, 0, 20, 20]
    # The middle shows what lay a fifth of 41 px to either side, over 1 / (.8 cos 15 cos 30), at most.
    assert centre.abs().max() < 0.05 * 8.2 * 1.8 + 0.05
    assert centre.std() > 0.15


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.7, 2.9])
def test_blur_is_scipys_with_imgaugs_window(sigma: float) -> None:
    x = torch.rand(1, 3, 20, 24, generator=_generator())
    window = max(int(3.3 * sigma), 5) // 2
    expected = ndimage.gaussian_filter(x.double().numpy(), sigma, mode="mirror", radius=(0, 0, window, window))
    np.testing.assert_allclose(gaussian_blur(x, torch.tensor([sigma])).numpy(), expected, atol=1e-5)


def test_blur_is_per_image_and_skipped_below_a_thousandth() -> None:
    x = _images(4)
    sigma = torch.tensor([0.0, 9e-4, 1.0, 2.5])
    out = gaussian_blur(x, sigma)
    assert torch.equal(out[:2], x[:2])
    for i in (2, 3):
        torch.testing.assert_close(out[i : i + 1], gaussian_blur(x[i : i + 1], sigma[i : i + 1]))


def test_blur_and_affine_come_in_both_orders() -> None:
    # With both gates open and no randomness left but the order, a batch of one image has exactly two targets.
    x = _images(1, 24).expand(64, -1, -1, -1)
    noise = PublishedNoise(affine_p=1, blur_p=1, max_sigma=0)
    out = noise(x, generator=_generator())
    blur_last = gaussian_blur(replace(noise, blur_p=0.0)(x, generator=_generator())["target"], out["blur_sigma"])
    last = (out["target"] - blur_last).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 16 < last.sum() < 48


# --- the rivals


def test_gaussian_noise_reaches_its_share_and_clips() -> None:
    x = torch.zeros(400, 3, 12, 12)
    out = GaussianNoise()(x, generator=_generator())
    noisy = out["sigma"] > 0
    assert 0.62 < noisy.float().mean() < 0.78
    assert torch.equal(out["noisy"][~noisy], x[~noisy])
    assert out["target"] is x
    assert out["sigma"].max() <= 0.4
    measured = out["noisy"].flatten(1).std(1)
    assert ((measured - out["sigma"]).abs() < 5 * out["sigma"] / (2 * 432) ** 0.5 + 0.02).all()
    assert GaussianNoise(p=1)(torch.ones(4, 3, 8, 8))["noisy"].max() <= 1


def test_strong_noise_uses_one_or_two_of_its_families() -> None:
    x = _images(500, side=16)
    out = StrongNoise()(x, generator=_generator())
    severity = out["severity"]
    used = severity > 0
    assert severity.shape == (500, len(TRAIN_OPS))
    many = used.sum(1)
    assert many.max() == 2
    assert 0.74 < (many > 0).float().mean() < 0.86
    assert 0.40 < (many == 2).sum() / (many > 0).sum() < 0.60
    assert (severity.sum(1) <= 5).all()
    assert severity.sum(1)[many > 0].mean().item() == pytest.approx(2.5, abs=0.3)
    assert (used.sum(0) > 50).all()
    assert out["target"] is x
    assert torch.equal(out["noisy"][many == 0], x[many == 0])
    assert out["noisy"].abs().max() <= 1


def test_strong_noise_is_its_ops_in_their_order() -> None:
    x = _images(24)
    out = StrongNoise()(x, generator=_generator())
    kinds = (out["severity"] > 0).sum(1)
    quiet = {"defocus", "downscale", "jpeg"}
    checked = 0
    for i in range(24):
        names = [name for name, s in zip(TRAIN_OPS, out["severity"][i], strict=True) if s > 0]
        if not names or not set(names) <= quiet:
            continue
        expected = (x[i : i + 1] + 1) / 2
        for name in names:
            expected = OPS[name](expected, out["severity"][i, TRAIN_OPS.index(name)].item())
        torch.testing.assert_close(out["noisy"][i : i + 1], 2 * expected - 1, atol=1e-4, rtol=0)
        checked += 1
    assert checked >= 3
    assert kinds.max() == 2


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ConfigError, match=r"blur_p is no probability; got 1\.5"):
        PublishedNoise(blur_p=1.5)
    with pytest.raises(ConfigError, match="max_sigma"):
        PublishedNoise(max_sigma=-0.1)
    with pytest.raises(ConfigError, match="max_sigma"):
        GaussianNoise(max_sigma=float("nan"))
    with pytest.raises(ConfigError, match="pair_p"):
        StrongNoise(pair_p=-1)
    with pytest.raises(ConfigError, match="max_severity"):
        StrongNoise(max_severity=6)
