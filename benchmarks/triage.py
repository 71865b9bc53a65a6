"""`vmmr triage` on classes that were held out of training: are its candidates the models that there are?

    python benchmarks/triage.py --out runs/triage [--seeds 0 1 2] [--epochs 48]
    python benchmarks/triage.py --data DATA --bundle BUNDLE --protocol PROTOCOL.json --out runs/triage-cars

Of every seed one draw holds out models of known makes and whole makes, and a network learns the known classes with a
score of what is unknown (or is given, with its protocol; see openset.py). The command then looks through the test
images of known and held-out classes together. Rows of the table: what the command found; the same at other distances;
and held-out images alone, as if nothing known were ever rejected and nothing unknown accepted. A seed that is finished
is not run again. Prints Markdown and writes results.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from openset import all_seeds, drawn_vehicles
from vmmr.answer import Box
from vmmr.data.columns import BOX
from vmmr.data.manifest import Manifest
from vmmr.data.openset import OpenSetProtocol, apply_protocol, draw_protocol
from vmmr.data.splits import carve_validation
from vmmr.errors import ConfigError
from vmmr.evaluation.markdown import table
from vmmr.evaluation.seeds import with_spread
from vmmr.files import write_json
from vmmr.recipes import recipe
from vmmr.recognizer import Crop, load
from vmmr.training.run import train
from vmmr.triage import run_triage
from vmmr.unknown.groups import group_alike

FACTORS = (0.5, 0.75, 1.25, 1.5)
"""Times the distance that the command takes by itself."""

COLUMNS = {
    "distance": "distance",
    "groups": "groups",
    "classes": "held-out classes",
    "found": "classes found",
    "grouped": "held-out in groups",
    "ari": "ARI",
    "purity": "purity",
}


def clustering(groups: NDArray[np.int64], truth: NDArray[np.int64], held_out: NDArray[np.bool_]) -> dict[str, float]:
    """How well groups [N], -1 for none, are the true classes [N].

    ari: over held-out images, one in no group being a group of its own. purity: over all images in groups, known ones
    too. groups: how many; classes: held-out ones that have an image here; found: those that are the most frequent class
    of a group. grouped: share of held-out images in a group.
    """
    alone = np.where(groups < 0, groups.max(initial=-1) + 1 + np.arange(len(groups)), groups)
    frequent, right = set(), 0
    for group in range(groups.max(initial=-1) + 1):
        classes, counts = np.unique(truth[groups == group], return_counts=True)
        frequent.add(int(classes[counts.argmax()]))
        right += int(counts.max())
    unknown = set(truth[held_out].tolist())
    return {
        "groups": int(groups.max(initial=-1) + 1),
        "classes": len(unknown),
        "found": len(frequent & unknown),
        "grouped": float((groups[held_out] >= 0).mean()),
        "ari": float(adjusted_rand_score(truth[held_out], alone[held_out])),
        "purity": right / max(1, int((groups >= 0).sum())),
    }


def _rendered(args: argparse.Namespace, seed: int, home: Path) -> tuple[Manifest, OpenSetProtocol, Path]:
    """Vehicles of a drawn world, a protocol, and the bundle of its known classes."""
    manifest = drawn_vehicles(args.out, seed, args.per_class)
    protocol = draw_protocol(manifest, seed=seed)
    if not (home / "run" / "metrics.json").exists():
        known = apply_protocol(manifest, protocol).known
        carve_validation(known, 0.15, seed).write(home / "known.parquet")
        config = recipe("plain_noise").with_(backbone="test_resnet", size=64, epochs=args.epochs, seed=seed)
        config = config.with_(lr=args.lr, trunk_lr=args.lr, near_duplicates=False, unknown="knn_pca")
        train(config, home / "known.parquet", home / "run", resume=True, test=False)
    return manifest, protocol, home / "run" / "bundle"


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One draw: the command, and what it found against what there is. The record is written once it is complete."""
    home = args.out / f"seed-{seed}"
    record = home / "record.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    home.mkdir(parents=True, exist_ok=True)
    if args.data is None:
        manifest, protocol, bundle = _rendered(args, seed, home)
    else:
        manifest, bundle = Manifest.load(args.data), args.bundle
        protocol = OpenSetProtocol.from_json(args.protocol.read_text(encoding="utf-8"))
    sets = apply_protocol(manifest, protocol)
    parts = {"known": sets.known.split("test"), "models": sets.models, "makes": sets.makes}
    paths = [str(Path(path).absolute()) for part in parts.values() for path in part.path_list()]
    kinds = [kind[:3] for part in parts.values() for kind in (part.vehicles[0][row] for row in part.vehicles[1])]
    names = sorted(set(map(str, kinds)))
    truth = np.array([names.index(str(kind)) for kind in kinds])
    part_of = np.repeat(list(parts), [len(part) for part in parts.values()])
    boxes = np.concatenate([part.boxes for part in parts.values()])
    columns = {side: pa.array(column, mask=column < 0) for side, column in zip(BOX, boxes.T, strict=True)}
    pq.write_table(pa.table({"path": paths, **columns}), home / "seen.parquet")

    told = run_triage(bundle, [home / "seen.parquet"], home / "found", least=args.least)
    row_of = {(path, *box): row for row, (path, box) in enumerate(zip(paths, boxes.tolist(), strict=True))}
    strange, directions, groups = [], [], []
    grouped = {_key(row): row for row in pa_csv.read_csv(home / "found" / "candidates.csv").to_pylist()}
    for part in sorted((home / "found" / "embeddings").glob("part-*.parquet")):
        for row in pq.read_table(part).to_pylist():
            if row["reason"] == "unknown_vehicle" and row["error"] is None:
                strange.append(row_of[_key(row)])
                directions.append(row["direction"])
                groups.append(grouped[_key(row)]["candidate"] - 1 if _key(row) in grouped else -1)
    if not strange:
        raise ConfigError("no picture is an unknown vehicle, and there is nothing to group", do="train for longer")
    rows, rejected = np.array(strange), np.array(directions, dtype=np.float32)
    outside = part_of[rows] != "known"
    found = {"as it comes": clustering(np.array(groups), truth[rows], outside) | {"distance": told.distance}}
    recognizer = load(bundle)
    pictures = [Crop(path, Box(*box)) if box[0] >= 0 else path for path, box in zip(paths, boxes.tolist(), strict=True)]
    every = np.flatnonzero(part_of != "known")
    alone = recognizer.embed([pictures[row] for row in every])
    for name, factor in (("as it comes", 1.0), *((f"{factor:g} times", factor) for factor in FACTORS)):
        distance = factor * told.distance
        if factor != 1:
            within = group_alike(rejected, distance, least=args.least)
            found[name] = clustering(within, truth[rows], outside) | {"distance": distance}
        within = group_alike(alone, distance, least=args.least)
        own = clustering(within, truth[every], np.ones(len(every), dtype=np.bool_)) | {"distance": distance}
        found[f"held-out alone, {name}"] = own
    result = {
        "seed": seed,
        "images": {part: int((part_of == part).sum()) for part in parts},
        "strange": {part: float(np.isin(np.flatnonzero(part_of == part), rows).mean()) for part in parts},
        "reasons": told.reasons,
        "rows": found,
        "makes": _makes(list(grouped.values()), row_of, part_of, kinds),
    }
    write_json(record, result)
    return result


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["path"], *(-1 if row[side] in (None, "") else int(row[side]) for side in BOX)


def _makes(
    rows: list[dict[str, Any]], row_of: dict[tuple[Any, ...], int], part_of: NDArray[Any], kinds: list[Any]
) -> dict[str, Any]:
    """Groups by where most of their images are from: how many, how many have a proposed make, and how many the right
    one."""
    found = {part: {"groups": 0, "proposed": 0, "right": 0} for part in ("known", "models", "makes")}
    for number in sorted({row["candidate"] for row in rows}):
        members = [row for row in rows if row["candidate"] == number]
        places = [row_of[_key(row)] for row in members]
        parts, counts = np.unique(part_of[places], return_counts=True)
        told = found[str(parts[counts.argmax()])]
        makes, counts = np.unique([kinds[place][0] for place in places], return_counts=True)
        make = members[0]["make"] or ""
        told["groups"] += 1
        told["proposed"] += bool(make)
        told["right"] += make == str(makes[counts.argmax()])
    return found


def tables(records: list[dict[str, Any]]) -> str:
    """Markdown: what was grouped how well; who got there; makes."""
    first, second = [], []
    for name in records[0]["rows"]:
        cells = []
        for column in COLUMNS:
            values = [record["rows"][name][column] for record in records]
            if column in ("distance", "ari", "purity", "grouped"):
                cells.append(with_spread([100 * value for value in values]))
            else:
                cells.append(with_spread(values))
        first.append([name, *cells])
    for part in records[0]["images"]:
        made = [with_spread([r["makes"][part][key] for r in records]) for key in ("groups", "proposed", "right")]
        reach = with_spread([100 * record["strange"][part] for record in records])
        second.append([part, with_spread([r["images"][part] for r in records]), reach, *made])
    heads = ["images of", "images", "reach it, %", "groups", "with a make", "right"]
    return f"{table(['', *COLUMNS.values()], first)}\n\n{table(heads, second)}"


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder or manifest with test images")
    parser.add_argument("--bundle", type=Path, help="of the known classes of --protocol, with a bank of neighbours")
    parser.add_argument("--protocol", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/triage"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--least", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.6e-2)
    parser.add_argument("--per-class", type=int, default=60, help="rendered training images of a class")
    args = parser.parse_args()
    if len({args.data is None, args.bundle is None, args.protocol is None}) > 1:
        parser.error("--data, --bundle and --protocol go together")
    all_seeds(args, run_seed, tables)


if __name__ == "__main__":
    main()
