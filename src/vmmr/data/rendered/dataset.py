"""Rendered pictures in bulk: arrays in memory, or a folder with images, a manifest and the truth table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from vmmr.data.rendered.renderer import Renderer
from vmmr.data.rendered.scene import Scene, portrait
from vmmr.data.rendered.truth import MANIFEST_COLUMNS, VIEWPOINTS, truth_schema
from vmmr.data.rendered.world import World
from vmmr.errors import ConfigError, DataError

__all__ = ["draw", "write_dataset"]

_MOST = 1_000_000


def draw(world: World, n: int, size: int = 128, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """`n` pictures in memory: models in turn, everything else by chance.

    Returns `image` uint8 [n, size, size, 3], `mask` uint8 [n, size, size], `box` int64 [n, 4] (left, top, right,
    bottom, half-open), `label` int64 [n] (model * years + year), `make`, `model` and `viewpoint` int64 [n], `azimuth`
    float64 [n], and `vehicle_id` str [n]. Raises ConfigError for a size or a number out of range.
    """
    if not 1 <= n < _MOST:
        raise ConfigError("number of pictures out of range", got=n, do=f"pass 1 to {_MOST - 1}")
    classes = len(world.models) * world.years
    rng = world.random(8, seed)
    labels = np.arange(n) % classes
    numbers = rng.integers(world.fleet, size=n)
    scenes = (
        portrait(world, world.vehicle(int(label) // world.years, int(label) % world.years, int(k)), seed * _MOST + i)
        for i, (label, k) in enumerate(zip(labels, numbers, strict=True))
    )
    with Renderer(size, seed=world.seed) as renderer:
        samples = [renderer.render(scene) for scene in scenes]
    truths = [s.truth for s in samples]
    model = labels // world.years
    return {
        "image": np.stack([s.image for s in samples]),
        "mask": np.stack([s.mask for s in samples]),
        "box": np.array([[t.left, t.top, t.right, t.bottom] for t in truths], np.int64),
        "label": labels.astype(np.int64),
        "make": (model // world.models_per_make).astype(np.int64),
        "model": model.astype(np.int64),
        "viewpoint": np.array([VIEWPOINTS.index(t.viewpoint) for t in truths], np.int64),
        "azimuth": np.array([t.azimuth for t in truths]),
        "vehicle_id": np.array([t.vehicle_id for t in truths]),
    }


def write_dataset(
    folder: str | Path,
    *,
    world: World | None = None,
    per_class: Mapping[str, int] | None = None,
    size: int = 128,
    seed: int = 0,
    viewpoints: Sequence[str] = VIEWPOINTS,
    masks: bool = False,
    quality: int | None = None,
) -> Path:
    """Render a data set into a new folder and return the path of its `manifest.csv`.

    world: default `World()`. per_class: pictures of each model and year in each split, default
    `{"train": 40, "test": 10}`. size: pixels a side. seed: another seed gives other pictures of the same vehicles.
    viewpoints: the sectors to draw from; those of the front make an easier set.
    masks: also write part masks as PNG, the values of `Part`. quality: JPEG of this quality instead of PNG.

    The folder holds `images/`, `masks/`, `manifest.csv` (the canonical columns) and `truth.parquet` (all of
    `vmmr.data.rendered.truth.Truth`, and path, split and group). No vehicle is in two splits: each gets its own part of
    the fleet, and the group is the vehicle. The same arguments give the same bytes on the same machine. The folder
    appears only when it is complete. Raises DataError if it exists and is not empty, ConfigError for counts or sizes
    out of range.
    """
    world = World() if world is None else world
    counts = {"train": 40, "test": 10} if per_class is None else dict(per_class)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("the folder for the rendered data set is not empty", got=folder, do="pass a new folder")
    total = sum(counts.values()) * len(world.models) * world.years
    if not counts or min(counts.values()) < 1 or total >= _MOST or set(counts) - {"train", "val", "test"}:
        raise ConfigError(
            "per_class of a rendered data set",
            got=counts,
            do=f"pass 1 or more for train, val and test, below {_MOST} pictures in all",
        )
    if not viewpoints or set(viewpoints) - set(VIEWPOINTS):
        raise ConfigError(
            "viewpoints of a rendered data set", got=viewpoints, do=f"pass some of {', '.join(VIEWPOINTS)}"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise ConfigError("JPEG quality out of range", got=quality, do="pass 1 to 100, or None for PNG")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write(partial, world, counts, size, seed, tuple(viewpoints), masks, quality)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / "manifest.csv"


def _write(
    folder: Path,
    world: World,
    counts: dict[str, int],
    size: int,
    seed: int,
    viewpoints: tuple[str, ...],
    masks: bool,
    quality: int | None,
) -> None:
    suffix = "png" if quality is None else "jpg"
    options: dict[str, Any] = {"compress_level": 3} if quality is None else {"quality": quality, "subsampling": 0}
    rows = []
    with Renderer(size, seed=world.seed) as renderer:
        for i, (split, scene) in enumerate(_scenes(world, counts, seed, viewpoints)):
            sample = renderer.render(scene)
            truth = sample.truth
            name = f"{truth.make}_{truth.model}_{truth.year}/{i:06d}"
            path = folder / "images" / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(path, **options)
            if masks:
                path = folder / "masks" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample.mask).save(path)
            row = {"path": f"images/{name}.{suffix}", "split": split, "group": truth.vehicle_id} | truth.row()
            rows.append(row)
    table = pa.Table.from_pylist(rows, truth_schema())
    pa.parquet.write_table(table, folder / "truth.parquet")
    pa.csv.write_csv(table.select(list(MANIFEST_COLUMNS)), folder / "manifest.csv")


def _scenes(
    world: World, counts: dict[str, int], seed: int, viewpoints: tuple[str, ...]
) -> Iterator[tuple[str, Scene]]:
    """Each class in turn, its splits in turn; the vehicles of a split are used in rotation."""
    fleets = _shares(world.fleet, counts)
    i = 0
    for model in range(len(world.models)):
        for year in range(world.years):
            for split, count in counts.items():
                fleet = fleets[split]
                for k in range(count):
                    vehicle = world.vehicle(model, year, fleet[k % len(fleet)])
                    view = viewpoints[int(world.random(9, seed, i).integers(len(viewpoints)))]
                    yield split, portrait(world, vehicle, seed * _MOST + i, viewpoint=view)
                    i += 1


def _shares(fleet: int, counts: dict[str, int]) -> dict[str, range]:
    """Consecutive parts of the fleet, about as large as the splits' counts.

    >>> _shares(10, {"train": 8, "test": 2})
    {'train': range(0, 8), 'test': range(8, 10)}
    """
    if fleet < len(counts):
        raise ConfigError("fewer vehicles than splits", got=fleet, do=f"pass a fleet of {len(counts)} or more")
    shares = np.cumsum([0, *counts.values()]) / sum(counts.values())
    least = np.arange(len(shares))
    edges = np.clip(np.round(shares * fleet).astype(int), least, fleet - least[::-1])
    return {split: range(int(a), int(b)) for split, a, b in zip(counts, edges, edges[1:], strict=False)}
