from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vmmr.noise import OPS


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_downscale_by_an_exact_half_is_area_then_bilinear() -> None:
    # Severity 1 2/3: a factor of 0.6 - 0.15 * 2 / 3 = 0.5.
    x = torch.rand(2, 3, 32, 48)
    expected = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), size=(32, 48), mode="bilinear")
    torch.testing.assert_close(OPS["downscale"](x, 1 + 2 / 3), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.6), (3, 0.33), (5, 0.18)])
def test_downscale_to_any_size_is_area_then_bilinear(severity: float, factor: float) -> None:
    x = torch.rand(1, 3, 50, 37)
    small = (round(50 * factor), round(37 * factor))
    # Fractional areas on a grid that is a multiple of both sizes.
    fine = x.repeat_interleave(small[0], 2).repeat_interleave(small[1], 3)
    cells = F.avg_pool2d(fine, (50, 37))
    assert cells.shape[-2:] == small
    expected = F.interpolate(cells, size=(50, 37), mode="bilinear")
    torch.testing.assert_close(OPS["downscale"](x, severity), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.6), (2, 0.5), (3, 0.4), (4, 0.3), (5, 0.25)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 224)])
def test_pixelate_is_pillows_box_and_nearest(severity: int, factor: float, height: int, width: int) -> None:
    pixels = torch.randint(0, 256, (height, width), generator=_generator(), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    small = image.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    expected = np.array(small.resize((width, height), Image.Resampling.NEAREST))
    ours = OPS["pixelate"](pixels.expand(1, 3, height, width) / 255, severity)[0, 0] * 255
    # Pillow rounds after each axis. (Elsewhere a centre may lie on the edge of two cells; it asks its rounding then.)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1.01)


def test_interlace_moves_every_other_row_and_nothing_else() -> None:
    x = torch.rand(6, 3, 112, 112, generator=_generator())
    out = OPS["interlace"](x, 4, generator=_generator())
    assert torch.equal(out[:, :, ::2], x[:, :, ::2])
    # Level 4 is 8 px at 224 px: 4 px here, to the one side or the other.
    left = torch.cat([x[..., 4:], x[..., -1:].expand(-1, -1, -1, 4)], 3)
    right = torch.cat([x[..., :1].expand(-1, -1, -1, 4), x[..., :-4]], 3)
    sides = [
        [torch.allclose(one[:, 1::2], moved[:, 1::2], atol=1e-6) for moved in (a, b)]
        for one, a, b in zip(out, left, right, strict=True)
    ]
    assert sorted(map(sum, sides)) == [1] * 6
    assert len({tuple(side) for side in sides}) == 2


def test_elastic_moves_smoothly_and_as_far_as_published() -> None:
    ramp = torch.linspace(0, 1, 224).expand(8, 3, 224, 224).contiguous()
    moved = (OPS["elastic"](ramp, 5, generator=_generator()) - ramp)[:, 0, 20:-20, 20:-20] * 223
    # U(-1.12, 1.12) px has a deviation of 1.12 / sqrt 3; smoothing with 2.24 px leaves 1 / (2 sqrt(pi) 2.24) of it.
    expected = 30 * 1.12 / 3**0.5 / (2 * np.pi**0.5 * 2.24)
    assert moved.std().item() == pytest.approx(expected, rel=0.05)
    assert moved.diff(dim=2).std() < 0.4 * moved.std()


def test_elastic_moves_small_pictures_by_the_same_part() -> None:
    deviations = []
    for side in (96, 192):
        ramp = torch.linspace(0, 1, side).expand(12, 3, side, side).contiguous()
        out = OPS["elastic"](ramp, 3, generator=_generator())
        deviations.append((out - ramp)[..., 12:-12, 12:-12].std().item())
    assert deviations[0] == pytest.approx(deviations[1], rel=0.15)


def test_resizing_keeps_a_flat_picture() -> None:
    flat = torch.full((2, 3, 40, 33), 0.3)
    for name in ("downscale", "elastic", "interlace", "pixelate"):
        torch.testing.assert_close(OPS[name](flat, 4.3, generator=_generator()), flat, atol=1e-5, rtol=0)
