"""The real-cars table: six ways to train one backbone on Stanford Cars, clean and under noise.

    python benchmarks/real_cars.py DATA WEIGHTS.safetensors --out runs/real-cars [--size 96] [--epochs 4] [--seeds 0]
        [--rows plain "PMAL fast (teacher)" ...]

Every row is a run of `vmmr.training.run.train` with one recipe; a row that is finished is not run again, and one that
was interrupted is resumed. Afterwards DATA's test images are evaluated: all of them clean and under Gaussian noise,
every eighth under the corruption benchmark. Writes results.json, and prints the table that docs/results.md shows. On a
CPU two processes of one thread each (OMP_NUM_THREADS=1), with half of the rows each, finish sooner than one of two
threads; a last call without --rows puts their rows together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.seeds import with_spread
from vmmr.export.bundle import read_bundle
from vmmr.noise import HELD_OUT_OPS, OPS, TRAIN_OPS
from vmmr.noise.benchmark import VALIDATION
from vmmr.recipes import recipe
from vmmr.training.run import train

# Row -> recipe, epochs relative to --epochs, row of the teacher.
ROWS: dict[str, tuple[str, float, str | None]] = {
    "plain": ("plain", 1, None),
    "plain + noise": ("plain_noise", 1, None),
    "PMAL fast (teacher)": ("pmal_fast", 1, None),
    "PMD fast (student)": ("pmd_fast", 1, "PMAL fast (teacher)"),
    "plain, twice the epochs": ("plain", 2, None),
    "SAM": ("sam", 1, None),
    "plain + noise, twice the epochs": ("plain_noise", 2, None),
}
GAUSSIAN = ["clean", "gaussian_0.1", "gaussian_0.2", "gaussian_0.4"]
SEVERITY = 3
FAMILIES = {"seen": TRAIN_OPS, "unseen": HELD_OUT_OPS, "validation": VALIDATION}


def _folder(out: Path, row: str, seed: int) -> Path:
    return out / f"{''.join(c if c.isalnum() else '_' for c in row)}-{seed}"


def run_row(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train (or resume, or skip) one row, evaluate its bundle, return its record."""
    name, stretch, teacher = ROWS[row]
    folder = _folder(args.out, row, seed)
    record = folder / "record.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    config: TrainConfig = recipe(name).with_(
        backbone="mobilenetv2_100",
        backbone_options={"pad_type": "same"},
        weights=str(args.weights) if teacher is None else None,
        size=args.size,
        epochs=round(args.epochs * stretch),
        seed=seed,
    )
    if (folder / "metrics.json").exists():
        metrics = json.loads((folder / "metrics.json").read_text())
    else:
        guide = _folder(args.out, teacher, seed) / "bundle" if teacher is not None else None
        metrics = train(config, args.data, folder, teacher=guide, resume=True, test=False)
    bundle = read_bundle(folder / "bundle")
    test = Manifest.load(args.data).split("test")
    judged = evaluate(bundle, test, wanted=GAUSSIAN)
    family = [f"{op}@{SEVERITY}" for op in OPS]
    eighth = evaluate(bundle, test.select(np.arange(0, len(test), 8)), wanted=family)
    result = {
        "row": row,
        "recipe": name,
        "seed": seed,
        "size": args.size,
        "epochs": config.epochs,
        "seconds": metrics["train_seconds"],
        "val_top1": metrics["val_top1"],
        "parameters": judged["cost"]["parameters"],
        "test_images": judged["data"]["images"],
        "family_images": eighth["data"]["images"],
        "conditions": {**judged["conditions"], **eighth["conditions"]},
    }
    record.write_text(json.dumps(result, indent=1))
    return result


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: top-1 / top-5 in percent, mean over seeds (and their spread, when there are several)."""
    families = [f"{len(ops)} {name}" for name, ops in FAMILIES.items()]
    lines = [
        f"| row | epochs | {' | '.join([*GAUSSIAN, *families])} |",
        "|---|---|" + "---|" * (len(GAUSSIAN) + len(families)),
    ]
    for row in ROWS:
        found = [r for r in records if r["row"] == row]
        if not found:
            continue
        cells = []
        for name in GAUSSIAN:
            top1 = 100 * np.array([r["conditions"][name]["top1"] for r in found])
            top5 = 100 * np.array([r["conditions"][name]["top5"] for r in found])
            cells.append(f"{with_spread(top1)} / {top5.mean():.1f}")
        for ops in FAMILIES.values():
            top1 = [100 * np.mean([r["conditions"][f"{op}@{SEVERITY}"]["top1"] for op in ops]) for r in found]
            cells.append(f"{np.mean(top1):.1f}")
        lines.append(f"| {row} | {found[0]['epochs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder or manifest with train and test images")
    parser.add_argument("weights", type=Path, help="ImageNet weights of mobilenetv2_100 as safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/real-cars"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in args.seeds:
        for row in args.rows:
            records.append(run_row(row, seed, args))
            results = {"commit": commit, "records": records}
            (args.out / "results.json").write_text(json.dumps(results, indent=1))
            print(table(records), flush=True)


if __name__ == "__main__":
    main()
