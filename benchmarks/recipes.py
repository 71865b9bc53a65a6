"""Recipes against rivals at equal compute, and every lever by itself, on rendered vehicles or on real cars.

    python benchmarks/recipes.py --out runs/recipes [--seeds 0 1 2] [--budget 48]
    python benchmarks/recipes.py --data DATA --weights WEIGHTS.safetensors --out runs/real-recipes --seeds 0 --budget 24
        --size 96 [--rows "plain + noise" ours ...]

A row is one training, or a teacher's and its student's. Its epochs are such that all rows cost what --budget epochs of
plain training cost, in multiply-accumulates that are counted. Every row is judged on the validation images, by which
levers are chosen, and with --test on the test images, under every corruption of the benchmark at severity 3. Finished
runs are not run again. Prints Markdown tables and writes results.json. On a CPU two processes of one thread each, with
half of the rows each, finish sooner than one of two threads; a last call with --finished puts their rows together.

--labels 0.25 learns from a quarter of every class's training images, in a folder of its own. The published row is the
one that has more compute than the others, eight times theirs: with theirs it would see each image twice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vmmr.config import TrainConfig
from vmmr.data.check import duplicate_groups
from vmmr.data.manifest import Manifest
from vmmr.data.rendered import World, write_dataset
from vmmr.data.splits import carve_validation, drop_test_duplicates
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.seeds import with_spread
from vmmr.export.bundle import read_bundle
from vmmr.files import write_json
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.noise import HELD_OUT_OPS, TRAIN_OPS
from vmmr.noise.benchmark import VALIDATION
from vmmr.recipes import recipe
from vmmr.training.distil import Distil
from vmmr.training.method import Method, total
from vmmr.training.plain import Plain
from vmmr.training.progressive import Progressive
from vmmr.training.run import train

Stage = tuple[str, float, dict[str, Any]]
"""A recipe, its share of the compute, and what is changed in it."""

ROUND = 12
"""Steps after which every recipe's steps come round again."""


def macs_per_image(config: TrainConfig, classes: int = 100) -> float:
    """Multiply-accumulates of training on one image, forward and backward, a teacher's forward included."""
    config = config.with_(channels_last=False, weights=None)
    backbone = Backbone(config.backbone, classes, options=config.backbone_options)
    method: Method = Plain(backbone, config)
    if config.method != "plain":
        form = config.heads  # of a student: those of its teacher
        progressive = ProgressiveNetwork(
            Backbone(config.backbone, classes, options=config.backbone_options), classes, form
        )
        method = Progressive(progressive, config) if config.method == "pmal" else Distil(backbone, progressive, config)
    image = torch.zeros(2, 3, config.size, config.size)
    batch = {"image": image, "label": torch.zeros(2, dtype=torch.long)}
    passes = 2 if config.sam_rho else 1
    counted = 0
    rounds = ROUND if config.method == "pmal" else 1
    for number in range(rounds):
        with FlopCounterMode(display=False) as counter:
            begun = method.begin(batch, 0)
        counted += counter.get_total_flops()
        for step in method.steps(0, number):
            prepared = step.prepare(begun, torch.Generator())
            with FlopCounterMode(display=False) as counter:
                total(step.losses(prepared)).backward()
            counted += passes * counter.get_total_flops()
    return counted / 2 / len(image) / rounds


SLIM = {"heads": "slim", "restore_every": 4, "statistics": "half"}


def _pair(teacher: dict[str, Any], student: dict[str, Any], share: float = 0.8) -> tuple[Stage, ...]:
    """A teacher with `share` of the compute and its student with the rest."""
    return (("pmal_fast", share, {**SLIM, **teacher}), ("pmd_fast", 1 - share, {"heads": "slim", **student}))


def _both(share: float = 0.8, **changes: Any) -> tuple[Stage, ...]:
    return _pair(changes, changes, share)


RIVALS: dict[str, tuple[Stage, ...]] = {
    "plain": (("plain", 1, {}),),
    "plain + noise": (("plain_noise", 1, {}),),
    "SAM + noise": (("sam", 1, {"noise": "strong"}),),
    "AugMix": (("augmix", 1, {}),),
    "plain + varied": (("plain_noise", 1, {"noise": "varied"}),),
    "robust": (("robust", 1, {}),),
    "AugMix + noise": (("augmix", 1, {"noise": "varied"}),),
    "robust, make and class": (("robust", 1, {"levels": ["make", "class"]}),),
}
OURS = "PMAL and PMD"
LEVERS: dict[str, tuple[Stage, ...]] = {
    OURS: _both(),
    f"{OURS}, image statistics": _both(statistics="image"),
    "PMAL, trunk kept": (("pmal_fast", 1, {**SLIM, "keep": "trunk"}),),
    "PMAL, trunk kept, image statistics": (("pmal_fast", 1, {**SLIM, "keep": "trunk", "statistics": "image"}),),
    "PMAL, trunk kept, image statistics, no restored pass": (
        ("pmal_fast", 1, {**SLIM, "keep": "trunk", "statistics": "image", "restored_weight": 0.0}),
    ),
    f"{OURS}, varied noise": _both(noise="varied"),
    f"{OURS}, varied noise, image statistics": _both(noise="varied", statistics="image"),
    f"{OURS}, lean heads": _both(heads="lean"),
    f"{OURS}, published heads": _both(heads="published"),
    f"{OURS}, restored at every step": _pair({"restore_every": 1}, {}),
    f"{OURS}, no restored pass": _pair({"restored_weight": 0.0}, {}),
    f"{OURS}, alpha 0.1": _pair({"alpha": 0.1}, {}),
    f"{OURS}, alpha 10": _pair({"alpha": 10.0}, {}),
    f"{OURS}, student without noise": _pair({}, {"noise": "none"}),
    f"{OURS}, fresh student": _pair({}, {"student_init": "fresh"}, 0.5),
    f"{OURS}, no feature term": _pair({}, {"feature_weight": 0.0}),
    f"{OURS}, half of the compute to the teacher": _both(0.5),
    f"{OURS}, EMA": _both(ema=0.99),
    f"{OURS}, precise-BN, clean": _both(precise_norm="clean"),
    f"{OURS}, precise-BN, noisy": _both(precise_norm="noisy"),
    f"{OURS}, statistics of whole passes": _pair({"norm_updates": "whole"}, {}),
}
_PUBLISHED = {
    **{
        name: getattr(recipe("plain"), name)
        for name in ("optimizer", "weight_decay", "schedule", "warmup", "batch_size", "crop", "padding")
    },
    "heads": "lean",
}
"""Of the published runs only the algorithms are taken, and their noise; the frame is that of all rows."""

PUBLISHED: dict[str, tuple[Stage, ...]] = {
    "published PMAL and PMD": (("pmal_published", 4, _PUBLISHED), ("pmd_published", 4, _PUBLISHED))
}
ROWS = {**RIVALS, **LEVERS, **PUBLISHED}
SEVERITY = 3
FAMILIES = {
    "seen": TRAIN_OPS,
    "validation": VALIDATION,
    "others": tuple(name for name in HELD_OUT_OPS if name not in VALIDATION),
}
GAUSSIAN = ("gaussian_0.1", "gaussian_0.2", "gaussian_0.4")


def _folder(out: Path, row: str, stage: int, seed: int) -> Path:
    return out / f"{''.join(c if c.isalnum() else '_' for c in row)}-{stage}-{seed}"


def settings(stage: Stage, seed: int, args: argparse.Namespace) -> TrainConfig:
    """The stage's recipe in the frame of the data: rendered vehicles from scratch, real cars from ImageNet weights."""
    name, share, changes = stage
    base = recipe("plain").with_(noise="augmix", consistency=12.0) if name == "augmix" else recipe(name)
    config = base.with_(**changes)
    config = config.with_(seed=seed, near_duplicates=False)
    if args.data is not None:
        frame: dict[str, Any] = {
            "backbone": "mobilenetv2_100",
            "backbone_options": {"pad_type": "same"},
            "size": args.size,
        }
        if config.method != "pmd" or config.student_init == "fresh":
            frame["weights"] = str(args.weights)
    else:
        rate = 5e-3 if config.method == "pmd" and config.student_init == "teacher" else 1.6e-2
        frame = {"backbone": "test_resnet", "size": 64, "lr": rate, "trunk_lr": rate}
    config = config.with_(**frame)
    plain = recipe("plain").with_(**{key: frame[key] for key in ("backbone", "size")})
    relative = macs_per_image(config) / macs_per_image(plain)
    return config.with_(epochs=max(1, round(args.budget * share / relative)))


def thinned(manifest: Manifest, share: float, seed: int) -> Manifest:
    """The manifest with this share of every class's training rows, at least one; the others have split ""."""
    splits, labels = manifest.splits, manifest.labels
    draw = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero((labels == label) & (splits == "train")))
        splits[rows[max(1, round(share * len(rows))) :]] = ""
    return manifest.with_splits(splits)


def the_data(args: argparse.Namespace, seed: int) -> Path:
    """A manifest with train, val and test rows: the same for all rows of a seed."""
    source = args.out / f"data-{seed}"
    if args.data is not None:
        path = args.out / "cars.parquet"
        if not path.exists():
            manifest = Manifest.load(args.data)
            groups = duplicate_groups([Path(p) for p in manifest.path_list()], near=True)
            manifest = carve_validation(drop_test_duplicates(manifest, groups), 0.1, 0, groups=groups)
            thinned(manifest, args.labels, 0).write(path)
        return path
    if not source.exists():
        world = World(seed=seed, makes=6, models_per_make=4, years=1, fleet=105)
        write_dataset(
            source,
            world=world,
            per_class={"train": 60, "val": 15, "test": 30},
            size=96,
            seed=seed,
            viewpoints=("front", "front-left", "front-right"),
        )
    if args.labels < 1:
        path = args.out / f"data-{seed}.parquet"
        if not path.exists():
            thinned(Manifest.load(source), args.labels, seed).write(path)
        return path
    return source


def run_row(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing of a row, judge the last stage's bundle, return its record."""
    data = the_data(args, seed)
    folder, seconds, epochs = None, 0.0, []
    for number, stage in enumerate(ROWS[row]):
        teacher = folder / "bundle" if folder is not None else None
        config = settings(stage, seed, args)
        # Rows that share a teacher share its run.
        same = next((r for r in ROWS if number < len(ROWS[r]) - 1 and ROWS[r][number] == stage), row)
        folder = _folder(args.out, same, number, seed)
        if not (folder / "metrics.json").exists():
            train(config, data, folder, teacher=teacher, resume=True, test=False)
        metrics = json.loads((folder / "metrics.json").read_text())
        seconds += metrics["train_seconds"]
        epochs.append(config.epochs)
    assert folder is not None
    record: dict[str, Any] = {"row": row, "seed": seed, "epochs": epochs, "seconds": round(seconds)}
    manifest = Manifest.load(data)
    wanted = ["clean", *GAUSSIAN, *(f"{op}@{SEVERITY}" for family in FAMILIES.values() for op in family)]
    for split in ("val", "test") if args.test else ("val",):
        path = folder / f"{split}.json"
        if not path.exists():
            rows = manifest.split(split)
            if len(rows) > args.images:
                rows = rows.select(np.linspace(0, len(rows) - 1, args.images).round().astype(np.int64))
            judged = evaluate(read_bundle(folder / "bundle"), rows, wanted=wanted)
            kept = {name: {k: c[k] for k in ("top1", "ece_calibrated")} for name, c in judged["conditions"].items()}
            write_json(path, {"images": judged["data"]["images"], "conditions": kept})
        record[split] = json.loads(path.read_text())
    return record


def means(judged: dict[str, Any]) -> dict[str, float]:
    """Clean, each family, all corruptions together, Gaussian noise, in percent; calibration error after temperature."""
    top1 = {name: 100 * scores["top1"] for name, scores in judged["conditions"].items()}
    found = {"clean": top1["clean"]}
    for family, ops in FAMILIES.items():
        found[family] = float(np.mean([top1[f"{op}@{SEVERITY}"] for op in ops]))
    found["mean corruption"] = float(np.mean([value for name, value in top1.items() if "@" in name]))
    found["Gaussian"] = float(np.mean([top1[name] for name in GAUSSIAN]))
    corrupted = [scores["ece_calibrated"] for name, scores in judged["conditions"].items() if "@" in name]
    found["ECE"] = 100 * float(np.mean(corrupted))
    return found


def table(records: list[dict[str, Any]], split: str) -> str:
    """Markdown: a row a recipe; mean and, over several seeds, standard deviation."""
    records = [record for record in records if split in record]
    columns = list(means(records[0][split]))
    lines = [f"| row | epochs | {' | '.join(columns)} | seeds |", "|---|---|" + "---|" * (len(columns) + 1)]
    for row in ROWS:
        found = [record for record in records if record["row"] == row]
        if not found:
            continue
        cells = [with_spread([means(record[split])[column] for record in found]) for column in columns]
        epochs = " + ".join(str(e) for e in found[0]["epochs"])
        lines.append(f"| {row} | {epochs} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder or manifest of real cars; rendered vehicles otherwise")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of mobilenetv2_100 as safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--budget", type=float, default=48, help="in epochs of plain training")
    parser.add_argument("--labels", type=float, default=1.0, help="share of the training images that is learned from")
    parser.add_argument("--images", type=int, default=10**9, help="judge at most so many, evenly spaced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--finished", action="store_true", help="put together what is finished, train nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in args.seeds:
        for row in args.rows:
            judged = _folder(args.out, row, len(ROWS[row]) - 1, seed) / ("test.json" if args.test else "val.json")
            if args.finished and not judged.exists():
                continue
            records.append(run_row(row, seed, args))
            write_json(args.out / "results.json", {"records": records})
            print(table(records, "val"), flush=True)
    if args.test:
        print(table(records, "test"))


if __name__ == "__main__":
    main()
