from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from vmmr.noise.axes import along_axes, area, between, smoothing


def test_each_image_has_its_own_matrices() -> None:
    g = torch.Generator().manual_seed(0)
    x, rows, columns = (torch.rand(*s, generator=g) for s in ((2, 3, 4, 5), (2, 6, 4), (2, 7, 5)))
    out = along_axes(x, rows, columns)
    for i in range(2):
        for c in range(3):
            torch.testing.assert_close(out[i, c], rows[i] @ x[i, c] @ columns[i].T)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.7, 9.0])
@pytest.mark.parametrize("truncate", [3.0, 4.0])
def test_smoothing_is_scipys(sigma: float, truncate: float) -> None:
    x = np.random.default_rng(0).random(23)
    expected = ndimage.gaussian_filter1d(x, sigma, truncate=truncate, mode="nearest")
    # A second sigma in the batch changes nothing for the first.
    matrices = smoothing(23, torch.tensor([sigma, 5.0], dtype=torch.float64), truncate)
    np.testing.assert_allclose(matrices[0].numpy() @ x, expected, atol=1e-12)


def test_area_is_torchs_where_sizes_divide() -> None:
    x = torch.rand(1, 1, 24, generator=torch.Generator().manual_seed(0))
    matrix = area(24, torch.tensor([8.0]))[0]
    torch.testing.assert_close(matrix[:8] @ x[0, 0], F.interpolate(x, size=8, mode="area")[0, 0])
    assert matrix[8:].count_nonzero() == 0


def test_between_is_numpys_interpolation() -> None:
    x, at = np.random.default_rng(0).random(9), np.linspace(0, 8, 31)
    matrix = between(torch.from_numpy(at)[None], 9)[0]
    np.testing.assert_allclose(matrix.numpy() @ x, np.interp(at, np.arange(9), x), atol=1e-12)
