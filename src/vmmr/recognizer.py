"""The face: a bundle that answers.

>>> import vmmr                                             # doctest: +SKIP
>>> recognizer = vmmr.load("runs/student/bundle")           # doctest: +SKIP
>>> print(recognizer("car.jpg"))                            # doctest: +SKIP
Audi S4 Sedan 2012 (93.1%)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vmmr.answer import Answer, Candidate
from vmmr.data.pixels import read_pixels, thread_map
from vmmr.errors import ImageError, VmmrError
from vmmr.export.bundle import Bundle, read_bundle
from vmmr.models import ProgressiveNetwork

__all__ = ["Picture", "Recognizer", "load", "recognize"]

Picture = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
"""A path, the bytes of a file, an array uint8 [H, W, 3] or [H, W], or a Pillow image."""


class Recognizer:
    """Pictures in, answers out.

    >>> import inspect
    >>> list(inspect.signature(Recognizer.__call__).parameters)
    ['self', 'pictures', 'top']
    """

    def __init__(self, bundle: Bundle, *, device: torch.device | str = "cpu", batch_size: int = 32) -> None:
        self.taxonomy = bundle.taxonomy
        # The network rescales from [-1, 1] to the backbone's own statistics.
        self.preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.temperature = bundle.spec.temperature
        self.network = bundle.network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.batch_size = torch.device(device), batch_size

    @overload
    def __call__(self, pictures: Picture, *, top: int = 5) -> Answer: ...

    @overload
    def __call__(self, pictures: list[Picture] | tuple[Picture, ...], *, top: int = 5) -> list[Answer]: ...

    def __call__(
        self, pictures: Picture | list[Picture] | tuple[Picture, ...], *, top: int = 5
    ) -> Answer | list[Answer]:
        """One answer a picture, with up to `top` candidates: the answer itself and its alternatives.

        Raises ImageError for anything that is no acceptable picture; see `answers` to go on past bad ones.
        """
        if isinstance(pictures, list | tuple):
            found = self.answers(pictures, top=top)
            for answer in found:
                if isinstance(answer, VmmrError):
                    raise answer
            return [answer for answer in found if isinstance(answer, Answer)]
        return self([pictures], top=top)[0]

    def answers(self, pictures: Sequence[Picture], *, top: int = 5) -> list[Answer | VmmrError]:
        """As calling, but a picture that cannot be read yields its error in its place."""
        found: list[Answer | VmmrError] = []
        for start in range(0, len(pictures), self.batch_size):
            part = pictures[start : start + self.batch_size]
            read = thread_map(lambda i, part=part: self._read(part[i]), len(part))  # type: ignore[misc]
            good = [pixels for pixels in read if isinstance(pixels, np.ndarray)]
            answered = iter(self._answer(good, top) if good else [])
            found += [next(answered) if isinstance(pixels, np.ndarray) else pixels for pixels in read]
        return found

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> probabilities [B, classes] on the CPU, at the bundle's temperature."""
        image = image.to(self.device).contiguous(memory_format=torch.channels_last)
        if isinstance(self.network, ProgressiveNetwork):
            logits = self.network.answer(image)
        else:
            logits = self.network(image)["logits_0"]
        return (logits.float() / self.temperature).softmax(dim=1).cpu()

    def _read(self, picture: object) -> NDArray[np.uint8] | VmmrError:
        try:
            if isinstance(picture, np.ndarray):
                image = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)
                return self.preprocess.resized(image)
            if isinstance(picture, Image.Image):
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                return self.preprocess.resized(np.asarray(upright))
            if isinstance(picture, str | bytes | os.PathLike):
                return read_pixels(picture, self.preprocess)
        except VmmrError as error:
            return error
        return ImageError("this is no picture", got=type(picture).__name__, do="pass a path, bytes, array or image")

    def _answer(self, pixels: list[NDArray[np.uint8]], top: int) -> list[Answer]:
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        image = self.preprocess.normalise(self.preprocess.centre_crop(batch))
        best = self.probabilities(image).topk(min(max(top, 1), len(self.taxonomy)), dim=1)
        return [
            self._ranked(values, labels)
            for values, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _ranked(self, values: list[float], labels: list[int]) -> Answer:
        candidates = []
        for value, label in zip(values, labels, strict=True):
            item = self.taxonomy.classes[label]
            candidates.append(Candidate(item.make, item.model, item.year, value))
        first = candidates[0]
        return Answer(first.make, first.model, first.year, first.confidence, tuple(candidates[1:]))


def load(bundle: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Recognizer:
    """The recognizer of a bundle folder. Raises BundleError for one that is incomplete, altered or hostile."""
    return Recognizer(read_bundle(bundle), device=device)


def recognize(picture: str | Path, *, bundle: str | os.PathLike[str], top: int = 5) -> Answer:
    """One picture, one answer; to ask more than once, `load` the bundle and keep it."""
    return load(bundle)(picture, top=top)
