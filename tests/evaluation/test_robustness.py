"""Conditions: what they do, that they repeat, and their means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vmmr.errors import ConfigError
from vmmr.evaluation.robustness import FAMILIES, condition, gaussian_noise, noise_curve, summary
from vmmr.noise import OPS


def test_gaussian_noise_has_its_size_and_is_not_clipped() -> None:
    image = torch.ones(4, 3, 64, 64)
    noise = gaussian_noise(image, np.arange(4), sigma=0.4) - image
    assert noise.std().item() == pytest.approx(0.4, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)
    assert (noise > 0).any()
    assert np.corrcoef(noise.flatten(1).numpy())[np.triu_indices(4, 1)] == pytest.approx(0, abs=0.05)


@given(st.permutations(range(6)), st.integers(1, 5))
def test_gaussian_noise_belongs_to_the_image_whatever_its_batch(order: list[int], cut: int) -> None:
    image, keys = torch.rand(6, 3, 8, 8), np.array([3, 1, 4, 1000, 5, 9])
    whole = gaussian_noise(image, keys, sigma=0.1, seed=7)
    for part in (order[:cut], order[cut:]):
        assert torch.equal(gaussian_noise(image[part], keys[part], sigma=0.1, seed=7), whole[part])
    assert not torch.equal(gaussian_noise(image, keys, sigma=0.1, seed=8), whole)


def test_conditions_repeat_and_do_not_depend_on_what_went_before() -> None:
    image, keys = torch.rand(2, 3, 32, 32) * 2 - 1, np.arange(2)
    assert condition("clean") is None
    for name in noise_curve([3.0])[1:]:
        first, second = condition(name, seed=5), condition(name, seed=5)
        assert first is not None
        assert second is not None
        first(image, keys + 7)
        degraded = first(image, keys)
        assert torch.equal(degraded, second(image, keys))
        assert degraded.shape == image.shape
        assert not torch.equal(degraded, image)


@pytest.mark.parametrize("name", ["", "rainbow@3", "gaussian_much", "fog@hard", "fog"])
def test_unknown_conditions_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        condition(name)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        condition("gaussian_0.1", seed=-1)


def test_every_corruption_has_one_family() -> None:
    named = [name for names in FAMILIES.values() for name in names]
    assert sorted(named) == sorted(OPS)


def test_the_summary_against_means_by_hand() -> None:
    top1 = {"clean": 0.8, "gaussian_0.1": 0.7, "gaussian_0.4": 0.1, "fog@1": 0.6, "fog@5": 0.2, "speckle@3": 0.1}
    resamples = {name: value + np.array([-0.1, 0.0, 0.1]) for name, value in top1.items()}
    found = summary(top1, resamples)
    assert {name: item["value"] for name, item in found.items()} == pytest.approx(
        {
            "clean": 0.8,
            "mean_corruption": 0.3,
            "relative_drop": 1 - 0.3 / 0.8,
            "common": 0.4,
            "validation": 0.1,
            "gaussian": 0.4,
        }
    )
    drops = [1 - 0.2 / 0.7, 1 - 0.3 / 0.8, 1 - 0.4 / 0.9]
    assert found["relative_drop"]["interval"] == pytest.approx(np.quantile(drops, [0.025, 0.975]))
    assert found["common"]["interval"] == pytest.approx(np.quantile([0.3, 0.4, 0.5], [0.025, 0.975]))


def test_the_summary_says_nothing_of_what_was_not_evaluated() -> None:
    assert summary({"fog@3": 0.5}, {"fog@3": np.array([0.5])}).keys() == {"mean_corruption", "common"}
    assert summary({"clean": 0.5}, {"clean": np.array([0.5])}).keys() == {"clean"}
    assert "gaussian" not in summary({"gaussian_blur@3": 0.5}, {"gaussian_blur@3": np.array([0.5])})


def test_nothing_right_has_nothing_to_lose() -> None:
    found = summary({"clean": 0.0, "fog@3": 0.0}, {"clean": np.array([0.0, 0.5]), "fog@3": np.array([0.0, 0.25])})
    assert found["relative_drop"]["value"] == 0
    assert found["relative_drop"]["interval"] == pytest.approx([0.0125, 0.4875])
