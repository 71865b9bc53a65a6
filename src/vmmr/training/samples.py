"""From a manifest to what a run learns from and is judged by: leakage-free, decoded, labelled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmmr.config import TrainConfig
from vmmr.data.check import duplicate_groups
from vmmr.data.labels import attribute_values, level_labels
from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.data.splits import carve_validation, drop_test_duplicates, require_no_leakage, split_hash, training_view
from vmmr.errors import DataError
from vmmr.levels import Levels
from vmmr.taxonomy import TREE, Taxonomy

__all__ = ["Maps", "Samples", "Side", "open_samples", "open_side"]


@dataclass(frozen=True)
class Side:
    """Images of one split: decoded pixels, and labels int64 [N].

    by_level: labels at every level, where there are levels; `labels` are those of the finest one of the tree. -1 where
    an image does not tell.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    by_level: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


class Maps:
    """What frozen layers made of views of each image, float16 [N, V, C, h, w], asked for as `Pixels` are."""

    def __init__(self, held: Tensor) -> None:
        self._held = held

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, indices: NDArray[np.integer]) -> Tensor:
        return self._held[torch.from_numpy(indices)]


@dataclass(frozen=True)
class Samples:
    """What a run learns from (train) and selects by (validation). Test images are in neither.

    dropped: rows left out of both because the same picture is a test image; splits: hash of who is where; levels: what
    is learned, where it is more than classes; maps: of train and of validation, where the first layers are frozen, see
    `vmmr.training.frozen`.
    """

    train: Side
    validation: Side
    taxonomy: Taxonomy
    preprocess: Preprocess
    dropped: int
    splits: str
    levels: Levels | None = None
    maps: tuple[Maps, Maps] | None = None


def open_side(
    manifest: Manifest,
    preprocess: Preprocess,
    *,
    levels: Levels | None = None,
    memory_gib: float = 4.0,
    progress: bool = False,
) -> Side:
    """Decode the rows of a manifest, cropped to their boxes where they have one, and label them, at every level where
    there are levels."""
    by_level = {} if levels is None else level_labels(manifest, levels)
    pixels = Pixels(
        [Path(p) for p in manifest.path_list()],
        preprocess,
        boxes=manifest.boxes,
        memory_gib=memory_gib,
        progress=progress,
    )
    return Side(pixels, manifest.labels if levels is None else by_level[levels.finest], by_level)


def open_samples(
    manifest: Manifest,
    config: TrainConfig,
    *,
    taxonomy: Taxonomy | None = None,
    levels: Levels | None = None,
    progress: bool = False,
) -> Samples:
    """Carve validation from the training rows (unless there is one), keep duplicates together, refuse leaks, decode.

    A training row whose picture is also a test row is left out and counted. taxonomy: that of a teacher; otherwise it
    is built from the rows; levels likewise, where the settings name some. Raises DataError when nothing is left to
    train on or to select by, LeakageError when a test image would reach training.
    """
    if taxonomy is not None and not config.levels:
        manifest = manifest.with_taxonomy(taxonomy)
    groups = duplicate_groups([Path(p) for p in manifest.path_list()], near=config.near_duplicates, progress=progress)
    unused = int((manifest.splits == "").sum()) if (manifest.splits == "train").any() else 0
    manifest = drop_test_duplicates(manifest, groups)
    dropped = int((manifest.splits == "").sum()) - unused
    if not (manifest.splits == "val").any():
        manifest = carve_validation(manifest, config.val_fraction, config.seed, groups=groups)
    train = training_view(manifest)
    if not (manifest.splits == "val").any():
        raise DataError(
            "no image is left to validate with",
            got=f"val_fraction={config.val_fraction} of {len(train)} images in {len(manifest.taxonomy)} classes",
            do="raise val_fraction, or mark some rows with the split val",
        )
    validation = manifest.split("val")
    if not len(train):
        raise DataError("no training images", got=repr(manifest), do="check the split column")
    if (manifest.splits == "test").any():
        require_no_leakage(train, manifest.split("test"))
        require_no_leakage(validation, manifest.split("test"))
    if config.levels and levels is None:
        finest = [name for name in TREE if name in config.levels][-1]
        known = manifest.taxonomy.upto(finest)
        levels = Levels(known, tuple(config.levels), attribute_values(train, config.levels))
    preprocess = Preprocess(height=config.size, width=config.size, resize=config.resize, crop=config.crop)
    half = config.memory_gib / 2
    seen = open_side(train, preprocess, levels=levels, memory_gib=half, progress=progress)
    held = open_side(validation, preprocess, levels=levels, memory_gib=half, progress=progress)
    if not (held.labels >= 0).any() or not (seen.labels >= 0).any():
        raise DataError(
            "training and validation both need images that tell the finest level",
            got=f"{int((seen.labels >= 0).sum())} and {int((held.labels >= 0).sum())} of them",
            do="name coarser levels, or label some images to the end",
        )
    return Samples(
        train=seen,
        validation=held,
        taxonomy=manifest.taxonomy if levels is None else levels.taxonomy,
        preprocess=preprocess,
        dropped=dropped,
        splits=split_hash(manifest),
        levels=levels,
    )
