from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from vmmr.noise import OPS


def _colours() -> torch.Tensor:
    """Random colours, and black, white, grey, pure and dark ones, [1, 3, 6, 10]."""
    x = torch.rand(3, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    special = [(0, 0, 0), (1, 1, 1), (0.4, 0.4, 0.4), (1, 0, 0), (0, 0, 0.3), (0.7, 0.7, 0.1)]
    x[:, : len(special)] = torch.tensor(special, dtype=torch.float64).T
    return x.view(1, 3, 6, 10)


def _by_hsv(x: torch.Tensor, change) -> np.ndarray:  # type: ignore[no-untyped-def]
    pixels = x[0].flatten(1).T.numpy()
    out = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return np.array(out).T.reshape(x.shape)


@pytest.mark.parametrize(("severity", "raise_by"), [(0.5, 0.05), (1, 0.1), (3, 0.3), (5, 0.5)])
def test_brightness_raises_the_value_alone(severity: float, raise_by: float) -> None:
    expected = _by_hsv(_colours(), lambda h, s, v: (h, s, min(v + raise_by, 1)))
    np.testing.assert_allclose(OPS["brightness"](_colours(), severity).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("severity", "factor", "extra"), [(1, 0.3, 0), (2, 0.1, 0), (3, 2, 0), (4, 5, 0.1), (4.5, 12.5, 0.15), (5, 20, 0.2)]
)
def test_saturate_changes_the_saturation_alone(severity: float, factor: float, extra: float) -> None:
    expected = _by_hsv(_colours(), lambda h, s, v: (h, min(s * factor + extra, 1), v))
    np.testing.assert_allclose(OPS["saturate"](_colours(), severity).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("severity", "factor"), [(0.5, 0.7), (1, 0.4), (5, 0.05)])
def test_contrast_shrinks_about_each_channels_mean(severity: float, factor: float) -> None:
    x = _colours().expand(2, -1, -1, -1).clone()
    x[1] = x[1] ** 2
    out = OPS["contrast"](x, severity).numpy()
    for image in range(2):
        for channel in range(3):
            values = x[image, channel].numpy()
            expected = values.mean() + factor * (values - values.mean())
            np.testing.assert_allclose(out[image, channel], expected, atol=1e-7)
