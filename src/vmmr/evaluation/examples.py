"""Pictures for a page: the same image clean, degraded and restored, with what each model says; and single images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vmmr.data.manifest import Manifest
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.robustness import condition
from vmmr.export.bundle import Bundle
from vmmr.models import ProgressiveNetwork
from vmmr.training.samples import open_side

__all__ = ["SHOWN", "Example", "Reply", "example_strips", "picture_uri", "pictures_of"]

SHOWN = ("gaussian_0.4", "low_light@3", "motion_blur@3", "impulse@3", "rain@3", "fog@3")
"""The conditions of the strips: noise, light, optics, sensor and weather."""


@dataclass(frozen=True)
class Reply:
    """What a model said: a class name, its probability, and whether it is the right one."""

    name: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A picture through a condition: uint8 [H, W, 3] clean, noisy and, where a model has a decoder, restored; and each
    model's reply to the noisy one."""

    condition: str
    truth: str
    clean: NDArray[np.uint8]
    noisy: NDArray[np.uint8]
    restored: NDArray[np.uint8] | None
    replies: Mapping[str, Reply]

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Its two or three pictures, by what stands below them."""
        found = {"clean": self.clean, condition_title(self.condition): self.noisy}
        return found if self.restored is None else found | {"denoised": self.restored}


def picture_uri(image: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] as a PNG data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _picture(image: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] in [-1, 1] -> uint8 [H, W, 3]."""
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    found: NDArray[np.uint8] = (unit * 255).round().byte().permute(1, 2, 0).numpy()
    return found


@torch.no_grad()
def example_strips(
    bundles: Mapping[str, Bundle], manifest: Manifest, *, shown: Sequence[str] = SHOWN, seed: int = 0
) -> list[Example]:
    """Rows of the manifest at even distances, not chosen by result, each under another condition.

    bundles: by name, of one taxonomy. All see the image that the preprocessing of the last progressive one gives, or,
    where none is, of the first; the restored image is from that one's deepest decoder. Raises ManifestError for
    classes that the bundles do not know.
    """
    networks = {name: bundle.network() for name, bundle in bundles.items()}
    teachers = [name for name, network in networks.items() if isinstance(network, ProgressiveNetwork)]
    guide = (teachers or list(bundles))[-1 if teachers else 0]
    manifest, _ = bundles[guide].labelled(manifest)
    spec = replace(bundles[guide].preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = np.linspace(0, len(manifest) - 1, len(shown)).round().astype(int)
    side = open_side(manifest.select(rows), spec)
    names = manifest.taxonomy.names
    examples = []
    for k, name in enumerate(shown):
        degrade = condition(name, seed=seed + k)
        clean = spec.normalise(spec.centre_crop(side.pixels[np.array([k])]))
        noisy = clean if degrade is None else degrade(clean, np.array([k]))
        restored = None
        teacher = networks[guide]
        if isinstance(teacher, ProgressiveNetwork):
            restored = _picture(teacher.restored(noisy)[0])
        label = int(side.labels[k])
        replies = {}
        for model, network in networks.items():
            logits = bundles[model].class_scores(network.answer(noisy))
            confidence, said = (logits / bundles[model].spec.temperature).softmax(dim=1)[0].max(dim=0)
            replies[model] = Reply(names[int(said)], float(confidence), int(said) == label)
        examples.append(Example(name, names[label], _picture(clean[0]), _picture(noisy[0]), restored, replies))
    return examples


def pictures_of(paths: Iterable[str], manifest: Manifest, bundle: Bundle) -> dict[str, NDArray[np.uint8]]:
    """The rows of these paths as the network meets them, uint8 [H, W, 3] by path; paths that no row has are left out.

    paths: absolute, or from the manifest's folder.

    Raises ImageError for a file that is no acceptable image.
    """
    root = manifest.root.resolve()
    row_of = {root / path: row for row, path in reversed(list(enumerate(manifest.table["path"].to_pylist())))}
    held = [path for path in dict.fromkeys(paths) if root / path in row_of]
    if not held:
        return {}
    spec = bundle.preprocess
    pixels = spec.centre_crop(
        open_side(manifest.select([row_of[root / path] for path in held]), spec).pixels[np.arange(len(held))]
    )
    return {path: pixels[k].permute(1, 2, 0).numpy() for k, path in enumerate(held)}
