from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from vmmr.noise.affine import BORDERS, affine_warp, fold, imgaug_matrix

# scipy's names: its "reflect" repeats the edge pixel and its "mirror" does not, against numpy and skimage.
SCIPY = {
    "constant": "grid-constant",
    "edge": "nearest",
    "symmetric": "reflect",
    "reflect": "mirror",
    "wrap": "grid-wrap",
}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("border", range(1, len(BORDERS)))
def test_fold_is_numpys_padding(size: int, border: int) -> None:
    index = torch.arange(-7, size + 7)
    expected = np.pad(np.arange(size), 7, mode=BORDERS[border])
    np.testing.assert_array_equal(fold(index, size, torch.tensor(border)), expected)


def _sources(n: int, height: int, width: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return imgaug_matrix(
        0.8 + 0.4 * torch.rand(n, 2, generator=g, dtype=torch.float64),
        (torch.rand(n, 2, generator=g, dtype=torch.float64) - 0.5) * torch.tensor([width, height]),
        (torch.rand(n, generator=g, dtype=torch.float64) - 0.5),
        (torch.rand(n, generator=g, dtype=torch.float64) - 0.5),
        height=height,
        width=width,
    )


@pytest.mark.parametrize("bilinear", [False, True])
def test_warp_is_scipys_for_every_border_in_one_batch(bilinear: bool) -> None:
    height, width, n = 13, 17, len(BORDERS)
    x = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source = _sources(n, height, width)
    fill = torch.linspace(0, 1, n, dtype=torch.float64) + 0.25
    out = affine_warp(x, source, bilinear=torch.full((n,), bilinear), border=torch.arange(n), fill=fill)

    rows, columns = np.mgrid[:height, :width]
    for i, border in enumerate(BORDERS):
        a = source[i].numpy()
        at_column = a[0, 0] * columns + a[0, 1] * rows + a[0, 2]
        at_row = a[1, 0] * columns + a[1, 1] * rows + a[1, 2]
        for channel in range(3):
            expected = ndimage.map_coordinates(
                x[i, channel].numpy(), [at_row, at_column], order=int(bilinear), mode=SCIPY[border], cval=fill[i].item()
            )
            np.testing.assert_allclose(out[i, channel].numpy(), expected, atol=1e-9, err_msg=border)


def test_interpolation_is_chosen_per_image() -> None:
    x = torch.tensor([0.0, 1.0]).expand(2, 1, 1, 2)
    third = torch.tensor([[1.0, 0.0, 0.3], [0.0, 1.0, 0.0]]).expand(2, 2, 3)
    how = {"border": torch.ones(2, dtype=torch.long), "fill": torch.zeros(2)}
    out = affine_warp(x, third, bilinear=torch.tensor([False, True]), **how)
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([0.0, 0.3]))


def test_identity_matrix_gives_the_image_bit_for_bit() -> None:
    x = torch.rand(5, 3, 9, 7)
    eye = torch.eye(2, 3).expand(5, 2, 3)
    for bilinear in (False, True):
        how = {"bilinear": torch.full((5,), bilinear), "border": torch.arange(5), "fill": torch.zeros(5)}
        assert torch.equal(affine_warp(x, eye, **how), x)


def _skimage_0_18(*, scale=(1.0, 1.0), rotation=0.0, shear=0.0, translation=(0.0, 0.0)) -> np.ndarray:  # type: ignore[no-untyped-def]
    sx, sy = scale
    return np.array(
        [
            [sx * math.cos(rotation), -sy * math.sin(rotation + shear), translation[0]],
            [sx * math.sin(rotation), sy * math.cos(rotation + shear), translation[1]],
            [0, 0, 1],
        ]
    )


def test_matrix_is_imgaugs_chain_of_six_inverted() -> None:
    height, width = 30, 44
    scale, shift, rotate, shear = (0.9, 1.15), (3.5, -6.25), math.radians(12), math.radians(-9)
    quarter = math.pi / 2
    centre = ((width - 1) / 2, (height - 1) / 2)
    chain = [
        _skimage_0_18(translation=(-centre[0], -centre[1])),
        _skimage_0_18(rotation=-quarter),
        _skimage_0_18(shear=shear),
        _skimage_0_18(rotation=quarter),
        _skimage_0_18(scale=scale, rotation=rotate, shear=shear, translation=shift),
        _skimage_0_18(translation=centre),
    ]
    forward = np.eye(3)
    for step in chain:
        forward = step @ forward
    ours = imgaug_matrix(
        torch.tensor([scale], dtype=torch.float64),
        torch.tensor([shift], dtype=torch.float64),
        torch.tensor([rotate], dtype=torch.float64),
        torch.tensor([shear], dtype=torch.float64),
        height=height,
        width=width,
    )
    np.testing.assert_allclose(ours[0].numpy(), np.linalg.inv(forward)[:2], atol=1e-10)


def test_a_positive_angle_turns_the_picture_clockwise() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 4] = 1
    zero = torch.zeros(1)
    quarter = imgaug_matrix(torch.ones(1, 2), torch.zeros(1, 2), zero + math.pi / 2, zero, height=5, width=5)
    how = {"bilinear": torch.tensor([False]), "border": torch.tensor([0]), "fill": zero}
    assert affine_warp(x, quarter, **how)[0, 0].nonzero().tolist() == [[4, 2]]
