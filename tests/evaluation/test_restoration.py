"""PSNR and SSIM at their limits, and a decoder that changes nothing."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.evaluation.restoration import likeness, restoration
from vmmr.evaluation.robustness import gaussian_noise
from vmmr.models import Backbone, ProgressiveNetwork


def _pictures(count: int = 3, side: int = 32) -> torch.Tensor:
    """Smooth pictures in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") * 2 - 1


def test_equal_images_are_at_the_limit() -> None:
    found = likeness(_pictures(), _pictures())
    assert found["psnr"].tolist() == [100.0] * 3
    assert found["ssim"].tolist() == pytest.approx([1.0] * 3)


def test_psnr_against_its_definition_image_by_image() -> None:
    clean = _pictures() * 0.5
    noisy = clean + 0.2 * torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1, 1)
    assert likeness(noisy, clean)["psnr"].tolist() == pytest.approx(
        [-20 * math.log10(s) for s in (0.1, 0.05, 0.025)], abs=1e-3
    )


def test_more_noise_is_less_like_and_what_cannot_be_shown_does_not_count() -> None:
    clean = _pictures()
    found = [likeness(gaussian_noise(clean, np.arange(3), sigma=s), clean) for s in (0.05, 0.2, 0.8)]
    for key in ("psnr", "ssim"):
        means = [f[key].mean().item() for f in found]
        assert means == sorted(means, reverse=True)
    white = torch.ones(1, 3, 16, 16)
    assert likeness(white + 5, white)["psnr"].item() == 100


class _Half(torch.nn.Module):
    """Takes half of the difference to the clean pictures away."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, noisy: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return (noisy + self.clean) / 2


def test_decoders_against_the_identity(tmp_path: Path) -> None:
    spec = Preprocess(height=32, width=32)
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for path, picture in zip(paths, _pictures() * 0.5, strict=True):
        Image.fromarray(((picture + 1) * 127.5).byte().permute(1, 2, 0).numpy()).save(path)
    pixels = Pixels(paths, spec)
    clean = spec.normalise(pixels[np.arange(3)])
    network = ProgressiveNetwork(Backbone("test_resnet", 4), 4, "lean").eval()  # lean decoders start as the identity
    rows = np.array([0, 2])

    def shift(image: torch.Tensor, keys: NDArray[np.int64]) -> torch.Tensor:
        return image + 0.2

    found = restoration(network, pixels, spec, shift, rows=rows, batch_size=1)
    assert found["psnr_noisy"] == pytest.approx(20, abs=1e-3)
    assert found["psnr_restored"] == pytest.approx(found["psnr_noisy"], abs=1e-3)
    assert found["ssim_restored"] == pytest.approx(found["ssim_noisy"], abs=1e-5)
    network.decoders[0] = _Half(clean[rows])
    found = restoration(network, pixels, spec, shift, rows=rows)
    assert [depth["psnr"] for depth in found["depths"]] == pytest.approx([26.0206, 20, 20], abs=1e-3)
    assert found["depths"][0]["ssim"] > found["ssim_noisy"]
    noisy = restoration(network, pixels, spec, partial(gaussian_noise, sigma=0.1), rows=rows)
    assert noisy["psnr_noisy"] == pytest.approx(26, abs=0.5)  # 20 log10(2 / 0.1), a little cut off
