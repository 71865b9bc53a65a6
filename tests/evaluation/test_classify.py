from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vmmr.errors import ConfigError
from vmmr.evaluation.classify import accuracy
from vmmr.evaluation.robustness import condition, gaussian_noise, noise_curve


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 1000))
def test_accuracy_against_a_naive_count(images: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator).numpy()
    found = accuracy(logits, labels)
    for k, name in ((1, "top1"), (5, "top5")):
        hits = sum(int(label) in np.argsort(-row.numpy())[:k] for row, label in zip(logits, labels, strict=True))
        assert found[name] == pytest.approx(hits / images)


def test_gaussian_noise_has_its_size_and_is_not_clipped() -> None:
    image = torch.ones(4, 3, 64, 64)
    noise = gaussian_noise(image, 0.4, torch.Generator().manual_seed(0)) - image
    assert noise.std().item() == pytest.approx(0.4, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)
    assert (noise > 0).any()


def test_conditions_repeat_and_do_not_depend_on_what_went_before() -> None:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert condition("clean") is None
    for name in noise_curve([3.0])[1:]:
        first, second = condition(name, seed=5), condition(name, seed=5)
        assert first is not None
        assert second is not None
        degraded = first(image)
        assert torch.equal(degraded, second(image))
        assert degraded.shape == image.shape
        assert not torch.equal(degraded, image)


@pytest.mark.parametrize("name", ["", "rainbow@3", "gaussian_much", "fog@hard", "fog"])
def test_unknown_conditions_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        condition(name)
