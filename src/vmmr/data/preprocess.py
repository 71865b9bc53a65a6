"""The one resize, crop and normalise specification: training, evaluation, export and serving share it.

It has two halves, so that training can keep pixels between them:

    uint8 [H, W, 3] --resized--> uint8 [h, w, 3] --centre_crop, normalise--> float32 [3, height, width]

(h, w) is `resized_size`, larger than (height, width) where `crop` is below 1. Calling the object does both halves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vmmr.errors import ConfigError, DataError

__all__ = ["Interpolation", "Preprocess", "Resize"]

Resize = Literal["squash", "shortest", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MAX_SIDE = 8192  # of what comes out of a resize: a specification may come from a file that others wrote


@dataclass(frozen=True)
class Preprocess:
    """From decoded pixels to what a network reads.

    height, width: the network's input, in pixels.
    resize: how an image reaches `resized_size`. "squash" stretches it, whatever its shape. "shortest" keeps the
        shape, scales until the image covers the size and cuts what sticks out, evenly on both sides. "letterbox"
        keeps the shape, scales until the image fits inside and fills the rest with the mean colour.
    crop: share of the resized side that the centre crop keeps, in (0, 1]; resized_size = (height, width) / crop,
        rounded. PMAL resizes to 550 and crops 448: crop = 448 / 550 (Liu 2024, arXiv 2401.14336).
    interpolation: "bilinear" or "bicubic", antialiased when shrinking (Pillow).
    mean, std: of R, G, B on the scale [0, 1]; output = (value / 255 - mean) / std.

    Raises ConfigError for settings that make no sense.

    >>> spec = Preprocess(height=448, width=448, crop=448 / 550)
    >>> spec.resized_size
    (550, 550)
    >>> spec(np.zeros((120, 160, 3), np.uint8)).shape
    torch.Size([3, 448, 448])
    >>> Preprocess.from_json(spec.to_json()) == spec
    True
    """

    height: int
    width: int
    resize: Resize = "squash"
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            side = getattr(self, name)
            if type(side) is not int or not 1 <= side <= _MAX_SIDE:
                raise ConfigError(f"{name} is a side in pixels", got=repr(side), do=f"pass an int in [1, {_MAX_SIDE}]")
        for name, kind in (("resize", Resize), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"no such {name}", got=repr(getattr(self, name)), do=f"choose of {get_args(kind)}")
        if not _is_number(self.crop) or not 0 < self.crop <= 1 or max(self.height, self.width) > _MAX_SIDE * self.crop:
            do = f"pass a value in (0, 1] that keeps side / crop within {_MAX_SIDE} pixels"
            raise ConfigError("crop is the share of the side that the centre crop keeps", got=repr(self.crop), do=do)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
                raise ConfigError(f"{name} needs a finite number for each of R, G, B", got=repr(values))
            object.__setattr__(self, name, tuple(map(float, values)))  # lists come from YAML and JSON
        if min(self.std) <= 0:
            raise ConfigError("std divides, so it must be above 0", got=self.std)

    def to_json(self) -> str:
        """All settings, as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Preprocess:
        """The inverse of `to_json`. Raises ConfigError unless every setting is there, and nothing else."""
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError("the preprocessing is no JSON", got=error) from error
        names = {field.name for field in fields(cls)}
        if not isinstance(settings, dict) or settings.keys() != names:
            found = sorted(settings) if isinstance(settings, dict) else type(settings).__name__
            raise ConfigError(
                "the preprocessing has missing or unknown settings", got=found, do=f"give {sorted(names)}"
            )
        return cls(**settings)

    @property
    def resized_size(self) -> tuple[int, int]:
        """(h, w) before the centre crop."""
        return round(self.height / self.crop), round(self.width / self.crop)

    @property
    def shrink_to(self) -> int:
        """What to pass to `decode`: a large JPEG may be decoded down to twice the resized side.

        The factor two leaves the antialiasing to the resize proper, so that pixels hardly change.
        """
        return 2 * max(self.resized_size)

    def resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] to uint8 [h, w, 3] of `resized_size`: the first half.

        Raises DataError where the image is of another kind or empty.
        """
        _check_image(image)
        picture = Image.fromarray(image)
        height, width = self.resized_size
        kernel = _FILTERS[self.interpolation]
        if self.resize == "squash":
            return np.array(picture.resize((width, height), kernel))
        if self.resize == "shortest":
            scale = max(width / picture.width, height / picture.height)
            left = max(0.0, (picture.width - width / scale) / 2)
            top = max(0.0, (picture.height - height / scale) / 2)
            box = (left, top, picture.width - left, picture.height - top)
            return np.array(picture.resize((width, height), kernel, box=box))
        scale = min(width / picture.width, height / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        red, green, blue = (min(max(round(255 * value), 0), 255) for value in self.mean)
        canvas = Image.new("RGB", (width, height), (red, green, blue))
        canvas.paste(picture.resize(size, kernel), ((width - size[0]) // 2, (height - size[1]) // 2))
        return np.array(canvas)

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] to uint8 [height, width, 3], resized and cropped: what a runtime takes.

        Where the image is squashed by bilinear filtering torch does it, several times as fast as Pillow: a value
        differs from that of `resized` by at most one level of 255, and hardly any does. Raises DataError as `resized`.
        """
        if self.resize != "squash" or self.interpolation != "bilinear":
            return self.cropped(self.resized(image))
        _check_image(image)
        if image.shape[:2] == self.resized_size:
            return self.cropped(image)
        pixels = torch.from_numpy(image if image.flags.writeable else image.copy())[None]
        # A batch of one whose strides say "channels last" is resized as it is, without a copy into planes and back.
        images = pixels.permute(0, 3, 1, 2)
        resized = functional.interpolate(images, self.resized_size, mode="bilinear", antialias=True)
        return np.ascontiguousarray(self.cropped(resized[0].permute(1, 2, 0).numpy()))

    def cropped(self, resized: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The middle [height, width, 3] of an image [h, w, 3] of `resized_size`, as a view."""
        top, left = (resized.shape[0] - self.height) // 2, (resized.shape[1] - self.width) // 2
        return resized[top : top + self.height, left : left + self.width]

    def centre_crop(self, images: Tensor) -> Tensor:
        """[..., h, w] to the middle [..., height, width], as a view."""
        top, left = (images.shape[-2] - self.height) // 2, (images.shape[-1] - self.width) // 2
        if top < 0 or left < 0:
            size = f"{images.shape[-2]} x {images.shape[-1]}"
            raise DataError("the images are smaller than the crop", got=size, do=f"resize to {self.resized_size} first")
        return images[..., top : top + self.height, left : left + self.width]

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std of [..., 3, H, W]: uint8 (becomes float32) or floating point in [0, 1] (keeps its type)."""
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        elif not images.is_floating_point():
            raise DataError("images are uint8 or floating point in [0, 1]", got=images.dtype)
        return (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise` on floating point: back to the scale [0, 1], not clamped."""
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """One decoded image, uint8 [H, W, 3], to float32 [3, height, width]."""
        return self.batch([image])[0]

    def batch(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Decoded images of any sizes to float32 [B, 3, height, width]."""
        pixels = torch.empty(len(images), 3, *self.resized_size, dtype=torch.uint8)
        for row, image in zip(pixels, images, strict=True):
            row.copy_(torch.from_numpy(self.resized(image)).permute(2, 0, 1))
        return self.normalise(self.centre_crop(pixels))


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError("an image is uint8 [H, W, 3]", got=f"{image.dtype} {list(image.shape)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # neither NaN nor huge


def _per_channel(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)
