"""Fast against published, on rendered vehicles: accuracy over seeds, at equal epochs and at equal time.

    python benchmarks/fast_and_published.py --out runs/fast-and-published [--seeds 0 1 2] [--epochs 6]

Draws one rendered set, then for every seed trains PMAL by the published algorithm (four SAM steps a batch, whole
forwards, published noise) and by ours, both with the same small backbone, the same lean heads, the same optimiser and
schedule, so that only the algorithm differs; then PMD from each teacher. Prints mean and standard deviation of the test
accuracy (clean, Gaussian noise) and the median of the seconds of training. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.data.rendered import World, write_dataset
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.seeds import with_spread
from vmmr.export.bundle import read_bundle
from vmmr.files import write_json
from vmmr.recipes import recipe
from vmmr.training.run import train

WANTED = ["clean", "gaussian_0.05", "gaussian_0.2"]
# Row -> recipe, epochs relative to --epochs, teacher's row.
ROWS: dict[str, tuple[str, float, str | None]] = {
    "PMAL published": ("pmal_published", 1, None),
    "PMAL fast": ("pmal_fast", 1, None),
    "PMAL fast, 4 x epochs": ("pmal_fast", 4, None),
    "PMD published": ("pmd_published", 1, "PMAL published"),
    "PMD fast": ("pmd_fast", 1, "PMAL fast, 4 x epochs"),
}


def settings(name: str, seed: int, epochs: int, backbone: str) -> TrainConfig:
    """The recipe's algorithm in a frame that all rows share."""
    shared = recipe("plain")
    frame = {
        field: getattr(shared, field)
        for field in (
            "optimizer",
            "lr",
            "trunk_lr",
            "weight_decay",
            "schedule",
            "warmup",
            "batch_size",
            "crop",
            "padding",
            "statistics",
        )
    }
    return recipe(name).with_(
        **frame, heads="lean", backbone=backbone, size=64, epochs=epochs, seed=seed, near_duplicates=False
    )


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row an algorithm, test top-1 in percent as mean and standard deviation over seeds, median seconds."""
    lines = [f"| row | {' | '.join(WANTED)} | seconds |", "|---|" + "---|" * (len(WANTED) + 1)]
    for row in ROWS:
        found = [r for r in records if r["row"] == row]
        cells = [with_spread([100 * r[name] for r in found]) for name in WANTED]
        lines.append(f"| {row} | {' | '.join(cells)} | {np.median([r['seconds'] for r in found]):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fast-and-published"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--backbone", default="test_resnet")
    args = parser.parse_args()
    data = args.out / "data"
    if not data.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        world = World(years=1, makes=4, models_per_make=3)
        write_dataset(
            data,
            world=world,
            per_class={"train": 60, "test": 30},
            size=96,
            viewpoints=("front", "front-left", "front-right"),
        )
    test = Manifest.load(data).split("test")
    records = []
    for seed in args.seeds:
        for row, (name, stretch, teacher) in ROWS.items():
            folder = args.out / f"{row.replace(' ', '_').replace(',', '')}-{seed}"
            if not (folder / "record.json").exists():
                guide = None
                if teacher is not None:
                    guide = args.out / f"{teacher.replace(' ', '_').replace(',', '')}-{seed}" / "bundle"
                config = settings(name, seed, round(args.epochs * stretch), args.backbone)
                metrics = train(config, data, folder, teacher=guide, resume=True, test=False)
                judged = evaluate(read_bundle(folder / "bundle"), test, wanted=WANTED)
                scores = {key: value["top1"] for key, value in judged["conditions"].items()}
                record = {"row": row, "seed": seed, "seconds": metrics["train_seconds"], **scores}
                write_json(folder / "record.json", record)
            records.append(json.loads((folder / "record.json").read_text()))
    print(table(records))
    write_json(args.out / "results.json", records)


if __name__ == "__main__":
    main()
