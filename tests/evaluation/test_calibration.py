"""Calibration error and bins against loops, and temperatures that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import DataError
from vmmr.evaluation.calibration import (
    BINS,
    calibration_error,
    confidences,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)


def _naive(confidence: list[float], right: list[bool]) -> float:
    gap = 0.0
    for k in range(BINS):
        own = [i for i, p in enumerate(confidence) if k / BINS <= p < (k + 1) / BINS]
        if own:
            sure = sum(confidence[i] for i in own) / len(own)
            gap += len(own) / len(right) * abs(sure - sum(right[i] for i in own) / len(own))
    return gap


def _drawn(images: int, classes: int, seed: int, temperature: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Logits whose softmax at this temperature is the probability of the labels drawn with them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels.numpy()


@given(st.integers(1, 200), st.integers(2, 9), st.integers(0, 1000))
def test_error_and_bins_against_a_loop(images: int, classes: int, seed: int) -> None:
    logits, labels = _drawn(images, classes, seed)
    confidence, right = confidences(logits), logits.argmax(1) == torch.from_numpy(labels)
    assert calibration_error(confidence, right) == pytest.approx(_naive(confidence.tolist(), right.tolist()), abs=1e-5)
    bins = reliability_bins(confidence, right)
    assert [(b["low"], b["high"]) for b in bins] == [(k / BINS, (k + 1) / BINS) for k in range(BINS)]
    assert sum(b["share"] for b in bins) == pytest.approx(1)
    full = [b for b in bins if b["share"]]
    assert sum(b["share"] * abs(b["confidence"] - b["accuracy"]) for b in full) == pytest.approx(
        calibration_error(confidence, right), abs=1e-5
    )
    assert sum(b["share"] * b["accuracy"] for b in full) == pytest.approx(right.double().mean().item())
    assert all(b["low"] - 1e-6 <= b["confidence"] <= b["high"] for b in full)
    assert all(b["confidence"] is None and b["accuracy"] is None for b in bins if not b["share"])


def test_a_sure_answer_is_in_the_last_bin() -> None:
    logits = torch.tensor([[200.0, 0.0], [200.0, 0.0]])
    confidence = confidences(logits)
    bins = reliability_bins(confidence, torch.tensor([True, False]))
    assert bins[-1]["share"] == 1
    assert calibration_error(confidence, torch.tensor([True, False])) == pytest.approx(0.5)
    assert calibration_error(confidence, torch.tensor([True, True])) == pytest.approx(0, abs=1e-6)


def test_confidence_against_the_definition() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    powers = np.exp(np.array([1.0, 2.0, 4.0]) / 2.5)
    assert confidences(logits, 2.5).item() == pytest.approx(powers[2] / powers.sum())


def test_likelihood_against_the_definition() -> None:
    logits, labels = _drawn(20, 4, 0)
    naive = [-float(row[label]) for row, label in zip((logits.double() / 1.7).log_softmax(1), labels, strict=True)]
    assert negative_log_likelihood(logits, labels, 1.7) == pytest.approx(np.mean(naive))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = _drawn(20_000, 5, 1, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    right = logits.argmax(1) == torch.from_numpy(labels)
    assert calibration_error(confidences(logits, found), right) < 0.02
    if temperature != 1:
        assert calibration_error(confidences(logits), right) > 0.05


@settings(deadline=None)
@given(st.integers(0, 100), st.floats(0.3, 5))
def test_the_fit_scales_with_the_logits_and_is_a_minimum(seed: int, scale: float) -> None:
    logits, labels = _drawn(300, 4, seed)
    found = fit_temperature(logits, labels)
    assert fit_temperature(logits * scale, labels) == pytest.approx(found * scale, rel=1e-3)
    best = negative_log_likelihood(logits, labels, found)
    assert best <= min(negative_log_likelihood(logits, labels, found * f) for f in (0.9, 1.1)) + 1e-9


def test_without_mistakes_the_temperature_stays_and_without_images_there_is_none() -> None:
    assert fit_temperature(torch.eye(4), np.arange(4)) == 1
    with pytest.raises(DataError, match="validation images"):
        fit_temperature(torch.zeros(0, 4), np.zeros(0, dtype=np.int64))
