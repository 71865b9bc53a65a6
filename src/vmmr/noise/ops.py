"""All corruptions, and which of them training may draw from.

Levels 1 to 5 follow ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261) where it has the corruption;
between whole levels the constants are interpolated. Lengths in pixels are meant for images of 224 px and scale with
the shorter side; noise is per pixel at every size, and compression keeps its blocks. Everything runs batched on the
tensor's device and repeats itself given the same generator.
"""

from __future__ import annotations

from vmmr.noise.blur import defocus, gaussian_blur, glass_blur, motion_blur, travel_blur, zoom_blur
from vmmr.noise.codec import h264, jpeg
from vmmr.noise.colour import brightness, contrast, saturate
from vmmr.noise.corruption import Op
from vmmr.noise.resample import downscale, elastic, interlace, pixelate
from vmmr.noise.sensor import gaussian, impulse, low_light, shot, speckle
from vmmr.noise.weather import fog, frost, rain, snow, spatter

__all__ = ["HELD_OUT_OPS", "OPS", "TRAIN_OPS"]

OPS: dict[str, Op] = {
    "brightness": brightness,
    "contrast": contrast,
    "defocus": defocus,
    "downscale": downscale,
    "elastic": elastic,
    "fog": fog,
    "frost": frost,
    "gaussian": gaussian,
    "gaussian_blur": gaussian_blur,
    "glass_blur": glass_blur,
    "h264": h264,
    "impulse": impulse,
    "interlace": interlace,
    "jpeg": jpeg,
    "low_light": low_light,
    "motion_blur": motion_blur,
    "pixelate": pixelate,
    "rain": rain,
    "saturate": saturate,
    "shot": shot,
    "snow": snow,
    "spatter": spatter,
    "speckle": speckle,
    "travel_blur": travel_blur,
    "zoom_blur": zoom_blur,
}

TRAIN_OPS = ("low_light", "defocus", "motion_blur", "shot", "gaussian", "impulse", "downscale", "jpeg")
"""What training may draw from, in the order in which a camera adds them: light, optics, sensor, transmission."""

HELD_OUT_OPS = tuple(name for name in OPS if name not in TRAIN_OPS)
"""What training never sees, so that a benchmark can ask for the unknown."""
