"""New classes for a bundle that is there: seconds, what changes for the old ones, and what the new ones are worth.

    python benchmarks/extend.py --out runs/extend
    python benchmarks/extend.py --data DATA --bundle BUNDLE --protocol PROTOCOL.json --out runs/extend-cars

The bundle knows the known classes of an open-set protocol (benchmarks/openset.py leaves both). Of its held-out classes
some are new, drawn by a seed, with so many training images each; the others stay unknown. The bundle is extended twice,
with its old data and by its own bank alone. Test images, looked at last, go the way of `vmmr predict`. Without --data
vehicles are rendered and a small network is trained. Prints Markdown tables and writes extend.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import vmmr
from openset import divided
from vmmr.answer import Answer
from vmmr.data.manifest import Manifest
from vmmr.data.openset import OpenSetProtocol, draw_protocol
from vmmr.data.rendered import World, write_dataset
from vmmr.errors import ConfigError
from vmmr.export.bundle import write_bundle
from vmmr.extend.gallery import extend_gallery
from vmmr.recipes import recipe
from vmmr.taxonomy import VehicleClass
from vmmr.training.run import train


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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Extend with and without old data, and judge both."""
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.load(args.data) if args.data is not None else rendered(args.out, args.seed)
    if args.protocol is not None:
        protocol = OpenSetProtocol.from_json(args.protocol.read_text(encoding="utf-8"))
    else:
        protocol = draw_protocol(manifest, models=0.25, makes=0.25, seed=args.seed)
    known = divided(manifest, protocol, duplicates=args.data is not None).known
    source = args.bundle
    if source is None:
        known.write(args.out / "known.parquet")
        data, out = args.out / "known.parquet", args.out / "run"
        source = small_bundle(data, out, method="robust", epochs=args.epochs, seed=args.seed)
    random = np.random.default_rng(args.seed)
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
    document: dict[str, Any] = {
        "seed": args.seed,
        "images": args.images,
        "classes": {"old": len(recognizer.taxonomy), "new": args.new, "unknown": len(held) - args.new},
        "new": sorted(VehicleClass(*key).name for key in fresh),
        "ways": {},
    }
    before = {name: _answers(recognizer, rows) for name, rows in shown.items()}
    for name, old in (("old data", known), ("bank alone", None)):
        started = time.perf_counter()
        found = extend_gallery(source, new, old=old, bound=args.bound, force=True)
        write_bundle(args.out / name.replace(" ", "-"), found.bundle)
        seconds = time.perf_counter() - started
        after = vmmr.load(args.out / name.replace(" ", "-"))
        told = dict(found.bundle.added)
        told.pop("classes")
        document["ways"][name] = {"seconds": seconds, "told": told, "test": judged(before, after, shown)}
    (args.out / "extend.json").write_text(json.dumps(document, indent=1))
    return document


def table(document: dict[str, Any]) -> str:
    """Markdown, in percent."""
    lines = [
        "| | seconds | promised | old changed | old top-1 | new top-1 (card) | old, new, unknown said to be unknown |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, way in document["ways"].items():
        test = way["test"]
        unknown = ", ".join(
            f"{100 * test[part]['unknown_before']:.1f} -> {100 * test[part]['unknown_after']:.1f}"
            for part in ("old", "new", "unknown")
        )
        old, new, told = test["old"], test["new"], way["told"]
        cells = [
            name,
            f"{way['seconds']:.1f}",
            f"{100 * told['bound']['share']:.2f}",
            f"{100 * old['changed']:.2f}",
            f"{100 * old['top1_before']:.2f} -> {100 * old['top1_after']:.2f}",
            f"{100 * new['top1_after']:.1f} ({100 * told['new']['top1']:.1f})",
            unknown,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description="Seconds, old answers and new classes of an extended bundle.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="manifest or folder; rendered without")
    parser.add_argument("--bundle", type=Path, help="of the known classes, with a bank of neighbours")
    parser.add_argument("--protocol", type=Path, help="which classes are known")
    parser.add_argument("--new", type=int, default=None, help="new classes; 20, or 6 of rendered ones")
    parser.add_argument("--images", type=int, default=20, help="of each new class")
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=12, help="of the rendered network")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.data is None) != (args.bundle is None) or (args.data is None) != (args.protocol is None):
        raise ConfigError("data, bundle and protocol go together")
    args.new = args.new or (20 if args.data is not None else 6)
    print(table(run(args)))


if __name__ == "__main__":
    main()
