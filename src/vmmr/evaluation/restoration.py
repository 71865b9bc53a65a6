"""How much better than the corrupted image itself the restored one is: PSNR and SSIM of the decoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vmmr.torchvision_ops  # noqa: F401  (before torchmetrics)
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.evaluation.classify import views
from vmmr.evaluation.robustness import Degrade
from vmmr.models import ProgressiveNetwork
from vmmr.models.backbone import DEPTHS

from torchmetrics.functional.image import (  # isort: skip
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

__all__ = ["likeness", "restoration"]

_MOST = 100.0


def likeness(image: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """psnr in dB and ssim, [B] each, of images [B, 3, H, W] against clean ones, both in [-1, 1] and cut to it.

    Equal images have infinite PSNR; more than 100 dB count as 100. SSIM has the Gaussian window of Wang et al. 2004.
    """
    shown, truth = (((x + 1) / 2).clamp(0, 1) for x in (image, clean))
    psnr = peak_signal_noise_ratio(shown, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(shown, truth, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {"psnr": psnr.clamp(max=_MOST), "ssim": ssim.reshape(-1)}


@torch.no_grad()
def restoration(
    network: ProgressiveNetwork,
    pixels: Pixels,
    preprocess: Preprocess,
    degrade: Degrade,
    *,
    rows: NDArray[np.int64],
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Mean PSNR (dB) and SSIM over the images `rows`, corrupted and restored, against the clean image.

    Returns {"psnr_noisy", "psnr_restored", "ssim_noisy", "ssim_restored", "depths"}: what is restored comes from the
    deepest decoder; depths lists {"psnr", "ssim"} of all three, shallow first. The network must be in evaluation mode.
    """
    parts: dict[str, list[dict[str, Tensor]]] = {}
    for clean, noisy in views(pixels, preprocess, rows=rows, device=device, batch_size=batch_size, degrade=degrade):
        maps = network.backbone(noisy)
        parts.setdefault("noisy", []).append(likeness(noisy, clean))
        for depth in DEPTHS:
            restored = network.restore(noisy, maps[f"features_{depth}"], depth)
            parts.setdefault(f"{depth}", []).append(likeness(restored, clean))
    mean = {
        name: {key: torch.cat([part[key] for part in found]).mean().item() for key in ("psnr", "ssim")}
        for name, found in parts.items()
    }
    deepest = mean[str(DEPTHS[-1])]
    return {
        "psnr_noisy": mean["noisy"]["psnr"],
        "psnr_restored": deepest["psnr"],
        "ssim_noisy": mean["noisy"]["ssim"],
        "ssim_restored": deepest["ssim"],
        "depths": [mean[str(depth)] for depth in DEPTHS],
    }
