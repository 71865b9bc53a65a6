"""Pictures that an extension learns from, and what is left of the old ones, as a network sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.data.splits import groups_of, require_no_leakage, training_view
from vmmr.errors import ConfigError, DataError, ManifestError
from vmmr.evaluation.classify import views
from vmmr.export.bundle import Bundle, Network
from vmmr.taxonomy import Taxonomy
from vmmr.training.augment import crop_and_flip
from vmmr.unknown import BANK
from vmmr.unknown.knn import KNNFitted

__all__ = [
    "CropView",
    "Fresh",
    "OldImages",
    "Seen",
    "fresh_rows",
    "labelled_pixels",
    "old_images",
    "old_splits",
    "see",
]


class CropView:
    """uint8 [B, 3, h, w] -> images in [-1, 1]: cropped and flipped by draws of a generator, or at the centre."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = replace(preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)

    def __call__(self, items: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the class."""
        own = self.preprocess
        if generator is None:
            return own.normalise(own.centre_crop(items))
        draws = torch.rand(len(items), 3, generator=generator)
        return own.normalise(crop_and_flip(items, draws, own.height, own.width, padding=0))


class Seen(NamedTuple):
    """What a network makes of images: features [N, D], its answer [N, outputs], and their labels int64 [N]."""

    features: Tensor
    logits: Tensor
    labels: Tensor


@torch.no_grad()
def see(network: Network, pixels: Pixels, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Seen:
    """These rows of pixels, in one pass."""
    preprocess = replace(pixels.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = []
    for _, image in views(pixels, preprocess, rows=rows):
        outputs = network(image, pooled=True)
        found.append((outputs["pooled"].float(), network.answer_of(outputs).float()))
    features, logits = (torch.cat(part) for part in zip(*found, strict=True))
    return Seen(features, logits, torch.from_numpy(labels[rows]))


@dataclass(frozen=True)
class Fresh:
    """Images of new classes. taxonomy: old and new classes; labels int64 [N] in it, groups int64 [N]. rows: those that
    could be read; skipped: (path, reason) of the others."""

    taxonomy: Taxonomy
    pixels: Pixels
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    rows: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...]


def fresh_rows(bundle: Bundle, new: Manifest, *, least: int = 5, progress: bool = False) -> Fresh:
    """The images of classes that the bundle does not know, decoded; those of the split test are left alone.

    Raises ManifestError for classes that it does know and where no row is left, DataError where a class has fewer than
    `least` readable images.
    """
    if least < 2:
        raise ConfigError("a class is learned from two images or more", got=least)
    learned = new.select(new.splits != "test")
    finest = "class" if bundle.levels is None else bundle.levels.finest
    told = learned if bundle.levels is None else learned.upto(finest)
    if bundle.levels is not None:
        told = told.with_taxonomy(told.taxonomy.upto(finest), strict=False)
    used = np.unique(told.labels[told.labels >= 0])
    if not len(used):
        raise ManifestError(
            "no row to learn from", got=repr(new), do=f"rows, not of the split test, that tell {finest}"
        )
    classes = Taxonomy(tuple(told.taxonomy.classes[label] for label in used.tolist()))
    known = [item.name for item in classes.classes if item.key in bundle.taxonomy]
    if known:
        raise ManifestError(
            f"{len(known)} of the classes are known already",
            got=known[:10],
            do="drop their rows: the old stay as they are",
        )
    if (new.splits == "test").any():
        require_no_leakage(learned, new.split("test"))
    merged = bundle.taxonomy.merge(classes)
    told = told.with_taxonomy(merged, strict=False)
    told = told.select(told.labels >= 0)
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    paths = told.path_list()
    pixels = Pixels(paths, preprocess, boxes=told.boxes, progress=progress, on_bad="skip")
    bad = {row for row, _ in pixels.bad}
    rows = np.array([row for row in range(len(paths)) if row not in bad], dtype=np.int64)
    count = np.bincount(told.labels[rows], minlength=len(merged))
    added = range(len(bundle.taxonomy), len(merged))
    few = [f"{merged.names[label]}: {count[label]}" for label in added if count[label] < least]
    if few:
        also = f" ({len(bad)} images could not be read)" if bad else ""
        raise DataError(f"{len(few)} classes have too few images{also}", got=few[:10], do=f"{least} or more of each")
    skipped = tuple((paths[row], reason) for row, reason in pixels.bad)
    return Fresh(merged, pixels, told.labels, groups_of(told), rows, skipped)


@dataclass(frozen=True)
class OldImages:
    """What is left of the old classes. features [M, D], labels int64 [M]: of training images, source says where from.
    held: validation images, as the network before answers them, where there is old data."""

    features: Tensor
    labels: Tensor
    source: str
    held: Seen | None


def old_images(bundle: Bundle, network: Network, old: Manifest | None, *, progress: bool = False) -> OldImages:
    """Features of old training images, from the bank of the bundle's detector or, where it has none, of the split train
    of `old`; and validation images of `old`, where it is given. Test images are not touched.

    In the bank of an extended bundle rows of the added classes are no images, see `grown_knn`: of classes that `old`
    has, its own images are taken instead.

    Raises ConfigError where there is neither bank nor old data, ManifestError where the old data has no split val.
    """
    held = bank = None
    detector = bundle.detector
    if detector is not None and isinstance(detector.fitted, KNNFitted):
        bank = detector.fitted.bank, detector.fitted.label, "training images in the bundle's bank"
    if old is not None:
        train, validation = old_splits(old)
        held = _seen_of(bundle, network, validation, progress)
        if bank is None or bundle.parent is not None:
            some = np.random.default_rng(0).permutation(len(train))[:BANK]
            seen = _seen_of(bundle, network, train.select(np.sort(some)), progress)
            features, labels = seen.features, seen.labels
            if bank is not None:
                rest = ~torch.isin(bank[1], labels)
                features, labels = torch.cat([features, bank[0][rest]]), torch.cat([labels, bank[1][rest]])
            bank = features, labels, "training images"
    if bank is None:
        raise ConfigError(
            "new classes are told from old ones by features of old images, and there are none",
            got="no bank of neighbours in the bundle, and no old data",
            do="pass --data, the manifest it was trained on, or first `vmmr calibrate` it with --unknown knn_pca",
        )
    return OldImages(*bank, held)


def old_splits(old: Manifest) -> tuple[Manifest, Manifest]:
    """The splits train and val of old data. ManifestError where there is no val, LeakageError where they share images
    with each other or with the split test."""
    if not (old.splits == "val").any():
        raise ManifestError("the old data has no validation images", do="mark some rows with the split val")
    train, validation = training_view(old), old.split("val")
    require_no_leakage(train, validation)
    if (old.splits == "test").any():
        for side in (train, validation):
            require_no_leakage(side, old.split("test"))
    return train, validation


def labelled_pixels(bundle: Bundle, rows: Manifest, *, progress: bool = False) -> tuple[Pixels, NDArray[np.int64]]:
    """Rows of classes that the bundle knows, decoded, and their labels, int64 [N]."""
    known, by_level = bundle.labelled(rows)
    labels = known.labels if bundle.levels is None else by_level[bundle.levels.finest]
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Pixels(known.path_list(), preprocess, boxes=known.boxes, progress=progress), labels


def _seen_of(bundle: Bundle, network: Network, rows: Manifest, progress: bool) -> Seen:
    pixels, labels = labelled_pixels(bundle, rows, progress=progress)
    return see(network, pixels, labels, np.arange(len(pixels)))
