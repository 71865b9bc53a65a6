"""New classes for a bundle that is there: seconds, what changes for the old ones, and what the new ones are worth.

    python benchmarks/extend.py --out runs/extend [--seeds 0 1 2]
    python benchmarks/extend.py --data DATA --bundle BUNDLE --protocol PROTOCOL.json --out runs/extend-cars

The bundle knows the known classes of an open-set protocol (benchmarks/openset.py leaves both). Of its held-out classes
some are new, drawn by the seed, with so many training images each; the others stay unknown. The bundle is extended in
every way of --ways: by a gallery with its old data and by its own bank alone; by a task, without and with linear
discriminants; and by two tasks of half of the classes each, of which `vmmr merge` then makes one, a fifth of the images
being kept for that. Test images, looked at last, go the way of `vmmr predict`. Without --data vehicles are rendered and
a small network is trained. What is finished is not run again. Prints Markdown tables and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vmmr
from openset import all_seeds, divided
from vmmr.answer import Answer
from vmmr.data.manifest import Manifest
from vmmr.data.openset import OpenSetProtocol, draw_protocol
from vmmr.data.rendered import World, write_dataset
from vmmr.data.splits import carve_validation
from vmmr.errors import ConfigError
from vmmr.evaluation.markdown import table
from vmmr.evaluation.seeds import with_spread
from vmmr.export.bundle import Bundle, write_bundle
from vmmr.extend.gallery import extend_gallery
from vmmr.extend.merge import merge_tasks
from vmmr.extend.task import TaskSettings, extend_task
from vmmr.files import write_json
from vmmr.incremental.gallery import CONFIDENCE
from vmmr.recipes import recipe
from vmmr.taxonomy import VehicleClass
from vmmr.training.run import train

WAYS = ("gallery", "gallery, bank alone", "task", "task, discriminants", "two tasks", "two tasks, merged")


def rendered(out: Path, seed: int) -> Manifest:
    """Vehicles of a world of this seed, eight makes of six models; drawn once."""
    folder = out / "data"
    if not folder.exists():
        world = World(seed=seed, makes=8, models_per_make=6, years=1, fleet=40)
        counts = {"train": 30, "test": 10}
        write_dataset(folder, world=world, per_class=counts, size=64, seed=seed, viewpoints=("front", "front-left"))
    return Manifest.load(folder)


def small_bundle(data: Path, out: Path, *, method: str, epochs: int, seed: int) -> Path:
    """The bundle of a small network that learned rendered vehicles by a recipe; trained once."""
    if not (out / "metrics.json").exists():
        small = {"backbone": "test_resnet", "size": 64, "lr": 5e-3, "trunk_lr": 5e-3, "near_duplicates": False}
        train(recipe(method).with_(**small, epochs=epochs, seed=seed), data, out, resume=True, test=False)
    return out / "bundle"


def _rows_of(manifest: Manifest, keys: set[tuple[str, str, int | None]], split: str) -> Manifest:
    kinds, rows = manifest.vehicles
    own = np.array([kind[:3] in keys for kind in kinds], dtype=np.bool_)[rows]
    return manifest.select(own & (manifest.splits == split))


def _drawn(held: Manifest, images: int, random: np.random.Generator) -> Manifest:
    """So many rows of each class."""
    labels = held.labels
    chosen = [random.permutation(np.flatnonzero(labels == label))[:images] for label in np.unique(labels)]
    return held.select(np.sort(np.concatenate(chosen)))


def _answers(recognizer: vmmr.Recognizer, rows: Manifest) -> list[Answer]:
    return [answer for answer in recognizer.answers(rows.path_list(), top=1) if isinstance(answer, Answer)]


def _key(answer: Answer) -> tuple[str, str, int | None]:
    return answer.make, answer.model, answer.year


def judged(before: dict[str, list[Answer]], after: vmmr.Recognizer, shown: dict[str, Manifest]) -> dict[str, Any]:
    """Shares of test images, by who they are: top-1, and taken for unknown, before and after; old answers changed."""
    found: dict[str, Any] = {}
    for name, rows in shown.items():
        truth = [rows.vehicles[0][kind][:3] for kind in rows.vehicles[1].tolist()]
        was, now = before[name], _answers(after, rows)
        found[name] = {"images": len(rows)}
        for when, said in (("before", was), ("after", now)):
            found[name][f"top1_{when}"] = float(np.mean([_key(a) == t for a, t in zip(said, truth, strict=True)]))
            found[name][f"unknown_{when}"] = float(np.mean([a.known is False for a in said]))
        found[name]["changed"] = float(np.mean([_key(a) != _key(b) for a, b in zip(was, now, strict=True)]))
    return found


def _joined(manifest: Manifest, *parts: Manifest) -> Manifest:
    """Rows of the manifest that are in one of these parts of it, in the split that they have there."""
    splits = {path: split for part in parts for path, split in zip(part.path_list(), part.splits, strict=True)}
    paths = manifest.path_list()
    rows = np.array([path in splits for path in paths])
    return manifest.with_splits([splits.get(path, "") for path in paths]).select(rows)


def _extended(
    way: str, source: Path, new: Manifest, manifest: Manifest, known: Manifest, args: argparse.Namespace, seed: int
) -> Bundle:
    """The bundle that one way makes. The two tasks of the last are those of the last but one."""
    home = args.out / f"seed-{seed}"
    settings = TaskSettings(memory=args.memory, discriminants=way == "task, discriminants", seed=seed)
    given: dict[str, Any] = {"bound": args.bound, "confidence": args.confidence, "force": True, "progress": True}
    if way.startswith("gallery"):
        return extend_gallery(source, new, old=known if way == "gallery" else None, **given).bundle
    if way.startswith("task"):
        return extend_task(source, new, old=known, settings=settings, **given).bundle
    used = np.unique(new.labels)
    kept = carve_validation(new, 0.2, seed)
    halves = [kept.select(np.isin(new.labels, part)) for part in np.array_split(used, 2)]
    if way == "two tasks, merged":
        if not (home / "two tasks").exists():
            raise ConfigError("there are no two tasks to merge", got=home, do="name the way 'two tasks' before it")
        return merge_tasks(home / "two tasks", _joined(manifest, known, *halves), settings=settings, force=True)
    first = extend_task(source, halves[0].split("train"), old=known, settings=settings, **given)
    write_bundle(home / "first task", first.bundle)
    old = _joined(manifest, known, halves[0])
    return extend_task(home / "first task", halves[1].split("train"), old=old, settings=settings, **given).bundle


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Extend in every way, and judge each; what is on disk is not run again."""
    home = args.out / f"seed-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    about = home / "about.json"
    records = {way: home / f"{way.replace(', ', '-')}.json" for way in args.ways}
    missing = [way for way, record in records.items() if not record.exists()]
    if missing or not about.exists():
        for way, document in _run(args, seed, home, about, missing):
            write_json(records[way], document)
    ways = {way: json.loads(record.read_text(encoding="utf-8")) for way, record in records.items()}
    return {**json.loads(about.read_text(encoding="utf-8")), "ways": ways}


def _run(
    args: argparse.Namespace, seed: int, home: Path, about: Path, ways: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    manifest = Manifest.load(args.data) if args.data is not None else rendered(home, seed)
    if args.protocol is not None:
        protocol = OpenSetProtocol.from_json(args.protocol.read_text(encoding="utf-8"))
    else:
        protocol = draw_protocol(manifest, models=0.25, makes=0.25, seed=seed)
    known = divided(manifest, protocol, duplicates=args.data is not None).known
    source = args.bundle
    if source is None:
        known.write(home / "known.parquet")
        source = small_bundle(home / "known.parquet", home / "run", method="robust", epochs=args.epochs, seed=seed)
    random = np.random.default_rng(seed)
    held = sorted([*protocol.models, *protocol.makes], key=lambda key: (key[0], key[1], key[2] or 0))
    if len(held) <= args.new:
        raise ConfigError("some held-out classes stay unknown", got=f"{len(held)} of them", do="lower --new")
    fresh = {held[place] for place in random.permutation(len(held))[: args.new].tolist()}
    new = _drawn(_rows_of(manifest, fresh, "train"), args.images, random)
    shown = {
        "old": known.split("test"),
        "new": _rows_of(manifest, fresh, "test"),
        "unknown": _rows_of(manifest, {*held} - fresh, "test"),
    }
    recognizer = vmmr.load(source)
    described = {
        "seed": seed,
        "images": args.images,
        "classes": {"old": len(recognizer.taxonomy), "new": args.new, "unknown": len(held) - args.new},
        "new": sorted(VehicleClass(*key).name for key in fresh),
    }
    write_json(about, described)
    before = {name: _answers(recognizer, rows) for name, rows in shown.items()}
    for way in ways:
        started, busy = time.perf_counter(), time.process_time()
        found = _extended(way, source, new, manifest, known, args, seed)
        out = home / way.replace(", ", "-")
        write_bundle(out, found)
        seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - busy}
        told = {name: value for name, value in found.added.items() if name not in ("classes", "frozen")}
        yield way, {**seconds, "told": told, "test": judged(before, vmmr.load(out), shown)}


def tables(records: list[dict[str, Any]]) -> str:
    """Markdown, in percent: what it costs the old classes and brings the new ones; what is said to be unknown."""
    heads = ["draws", "seconds", "promised", "old changed", "old top-1", "after", "new top-1", "on the card"]
    parts = ("old", "new", "unknown")
    first: list[list[str]] = []
    second: list[list[str]] = []

    def refused(tests: list[dict[str, Any]], when: str) -> list[str]:
        return [with_spread([100 * test[part][f"unknown_{when}"] for test in tests]) for part in parts]

    ways = {way: [record["ways"][way] for record in records if way in record["ways"]] for way in WAYS}
    for way, found in ways.items():
        if not found:
            continue
        tests = [each["test"] for each in found]
        if not second:
            second.append(["before", *refused(tests, "before")])
        columns = [
            [each["processor_seconds"] for each in found],
            [100 * each["told"]["bound"]["share"] for each in found if "bound" in each["told"]],
            [100 * test["old"]["changed"] for test in tests],
            [100 * test["old"]["top1_before"] for test in tests],
            [100 * test["old"]["top1_after"] for test in tests],
            [100 * test["new"]["top1_after"] for test in tests],
            [100 * each["told"]["new"]["top1"] for each in found if "new" in each["told"]],
        ]
        first.append([way, str(len(found)), *(with_spread(column) if column else "" for column in columns)])
        second.append([way, *refused(tests, "after")])
    return f"{table(['', *heads], first)}\n\n{table(['said to be unknown', *parts], second)}"


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description="Seconds, old answers and new classes of an extended bundle.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="manifest or folder; rendered without")
    parser.add_argument("--bundle", type=Path, help="of the known classes, with a bank of neighbours")
    parser.add_argument("--protocol", type=Path, help="which classes are known")
    parser.add_argument("--new", type=int, default=None, help="new classes; 20, or 6 of rendered ones")
    parser.add_argument("--images", type=int, default=20, help="of each new class")
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help="that it holds")
    parser.add_argument("--memory", type=int, default=TaskSettings.memory, help="old images that tasks learn with")
    parser.add_argument("--epochs", type=int, default=12, help="of the rendered network")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS, help="merging needs the two tasks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    if (args.data is None) != (args.bundle is None) or (args.data is None) != (args.protocol is None):
        raise ConfigError("data, bundle and protocol go together")
    args.new = args.new or (20 if args.data is not None else 6)
    all_seeds(args, run_seed, tables)


if __name__ == "__main__":
    main()
