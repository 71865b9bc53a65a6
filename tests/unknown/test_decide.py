"""Thresholds are order statistics; a decision is a table that can be written down; bad pictures are told from good."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import ConfigError, DataError
from vmmr.noise.benchmark import corrupt
from vmmr.unknown import Gate, Reason, accept_threshold, decide, fit_gate
from vmmr.unknown.quality import contrast, contrast_and_detail, detail

GATE = Gate(known=1.0, vehicle=2.0, dull=0.1, soft=-1.0, noisy=0.0, shortest=32)
finite = st.floats(-100, 100, width=32)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=60), st.integers(1, 100))
def test_a_threshold_accepts_the_share_and_nothing_lower_does(values: list[float], percent: int) -> None:
    scores = torch.tensor(values)
    found = accept_threshold(scores, percent / 100)
    assert found in scores.tolist()
    accepted = sum(v <= found for v in scores.tolist())
    assert 100 * accepted >= percent * len(values)
    below = [v for v in scores.tolist() if v < found]
    assert 100 * len(below) < percent * len(values)


def test_shares_that_floats_cannot_hold_are_not_rounded_up() -> None:
    scores = torch.arange(10.0)
    assert [accept_threshold(scores, percent / 10) for percent in range(1, 11)] == scores.tolist()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1])
def test_shares_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        accept_threshold(torch.ones(3), rate)


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.tensor([0.0, torch.nan]), torch.tensor([torch.inf])])
def test_scores_that_are_none_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(DataError, match="finite"):
        accept_threshold(scores, 0.5)


def test_decisions_as_a_table() -> None:
    """Every combination of what can be said about a picture."""
    scores = {"known": 1.0, "vehicle": 1.5, "nothing": 2.5, "no number": float("nan")}
    pictures = {"good": (0.2, -0.5), "dull": (0.05, -0.5), "soft": (0.2, -1.5), "noisy": (0.2, 0.5)}
    for (score, value), sure, side, (picture, seen) in itertools.product(
        scores.items(), (True, False), (31, 32), pictures.items()
    ):
        if side < 32:
            expected = "too_small"
        elif score == "known" and sure:
            expected = "ok"
        elif picture != "good":
            expected = "low_quality"
        elif score == "known":
            expected = "unsure"
        else:
            expected = "unknown_vehicle" if score == "vehicle" else "not_a_vehicle"
        found = decide(GATE, score=value, sure=sure, side=side, contrast=seen[0], detail=seen[1])
        assert found == expected, (score, sure, side, picture)
    assert {reason.value for reason in Reason} == {
        "ok", "unsure", "unknown_vehicle", "not_a_vehicle", "low_quality", "too_small",
    }  # fmt: skip


def test_the_bounds_belong_to_the_better_side() -> None:
    edge = {"side": 32, "contrast": 0.1, "detail": -1.0}
    assert decide(GATE, score=1.0, sure=True, **edge) is Reason.OK
    assert decide(GATE, score=1.0, sure=False, **edge) is Reason.UNSURE
    assert decide(GATE, score=2.0, sure=True, **edge | {"detail": 0.0}) is Reason.UNKNOWN_VEHICLE


def test_a_gate_holds_what_it_was_fitted_for() -> None:
    random = torch.Generator().manual_seed(0)
    known, hidden = torch.randn(400, generator=random), 1 + torch.randn(400, generator=random)
    dull, edges = torch.rand(400, generator=random), torch.randn(400, generator=random)
    gate = fit_gate(known, hidden, dull, edges, rate=0.9, vehicle_rate=0.98, tail=0.05, shortest=24)
    assert (known <= gate.known).sum() == 360
    assert (hidden <= gate.vehicle).sum() == 392
    assert (dull >= gate.dull).sum() == 380
    assert (edges >= gate.soft).sum() == 380
    assert (edges <= gate.noisy).sum() == 380
    assert gate.shortest == 24
    assert Gate(**json.loads(json.dumps(asdict(gate)))) == gate
    # Where hidden classes are not stranger, what is known is a vehicle all the same.
    assert (
        fit_gate(known, known - 9, dull, edges).vehicle == fit_gate(known, known, dull, edges, vehicle_rate=0.5).known
    )


@pytest.mark.parametrize(
    "change", [{"known": float("nan")}, {"vehicle": float("inf")}, {"vehicle": 0.5}, {"noisy": -2.0}, {"shortest": -1},
               {"known": True}, {"dull": "0.1"}],
)  # fmt: skip
def test_a_gate_that_makes_no_sense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="gate"):
        Gate(**asdict(GATE) | change)


def picture(seed: int = 0) -> torch.Tensor:
    """Random pictures [4, 3, 64, 64] in [0, 1]."""
    coarse = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, 64, mode="bicubic").clamp(0, 1)


def test_contrast_and_detail_by_hand() -> None:
    image = 2 * picture() - 1
    brightness = picture().mean(dim=1).double().numpy()
    np.testing.assert_allclose(contrast(image).numpy(), brightness.std(axis=(1, 2)), rtol=1e-4)
    edges = [
        np.std([4 * b[i, j] - b[i - 1, j] - b[i + 1, j] - b[i, j - 1] - b[i, j + 1]
                for i in range(1, 63) for j in range(1, 63)])
        for b in brightness
    ]  # fmt: skip
    np.testing.assert_allclose(detail(image).numpy(), np.log(edges / brightness.std(axis=(1, 2))), rtol=1e-3)


def test_both_at_once_are_those_of_each_image_alone() -> None:
    image = torch.rand(3, 3, 8, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    light, edges = contrast_and_detail(image)
    torch.testing.assert_close(light, contrast(image))
    for place in range(3):
        assert contrast_and_detail(image[place : place + 1])[1].item() == edges[place].item()
    assert [part.shape for part in contrast_and_detail(image[:0])] == [(0,), (0,)]


def test_pixels_say_what_images_say() -> None:
    pixels = torch.randint(0, 256, (3, 9, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[2] = 77  # of one colour: no contrast, and no detail either
    image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    for found, wanted in zip(contrast_and_detail(pixels), contrast_and_detail(image), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    grey = pixels.double().mean(dim=3).numpy() / 255
    np.testing.assert_allclose(contrast(pixels), grey.std(axis=(1, 2)), rtol=1e-5, atol=1e-7)
    assert detail(pixels)[2].item() == 0


def test_contrast_and_brightness_leave_detail() -> None:
    image = 2 * picture() - 1
    torch.testing.assert_close(detail(0.3 * image + 0.1), detail(image), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(contrast(0.3 * image + 0.1), 0.3 * contrast(image))
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert contrast(flat).item() == 0
    assert detail(flat).item() == 0  # nothing over nothing: neither soft nor noisy


@pytest.mark.parametrize(
    ("name", "measure", "sign"),
    [("gaussian", detail, 1), ("impulse", detail, 1), ("defocus", detail, -1), ("motion_blur", detail, -1),
     ("downscale", detail, -1), ("contrast", contrast, -1), ("low_light", contrast, -1)],
)  # fmt: skip
def test_what_a_corruption_does_to_a_picture(name: str, measure: object, sign: int) -> None:
    clean = picture()
    bad = [corrupt(clean, name, severity, keys=torch.arange(4)) for severity in (1, 3, 5)]
    values = [measure(2 * image - 1) for image in (clean, *bad)]  # type: ignore[operator]
    assert all((sign * (later - before) > 0).all() for before, later in itertools.pairwise(values[::3]))
    assert (sign * (values[2] - values[0]) > 0).all()
