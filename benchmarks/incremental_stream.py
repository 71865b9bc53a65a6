"""The stream of the incremental benchmark: pictures, labels that go on from task to task, and a base network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openset import drawn_vehicles
from vmmr.data.check import duplicate_groups
from vmmr.data.manifest import Manifest
from vmmr.data.openset import OpenSetProtocol
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.data.splits import drop_test_duplicates, split_hash
from vmmr.errors import ConfigError
from vmmr.export.bundle import Bundle, read_bundle
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.task_norm import View, bank_features
from vmmr.models import Backbone
from vmmr.models.stem import Stem, split_at
from vmmr.recipes import recipe
from vmmr.taxonomy import Taxonomy, VehicleClass
from vmmr.training.augment import crop_and_flip
from vmmr.training.run import train


class Stream(NamedTuple):
    """Rows of one table of pictures: training rows, then test rows, with labels that go on from task to task."""

    classes: tuple[int, ...]
    labels: Tensor
    training: int
    whole: Backbone
    rest: Backbone
    stem: Stem | None
    pixels: View
    maps: View

    def rows(self, task: int) -> Tensor:
        """Training rows of a task."""
        ends = [0, *accumulate(self.classes)]
        own = self.labels[: self.training]
        return torch.nonzero((own >= ends[task]) & (own < ends[task + 1]))[:, 0]

    @property
    def test(self) -> Tensor:
        """All test rows."""
        return torch.arange(self.training, len(self.labels))


class Kept:
    """Features by bank and row, each computed once: banks do not change. alike: all banks are the first one."""

    def __init__(self, network: BankedNetwork, view: View, rows: int, *, alike: bool = False) -> None:
        self.network, self.view, self.rows, self.alike = network, view, rows, alike
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, items: Tensor, tasks: Sequence[int]) -> Tensor:
        """[N, len(tasks), D]."""
        return torch.stack([self._of(items, 0 if self.alike else task) for task in tasks], dim=1)

    def _of(self, items: Tensor, task: int) -> Tensor:
        if task not in self.tables:
            self.tables[task] = torch.empty(self.rows, self.network.width), torch.zeros(self.rows, dtype=torch.bool)
        table, there = self.tables[task]
        missing = items[~there[items]]
        if len(missing):
            table[missing] = bank_features(self.network, missing, [task], self.view)[:, 0]
            there[missing] = True
        return table[items]


def picture_view(pixels: Pixels, preprocess: Preprocess) -> View:
    """Rows -> images in [-1, 1]; varied: random crop and flip."""

    def view(rows: Tensor, generator: torch.Generator | None) -> Tensor:
        held = pixels[rows.numpy()]
        if generator is None:
            shown = preprocess.centre_crop(held)
        else:
            draws = torch.rand(len(rows), 3, generator=generator)
            shown = crop_and_flip(held, draws, preprocess.height, preprocess.width)
        return preprocess.normalise(shown).contiguous(memory_format=torch.channels_last)

    return view


@torch.no_grad()
def map_view(stem: Stem, pictures: View, rows: int, training: int) -> View:
    """Rows -> what the stem makes of them, computed here; varied: of the picture or, half the time, of its mirror."""
    plain, mirrored = [], []
    for part in torch.split(torch.arange(rows), 128):
        image = pictures(part, None)
        plain.append(stem(image))
        if part[0] < training:
            mirrored.append(stem(image.flip(3)))
    both = torch.cat(plain), torch.cat(mirrored)

    def view(items: Tensor, generator: torch.Generator | None) -> Tensor:
        found = both[0][items]
        if generator is not None:
            flipped = torch.rand(len(items), generator=generator) < 0.5
            found[flipped] = both[1][items[flipped]]
        return found

    return view


def _base(args: argparse.Namespace, seed: int, known: Manifest, home: Path) -> Bundle:
    if args.bundle is not None:
        return read_bundle(args.bundle)
    table = home / "known.parquet"
    known.write(table)
    config = recipe(args.recipe).with_(
        backbone=args.backbone, size=args.size, epochs=args.epochs, seed=seed, lr=args.base_lr, trunk_lr=args.base_lr
    )
    if not (home / "run" / "metrics.json").exists():
        train(config.with_(near_duplicates=False), table, home / "run", resume=True, test=False)
    return read_bundle(home / "run" / "bundle")


def open_stream(args: argparse.Namespace, seed: int, home: Path) -> tuple[Stream, dict[str, Any]]:
    """The stream of a seed, with every picture decoded; and what the record says of it."""
    if args.data is None:
        manifest = drawn_vehicles(args.out, seed, args.per_class, args.makes)
    else:
        manifest = Manifest.load(args.data)
        # Rendered vehicles are drawn apart, and may look alike.
        manifest = drop_test_duplicates(manifest, duplicate_groups(manifest.path_list(), near=args.near_duplicates))
    keys = sorted({item.key for item in manifest.taxonomy.classes}, key=lambda k: (k[0], k[1], k[2] or 0))
    random = np.random.default_rng(seed)
    if args.protocol is not None:
        known = set(OpenSetProtocol.from_json(args.protocol.read_text(encoding="utf-8")).known)
    else:
        known = {keys[i] for i in random.permutation(len(keys))[: len(keys) // 2].tolist()}
    coming = [key for key in keys if key not in known]
    size = len(coming) // args.tasks
    if not size:
        raise ConfigError("too few new classes", got=f"{len(coming)} for {args.tasks} tasks", do="pass fewer tasks")
    order = [coming[i] for i in random.permutation(len(coming))[: size * args.tasks].tolist()]
    labels = manifest.labels
    is_known = np.isin(labels, [i for i, item in enumerate(manifest.taxonomy.classes) if item.key in known])
    own = Taxonomy(tuple(item for item in manifest.taxonomy.classes if item.key in known))
    bundle = _base(args, seed, manifest.select(is_known).with_taxonomy(own), home)
    network = bundle.network()
    if not isinstance(network, Backbone) or {c.key for c in bundle.taxonomy.classes} != known:
        raise ConfigError("the bundle is no plain network of the known classes", got=f"{len(bundle.taxonomy)} classes")
    by_key = {item.key: item for item in manifest.taxonomy.classes}
    every: list[VehicleClass] = [*bundle.taxonomy.classes, *(by_key[key] for key in order)]
    labelled = manifest.with_taxonomy(Taxonomy(tuple(every)), strict=False)
    train_rows = np.flatnonzero((labelled.labels >= 0) & (labelled.splits == "train"))
    test_rows = np.flatnonzero((labelled.labels >= 0) & (labelled.splits == "test"))
    if args.test_per_class:
        shuffled = random.permutation(test_rows)
        rank = np.zeros(len(manifest), dtype=np.int64)
        for label in np.unique(labelled.labels[shuffled]):
            same = shuffled[labelled.labels[shuffled] == label]
            rank[same] = np.arange(len(same))
        test_rows = test_rows[rank[test_rows] < args.test_per_class]
    table = labelled.select(np.concatenate([train_rows, test_rows]))
    pixels = Pixels([Path(p) for p in table.path_list()], bundle.preprocess, boxes=table.boxes, memory_gib=8.0)
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    pictures = picture_view(pixels, preprocess)
    stem, rest = split_at(network, args.split) if args.split else (None, network)
    maps = pictures if stem is None else map_view(stem, pictures, len(table), len(train_rows))
    classes = (len(bundle.taxonomy), *([size] * args.tasks))
    truth = torch.from_numpy(table.labels)
    stream = Stream(classes, truth, len(train_rows), network.eval(), rest, stem, pictures, maps)
    about = {
        "seed": seed,
        "backbone": bundle.spec.backbone,
        "size": preprocess.height,
        "split": args.split,
        "images": args.images,
        "classes": classes,
        "order": [item.name for item in every],
        "train": len(train_rows),
        "test": len(test_rows),
        "splits": split_hash(labelled),
    }
    return stream, about
