from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn

from vmmr.noise import OPS
from vmmr.noise.codec import coded


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _picture(side: int = 96, batch: int = 1) -> torch.Tensor:
    """Smooth shading with hard edges, [batch, 3, side, side]."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    shade = torch.stack([0.2 + 0.6 * columns, 0.5 + 0.4 * torch.sin(9 * rows), 0.3 + 0.5 * rows * columns])
    body = ((columns - 0.5).abs() < 0.3) & ((rows - 0.55).abs() < 0.2)
    wheels = torch.hypot((columns - 0.5).abs() - 0.2, rows - 0.75) < 0.08
    shade = torch.where(body, torch.tensor([0.8, 0.1, 0.15])[:, None, None], shade)
    return torch.where(wheels, torch.tensor(0.05), shade).expand(batch, 3, side, side).contiguous()


def _psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (3, 15), (5, 7), (0.2, 85)])
@pytest.mark.parametrize("side", [96, 101])
def test_jpeg_is_close_to_a_real_encoder(severity: float, quality: int, side: int) -> None:
    x = (_picture(side) * 255).round() / 255
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    real = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None].float() / 255
    ours = OPS["jpeg"](x, severity)
    assert abs(_psnr(ours, x).item() - _psnr(real, x).item()) < 1.0
    # Nearer to the real file than either is to the image.
    assert _psnr(ours, real).item() > _psnr(real, x).item() + 3


def test_weak_h264_is_nearly_the_image_and_strong_is_not() -> None:
    x = _picture(80)
    psnr = [_psnr(OPS["h264"](x, s, generator=_generator()), x).item() for s in (0.01, 1, 2, 3, 4, 5)]
    # Near QP 0 what is left is the halved resolution of colour.
    assert psnr[0] > 30
    assert psnr == sorted(psnr, reverse=True)
    assert psnr[-1] < psnr[1] - 5


def test_h264_keeps_what_lies_on_its_steps() -> None:
    # Mid grey is what it predicts from nothing: no residual, no block edge, no motion to be seen.
    flat = torch.full((2, 3, 48, 48), 0.5)
    torch.testing.assert_close(OPS["h264"](flat, 5, generator=_generator()), flat, atol=1e-5, rtol=0)


def test_coded_quantises_the_cosines_of_blocks() -> None:
    plane, reference = torch.rand(2, 2, 3, 24, 16, generator=_generator(), dtype=torch.float64)
    steps = torch.tensor([0.1, 0.7], dtype=torch.float64)[:, None, None, None]
    out = coded(plane, reference, steps, 1 / 6).numpy()
    for image, step in enumerate((0.1, 0.7)):
        for channel, row, column in np.ndindex(3, 3, 2):
            block = (image, channel, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            rest = dctn((plane - reference).numpy()[block], norm="ortho")
            kept = np.sign(rest) * np.floor(np.abs(rest) / step + 1 / 6) * step
            np.testing.assert_allclose(out[block], reference.numpy()[block] + idctn(kept, norm="ortho"), atol=1e-12)


def test_h264_shows_the_frame_before_where_little_changes() -> None:
    # A faint edge on grey: below a fifth of a step nothing new is coded, and the edge is where it was.
    x = torch.full((16, 3, 112, 112), 0.5)
    x[..., 56:] = 0.53
    out = OPS["h264"](x, 1, generator=_generator())
    edge = (out[:, 0, 56] > 0.515).float().argmax(1)
    assert (edge != 56).any()
    assert ((edge - 56).abs() <= 2 + 1).all()
