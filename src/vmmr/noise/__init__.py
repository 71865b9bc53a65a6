"""Clean to degraded, batched, on the tensor's device: single corruptions (`OPS`) and what training draws from."""

from __future__ import annotations

from vmmr.noise.corruption import Op
from vmmr.noise.ops import HELD_OUT_OPS, OPS, TRAIN_OPS
from vmmr.noise.training import (
    GaussianNoise,
    PublishedNoise,
    StrongNoise,
    TrainingNoise,
    augmixed,
    clean,
    published,
    varied,
)

__all__ = [
    "HELD_OUT_OPS",
    "OPS",
    "TRAINING_NOISE",
    "TRAIN_OPS",
    "GaussianNoise",
    "Op",
    "PublishedNoise",
    "StrongNoise",
    "TrainingNoise",
    "augmixed",
    "clean",
    "published",
    "varied",
]

TRAINING_NOISE: dict[str, TrainingNoise] = {
    "augmix": augmixed,
    "gaussian": GaussianNoise(),
    "none": clean,
    "published": published,
    "strong": StrongNoise(),
    "varied": varied,
}
