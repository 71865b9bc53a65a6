"""What the package imagecorruptions 1.1.2 does to eight rendered vehicles: writes corruption_statistics.json beside it.

    pip install --target other imagecorruptions==1.1.2 scikit-image opencv-python-headless
    PYTHONPATH=src:other python tests/reference/corruption_statistics.py

The package is the ImageNet-C of Hendrycks and Dietterich (2019) for images of any size. It drags OpenCV along and was
written for libraries of 2019, hence the stand-ins below; `tests/noise/test_benchmark.py` compares with what it said.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from PIL import Image

from vmmr.data.rendered import World, draw

__all__ = ["DRAWS", "NAMES", "PICTURES", "SIZE", "pictures", "statistics"]

SIZE = 224
PICTURES = 8
DRAWS = 2
"""Passes over the pictures, each with its own draws."""

NAMES = {
    "brightness": "brightness",
    "contrast": "contrast",
    "defocus": "defocus_blur",
    "elastic": "elastic_transform",
    "fog": "fog",
    "frost": "frost",
    "gaussian": "gaussian_noise",
    "gaussian_blur": "gaussian_blur",
    "glass_blur": "glass_blur",
    "impulse": "impulse_noise",
    "jpeg": "jpeg_compression",
    "motion_blur": "motion_blur",
    "pixelate": "pixelate",
    "saturate": "saturate",
    "shot": "shot_noise",
    "snow": "snow",
    "spatter": "spatter",
    "speckle": "speckle_noise",
    "zoom_blur": "zoom_blur",
}
"""Our names to the package's."""


def pictures() -> npt.NDArray[np.uint8]:
    """Rendered vehicles, [PICTURES, SIZE, SIZE, 3]."""
    drawn: npt.NDArray[np.uint8] = draw(World(), PICTURES, size=SIZE, seed=7)["image"]
    return drawn


def statistics(noisy: npt.NDArray[np.floating], clean: npt.NDArray[np.floating]) -> dict[str, float]:
    """Of images [N, H, W, 3] in [0, 1]: PSNR in dB, and the mean and the standard deviation of noisy - clean.

    All three are means over the images of one value an image.
    """
    change = (noisy - clean).reshape(len(clean), -1)
    return {
        "psnr": float(np.mean(-10 * np.log10(np.mean(change**2, axis=1)))),
        "mean": float(np.mean(change.mean(axis=1))),
        "std": float(np.mean(change.std(axis=1))),
    }


def _package() -> ModuleType:
    """imagecorruptions among the libraries of today."""
    import skimage.filters

    resources = ModuleType("pkg_resources")
    resources.resource_filename = lambda package, path: str(files(package.partition(".")[0]) / path)  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = resources
    sys.modules["scipy.ndimage.interpolation"] = scipy.ndimage
    vars(np)["float_"] = np.float64
    from imagecorruptions import corruptions

    def gaussian(image, sigma, multichannel=False, **how):  # type: ignore[no-untyped-def]
        return skimage.filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **how)

    corruptions.gaussian = gaussian
    return corruptions


def _spread(package: ModuleType, severity: int) -> float:
    """Standard deviation in pixels, along its direction, of what motion blur makes of a point."""
    point = np.zeros((SIZE, SIZE, 3), np.uint8)
    point[SIZE // 2, SIZE // 2] = 255
    light = package.motion_blur(point, severity)[..., 0]
    rows, columns = np.indices(light.shape)
    moments = np.cov(np.stack([rows.ravel(), columns.ravel()]), aweights=light.ravel(), ddof=0)
    return round(float(np.sqrt(np.linalg.eigvalsh(moments)[-1])), 3)


def main() -> None:
    """Write the table."""
    package = _package()
    clean = pictures()
    table: dict[str, Any] = {"motion_blur_spread": [_spread(package, severity) for severity in range(1, 6)]}
    for ours, theirs in NAMES.items():
        np.random.seed(0)  # noqa: NPY002  # the package draws from numpy's global state
        rows = []
        for severity in range(1, 6):
            noisy = [
                np.asarray(getattr(package, theirs)(Image.fromarray(image), severity), dtype=np.float64) / 255
                for image in np.concatenate([clean] * DRAWS)
            ]
            said = statistics(np.stack(noisy), np.concatenate([clean] * DRAWS) / 255)
            rows.append({name: round(value, 4) for name, value in said.items()})
        table[ours] = rows
        print(ours, *(row["psnr"] for row in rows))
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    Path(__file__).with_suffix(".json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
