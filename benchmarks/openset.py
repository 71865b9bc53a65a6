"""Known against unknown: every score on three open sets, clean and under noise.

    python benchmarks/openset.py --out runs/openset [--seeds 0 1 2] [--recipe plain_noise] [--epochs 48]
    python benchmarks/openset.py --data DATA --weights WEIGHTS.safetensors --others FOLDER ... --out runs/open-cars
        --backbone mobilenetv2_100 --size 96 --epochs 24 [--seeds 0 1 2]
    python benchmarks/openset.py --data DATA --bundle BUNDLE --protocol PROTOCOL.json --out runs/one

Of every seed one draw holds out models of known makes, whole makes, and takes what is no vehicle from the folders of
--others; a network learns the known classes by a recipe (or is given, with its protocol). Features are extracted once
for each condition. Scores are fitted on training images, as published; thresholds, and what "chosen" rows choose, on
validation images; test and open sets are looked at last. Without --data vehicles are rendered, and the others are
random pictures. A seed that is finished is not run again. Prints Markdown tables and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vmmr.data.check import duplicate_groups
from vmmr.data.manifest import Manifest
from vmmr.data.openset import OpenSetProtocol, OpenSets, apply_protocol, draw_protocol, other_pictures
from vmmr.data.rendered import World, write_dataset
from vmmr.data.splits import carve_validation, drop_test_duplicates, split_hash
from vmmr.errors import ConfigError
from vmmr.evaluation.classify import predict_logits
from vmmr.evaluation.markdown import table
from vmmr.evaluation.openset import auroc, choose_mask, openset_scores, oscr, taken_for_unknown
from vmmr.evaluation.robustness import Degrade, condition
from vmmr.evaluation.seeds import with_spread
from vmmr.export.bundle import Bundle, read_bundle
from vmmr.files import write_json
from vmmr.models import Backbone
from vmmr.recipes import recipe
from vmmr.training.run import train
from vmmr.training.samples import Side, open_side
from vmmr.unknown import SCORES, Fitted, Gate, Statistics, accept_threshold, decide, fit_gate, gather, hidden_scores
from vmmr.unknown.himplos import fit_himplos
from vmmr.unknown.quality import contrast, detail

CONDITIONS = ["gaussian_0.2", "defocus@3", "motion_blur@3", "fog@3", "low_light@3", "rain@3", "jpeg@3", "downscale@3"]
CHOSEN = ("himplos", "himplos_max_logit", "himplos_msp")
SETS = ("models", "makes", "others")
SIDES = (64, 48, 32, 24, 16)
"""Shorter sides in pixels to which test images are shrunk."""


class Seen(NamedTuple):
    """What the network makes of images: features [N, D], logits [N, C]; contrast and detail [N] of what it saw."""

    features: Tensor
    logits: Tensor
    contrast: Tensor
    detail: Tensor


class Judge(NamedTuple):
    """A score with its constants."""

    score: Callable[[Tensor, Tensor, Any], Tensor]
    fitted: Fitted

    def __call__(self, seen: Seen) -> Tensor:
        return self.score(seen.features, seen.logits, self.fitted)


def see(network: Backbone, side: Side, degrade: Degrade | None = None) -> Seen:
    """All images of a side, in one pass."""
    pixels = side.pixels
    preprocess = replace(pixels.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)

    def answer(image: Tensor) -> Tensor:
        maps = network.model.forward_features(network.own_space(image))
        features = network.model.forward_head(maps, pre_logits=True)
        logits = network.model.get_classifier()(features)
        return torch.cat([features, logits, contrast(image)[:, None], detail(image)[:, None]], dim=1)

    found = predict_logits(answer, network, pixels, preprocess, degrade=degrade)
    width = network.width
    return Seen(found[:, :width], found[:, width:-2], found[:, -2], found[:, -1])


def shrunk(image: Tensor, keys: NDArray[np.int64], *, side: int) -> Tensor:
    """Images as if they had come with so many pixels a side."""
    small = functional.interpolate(image, side, mode="bilinear", antialias=True)
    return functional.interpolate(small, image.shape[-2:], mode="bilinear")


def drawn_vehicles(out: Path, seed: int, per_class: int, makes: int = 8) -> Manifest:
    """Vehicles of a world of this seed, four models a make, `per_class` training images of each; drawn once."""
    folder = out / f"data-{seed}"
    if not folder.exists():
        counts = {"train": per_class, "test": max(2, per_class // 3)}
        world = World(seed=seed, makes=makes, models_per_make=4, years=1, fleet=sum(counts.values()))
        write_dataset(folder, world=world, per_class=counts, size=96, seed=seed, viewpoints=("front", "front-left"))
    return Manifest.load(folder)


def _random_pictures(out: Path) -> Path:
    others = out / "random-pictures"
    if not others.exists():
        others.mkdir(parents=True)
        random = np.random.default_rng(0)
        for number in range(200):
            coarse = Image.fromarray(random.integers(0, 256, (*random.integers(2, 40, 2), 3), dtype=np.uint8))
            coarse.resize((96, 96), Image.Resampling.BICUBIC).save(others / f"{number:03}.png")
    return others


def divided(manifest: Manifest, protocol: OpenSetProtocol, *, duplicates: bool) -> OpenSets:
    """The sets of a protocol, with validation carved from the known training rows by its seed. duplicates: drop test
    images that are training images too; rendered vehicles are drawn apart, and may look alike."""
    groups = duplicate_groups(manifest.path_list()) if duplicates else None
    sets = apply_protocol(manifest, protocol, groups=groups)
    known_groups = None
    if groups is not None:
        rows = {path: row for row, path in enumerate(manifest.path_list())}
        known_groups = groups[[rows[path] for path in sets.known.path_list()]]
    known = drop_test_duplicates(sets.known, known_groups)
    if not (known.splits == "val").any():
        known = carve_validation(known, 0.1, protocol.seed, groups=known_groups)
    return sets._replace(known=known)


def _open_sets(args: argparse.Namespace, seed: int, home: Path) -> tuple[OpenSetProtocol, OpenSets, list[Path]]:
    """The protocol of a seed, its sets, and the folders of others."""
    if args.data is None:
        manifest, others = drawn_vehicles(args.out, seed, args.per_class), [_random_pictures(args.out)]
    else:
        manifest, others = Manifest.load(args.data), args.others
    if args.protocol is not None:
        protocol = OpenSetProtocol.from_json(args.protocol.read_text(encoding="utf-8"))
    else:
        models, makes = args.held_out
        protocol = draw_protocol(manifest, models=models, makes=makes, seed=seed)
    (home / "protocol.json").write_text(protocol.to_json(), encoding="utf-8")
    return protocol, divided(manifest, protocol, duplicates=args.data is not None), others


def _bundle(args: argparse.Namespace, seed: int, known: Manifest, home: Path) -> Bundle:
    if args.bundle is not None:
        return read_bundle(args.bundle)
    table = home / "known.parquet"
    known.write(table)
    config = recipe(args.recipe).with_(
        backbone=args.backbone, size=args.size, epochs=args.epochs, seed=seed, near_duplicates=False
    )
    if args.backbone == "mobilenetv2_100":
        config = config.with_(backbone_options={"pad_type": "same"})
    if args.smoothing is not None:
        config = config.with_(smoothing=args.smoothing)
    if args.weights is not None:
        config = config.with_(weights=str(args.weights))
    else:
        config = config.with_(lr=args.lr, trunk_lr=args.lr)
    if not (home / "run" / "metrics.json").exists():
        train(config, table, home / "run", resume=True, test=False)
    return read_bundle(home / "run" / "bundle")


def fit_judges(
    statistics: Statistics, held: Seen, labels: Tensor
) -> tuple[dict[str, Judge], dict[str, tuple[float, float | None]]]:
    """Every score as published, and HIMPLoS with the mask and cut that validation images choose; what they chose."""
    judges = {name: Judge(score, fit(statistics)) for name, (score, fit, _) in SCORES.items()}
    chosen = {}
    for name in CHOSEN:
        score = SCORES[name].score
        chosen[name] = choose_mask(held.features, held.logits, labels, statistics, score=score)
        judges[f"{name}, chosen"] = Judge(score, fit_himplos(statistics, *chosen[name]))
    return judges, chosen


def judged(
    judge: Judge, test: Seen, right: NDArray[np.bool_], unknown: dict[str, Seen], threshold: float
) -> dict[str, Any]:
    """A score under one condition: the share of known images above the threshold, and OSCR and AUROC by open set."""
    own = judge(test).numpy()
    foreign = {part: judge(seen).numpy() for part, seen in unknown.items()}
    return {
        "taken_for_unknown": taken_for_unknown(own, threshold),
        "oscr": {part: oscr(own, right, found) for part, found in foreign.items()},
        "auroc": {part: auroc(own, found) for part, found in foreign.items()},
    }


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One draw: train, fit, judge. The record is written once it is complete."""
    home = args.out / f"seed-{seed}"
    record = home / "record.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    home.mkdir(parents=True, exist_ok=True)
    protocol, sets, folders = _open_sets(args, seed, home)
    bundle = _bundle(args, seed, sets.known, home)
    network = bundle.network()
    if not isinstance(network, Backbone) or {c.key for c in bundle.taxonomy.classes} != set(protocol.known):
        raise ConfigError("the bundle is no plain network of the known classes", got=f"{len(bundle.taxonomy)} classes")
    known = sets.known.with_taxonomy(bundle.taxonomy)
    sides = {name: open_side(known.split(name), bundle.preprocess) for name in ("train", "val", "test")}
    for name in ("models", "makes"):
        sides[name] = open_side(getattr(sets, name), bundle.preprocess)
    folder_sides = [open_side(other_pictures(folder, most=600, seed=seed), bundle.preprocess) for folder in folders]

    def open_sets(degrade: Degrade | None) -> dict[str, Seen]:
        found = {name: see(network, sides[name], degrade) for name in ("models", "makes")}
        if folder_sides:
            parts = [see(network, side, degrade) for side in folder_sides]
            found["others"] = Seen(*map(torch.cat, zip(*parts, strict=True)))
        return found

    classifier = network.model.get_classifier()
    learned = see(network, sides["train"])
    statistics = gather(_batches(learned, sides["train"]), classifier.weight, classifier.bias, seed=seed)
    held = see(network, sides["val"])
    held_labels = torch.from_numpy(sides["val"].labels)
    judges, chosen = fit_judges(statistics, held, held_labels)
    strange = {name: judge(held) for name, judge in judges.items()}
    thresholds = {name: accept_threshold(values, 0.95) for name, values in strange.items()}
    hidden = {
        name: hidden_scores(judge.score, held.features, held.logits, held_labels, judge.fitted)
        for name, judge in judges.items()
    }
    told = {name: auroc(strange[name], hidden[name]) for name in judges}
    gate = fit_gate(strange[args.gate], hidden[args.gate], held.contrast, held.detail)
    result: dict[str, Any] = {
        "seed": seed,
        "recipe": args.recipe if args.bundle is None else None,
        "smoothing": args.smoothing,
        "backbone": bundle.spec.backbone,
        "size": bundle.preprocess.height,
        "splits": split_hash(sets.known),
        "classes": {name: len(getattr(protocol, name)) for name in ("known", "models", "makes")},
        "chosen": chosen,
        "hidden": told,
        "gate": {"score": args.gate, **asdict(gate)},
        "clean": {},
        "noise": {},
        "sides": {},
        "reasons": {},
    }
    labels = sides["test"].labels
    for name in ["clean", *args.conditions]:
        degrade = condition(name, seed=seed)
        test, unknown = see(network, sides["test"], degrade), open_sets(degrade)
        right = test.logits.argmax(dim=1).numpy() == labels
        every = {"known": test, **unknown}
        result["reasons"][name] = {p: _reasons(gate, judges[args.gate](seen), seen) for p, seen in every.items()}
        scores = {row: judged(judge, test, right, unknown, thresholds[row]) for row, judge in judges.items()}
        result["noise"][name] = {"top1": float(right.mean()), "scores": scores}
        if name == "clean":
            result["images"] = {part: len(seen.logits) for part, seen in every.items()}
            for row, judge in judges.items():
                own = judge(test).numpy()
                result["clean"][row] = {
                    part: openset_scores(own, right, judge(seen).numpy(), seed=seed) for part, seen in unknown.items()
                }
    for pixels in (side for side in SIDES if side < bundle.preprocess.height):
        test = see(network, sides["test"], lambda image, keys, pixels=pixels: shrunk(image, keys, side=pixels))
        result["sides"][str(pixels)] = {
            "top1": float((test.logits.argmax(dim=1).numpy() == labels).mean()),
            "taken_for_unknown": taken_for_unknown(judges[args.gate](test).numpy(), gate.known),
        }
    write_json(record, result)
    return result


def _batches(seen: Seen, side: Side) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    labels = torch.from_numpy(side.labels)
    for rows in torch.arange(len(labels)).split(256):
        yield seen.features[rows], labels[rows], rows


def _reasons(gate: Gate, scores: Tensor, seen: Seen) -> dict[str, float]:
    """The share of images of each reason; a flat network is always sure, and all pictures are large enough."""
    rows = zip(scores.tolist(), seen.contrast.tolist(), seen.detail.tolist(), strict=True)
    found = Counter(decide(gate, score=s, sure=True, side=gate.shortest, contrast=c, detail=d) for s, c, d in rows)
    return {str(reason): count / len(scores) for reason, count in sorted(found.items())}


def clean_table(records: list[dict[str, Any]]) -> str:
    """Markdown, in percent: every score on the open sets, clean pictures."""
    first = records[0]
    sets = [part for part in SETS if part in first["images"]]
    heads = [f"{part} {measure}" for part in sets for measure in ("AUROC", "FPR95", "OSCR")]
    rows = []
    for score in first["clean"]:
        cells = [
            _cell(records, lambda r, s=score, p=part, m=measure: r["clean"][s][p][m])  # type: ignore[misc]
            for part in sets
            for measure in ("auroc", "fpr95", "oscr")
        ]
        rows.append([score, _cell(records, lambda r, s=score: r["hidden"][s]), *cells])  # type: ignore[misc]
    return table(["score", "hidden AUROC", *heads], rows)


def tables(records: list[dict[str, Any]]) -> str:
    """Markdown, in percent: every score on the open sets; what noise makes unknown; reasons; shrunk pictures."""
    cell = partial(_cell, records)
    first, parts = records[0], [clean_table(records)]
    sets = [part for part in SETS if part in first["images"]]
    names = list(first["noise"])
    parts += ["", "Known images taken for unknown, at the threshold that accepts 95 % of validation images:", ""]
    rows = [["(top-1)", *[cell(lambda r, n=n: r["noise"][n]["top1"]) for n in names]]]  # type: ignore[misc]
    for score in first["clean"]:
        cells = [
            cell(lambda r, n=n, s=score: r["noise"][n]["scores"][s]["taken_for_unknown"])  # type: ignore[misc]
            for n in names
        ]
        rows.append([score, *cells])
    parts.append(table(["score", *names], rows))
    reasons = ("ok", "low_quality", "unknown_vehicle", "not_a_vehicle")
    rows = []
    shown = [(name, part) for name in names for part in ("known", *sets) if name == "clean" or part == "known"]
    for name, part in shown:
        cells = [
            cell(lambda r, n=name, p=part, k=reason: r["reasons"][n][p].get(k, 0.0))  # type: ignore[misc]
            for reason in reasons
        ]
        rows.append([f"{part}, {name}", *cells])
    parts += ["", f"Decisions by {first['gate']['score']}:", "", table(["images", *reasons], rows)]
    rows = []
    for side in first["sides"]:
        cells = [cell(lambda r, s=side, k=key: r["sides"][s][k]) for key in ("top1", "taken_for_unknown")]  # type: ignore[misc]
        rows.append([f"{side} px", *cells])
    parts += ["", table(["shorter side", "top-1", "taken for unknown"], rows)]
    return "\n".join(parts)


def _cell(records: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
    return with_spread([100 * value(record) for record in records])


def all_seeds(
    args: argparse.Namespace,
    run: Callable[[argparse.Namespace, int], dict[str, Any]],
    printed: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Run the seeds of --seeds, keep what there is in results.json after each, print its tables."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in args.seeds:
        records.append(run(args, seed))
        write_json(args.out / "results.json", {"commit": commit, "records": records})
    print(printed(records))


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder or manifest with train and test images")
    parser.add_argument("--others", type=Path, nargs="+", default=[], help="folders of pictures of no vehicle")
    parser.add_argument("--out", type=Path, default=Path("runs/openset"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--held-out", type=float, nargs=2, default=(0.15, 0.15), metavar="SHARE", help="models, then makes"
    )
    parser.add_argument("--recipe", default="plain_noise")
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--smoothing", type=float, help="of labels; that of the recipe without")
    parser.add_argument("--lr", type=float, default=1.6e-2, help="where there are no weights to start from")
    parser.add_argument("--per-class", type=int, default=60, help="rendered training images of a class")
    parser.add_argument("--bundle", type=Path, help="a bundle of the known classes of --protocol, instead of training")
    parser.add_argument("--protocol", type=Path)
    parser.add_argument("--gate", default="knn_pca", choices=SCORES, help="the score that decides")
    parser.add_argument("--conditions", nargs="*", default=CONDITIONS)
    args = parser.parse_args()
    if (args.bundle is None) != (args.protocol is None):
        parser.error("--bundle and --protocol go together")
    all_seeds(args, run_seed, tables)


if __name__ == "__main__":
    main()
