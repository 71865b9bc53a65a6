"""A capture domain for a bundle that is there: what a bank of BatchNorms brings, and which images go to it.

    python benchmarks/domains.py --out runs/domains --seeds 1 2 3
    python benchmarks/domains.py --data DATA --bundle BUNDLE --domains low_light@5 --out runs/domains-cars

A domain is a corruption of the benchmark at one severity, every image with draws of its own. The bundle is extended by
`vmmr extend --mode domain` with corrupted training images, without and with their labels; its old data is what it was
trained on. Test images, clean and corrupted, are looked at last. Beside the routing by the first layer's statistics
stands the bank whose answer is surest, at a pass for each. Without --data vehicles are rendered and a small network is
trained for each seed. A seed that is finished is not run again. Prints a Markdown table and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from extend import rendered, small_bundle
from openset import all_seeds
from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.errors import ConfigError
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.seeds import with_spread
from vmmr.export.bundle import Bundle, Network, read_bundle, write_bundle
from vmmr.extend.domain import extend_domain
from vmmr.files import write_json
from vmmr.incremental.domains import domain_banks, signatures
from vmmr.models import Backbone
from vmmr.noise.benchmark import corrupt


def _images(bundle: Bundle, rows: Manifest) -> Tensor:
    """Decoded and resized, not yet cropped, [N, 3, h, w] in [0, 1]: what a file of the domain may hold, so that all
    that follows meets files and images alike."""
    pixels = Pixels(rows.path_list(), bundle.preprocess, boxes=rows.boxes)
    return pixels[np.arange(len(pixels))].float() / 255


def _corrupted(clean: Tensor, name: str, severity: str) -> Tensor:
    """To 8 bits, as a file holds them."""
    keys = torch.arange(len(clean)).split(128)
    found = [corrupt(part, name, float(severity), keys=key) for part, key in zip(clean.split(128), keys, strict=True)]
    return (torch.cat(found) * 255).round() / 255


def _written(images: Tensor, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{place:05d}.png") for place in range(len(images))]
    for path, image in zip(paths, (images * 255).round().byte().permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image).save(path)
    return paths


@torch.no_grad()
def _scores(bundle: Bundle, network: Network, images: Tensor) -> Tensor:
    return torch.cat(
        [bundle.class_scores(network.answer_of(network(2 * p - 1, pooled=True))) for p in images.split(64)]
    )


def _judged(bundle: Bundle, clean: Tensor, domain: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of test images, cropped: right, clean and in the domain; of each that its own bank answers, by the
    statistics of the first layer and by the surest answer; right in the domain where the bank is told; seconds an
    image."""
    network = bundle.network()
    backbone = network if isinstance(network, Backbone) else network.backbone
    banks = domain_banks(backbone)
    found: dict[str, float] = {}
    for domain_of, (name, images) in enumerate((("clean", clean), ("domain", domain))):
        started = time.perf_counter()
        scores = _scores(bundle, network, images)
        found[f"{name}_seconds"] = (time.perf_counter() - started) / len(images)
        found[name] = float((scores.argmax(dim=1) == labels).double().mean())
        if len(banks) > 1:
            nearest = banks.distances(signatures(backbone, 2 * images - 1)).argmin(dim=1)
            found[f"{name}_routed"] = float((nearest == domain_of).double().mean())
            by_bank = []
            for bank in (0, 1):
                with banks.told(bank):
                    by_bank.append(_scores(bundle, network, images))
            surest = torch.stack([some.softmax(dim=1).amax(dim=1) for some in by_bank], dim=1).argmax(dim=1)
            found[f"{name}_surest"] = float((surest == domain_of).double().mean())
            found[f"{name}_told"] = float((by_bank[domain_of].argmax(dim=1) == labels).double().mean())
    return found


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Every domain of a seed. The record is written once it is complete."""
    home = args.out / f"seed-{seed}"
    if (home / "record.json").exists():
        return dict(json.loads((home / "record.json").read_text()))
    home.mkdir(parents=True, exist_ok=True)
    if args.data is None:
        old = rendered(home, seed)
        source = small_bundle(home / "data", home / "run", method=args.recipe, epochs=args.epochs, seed=seed)
    else:
        source, old = args.bundle, Manifest.load(args.data)
    bundle = read_bundle(source)
    crop = bundle.preprocess.centre_crop
    old = old.with_taxonomy(bundle.taxonomy)
    if not (old.splits == "val").any():
        validation = np.random.default_rng(0).random(len(old)) < 0.1
        old = old.with_splits(np.where((old.splits == "train") & validation, "val", old.splits))
    shown, test = old.split("train"), old.split("test")
    random = np.random.default_rng(seed)
    if args.images:
        shown = shown.select(np.sort(random.permutation(len(shown))[: args.images]))
        test = test.select(np.sort(random.permutation(len(test))[: 2 * args.images]))
    clean, fresh, labels = _images(bundle, test), _images(bundle, shown), torch.from_numpy(test.labels)
    record: dict[str, Any] = {"seed": seed, "images": len(shown), "test": len(test), "domains": {}}
    for condition in args.domains:
        name, _, severity = condition.partition("@")
        noisy = crop(_corrupted(clean, name, severity))
        paths = _written(_corrupted(fresh, name, severity), home / condition)
        kinds, kind_of = shown.vehicles
        columns = {key: [kinds[kind][place] for kind in kind_of] for place, key in enumerate(("make", "model", "year"))}
        table = Manifest.from_columns({"path": paths, **columns, "split": ["train"] * len(paths)})
        ways: dict[str, Any] = {"before": _judged(bundle, crop(clean), noisy, labels)}
        for way, new in (("statistics", paths), ("with labels", table)):
            started = time.perf_counter()
            found = extend_domain(source, new, old=old, bound=args.bound, force=True).bundle
            seconds = time.perf_counter() - started
            again = read_bundle(write_bundle(home / f"{condition}-{way.replace(' ', '-')}", found))
            ways[way] = {"seconds": seconds, "told": dict(found.added), **_judged(again, crop(clean), noisy, labels)}
        record["domains"][condition] = ways
        print(
            seed, condition, json.dumps({way: (one["clean"], one["domain"]) for way, one in ways.items()}), flush=True
        )
    write_json(home / "record.json", record)
    return record


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, in percent but for seconds: means over seeds and, where there are several, the spread."""
    lines = [
        "| domain | bank | seconds | in the domain | told | clean | own bank: domain, clean | by the surest answer |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def mean(condition: str, way: str, key: str, times: float = 100) -> str:
        return with_spread(times * np.array([record["domains"][condition][way][key] for record in records]))

    for condition in records[0]["domains"]:
        for way in records[0]["domains"][condition]:
            cells = [
                f"{condition_title(condition)} at {condition.partition('@')[2]}",
                "none" if way == "before" else way,
            ]
            if way == "before":
                cells += ["", mean(condition, way, "domain"), "", mean(condition, way, "clean"), "", ""]
            else:
                cells += [mean(condition, way, "seconds", 1), mean(condition, way, "domain")]
                cells += [mean(condition, way, "domain_told"), mean(condition, way, "clean")]
                cells += [
                    f"{mean(condition, way, f'domain_{by}')}, {mean(condition, way, f'clean_{by}')}"
                    for by in ("routed", "surest")
                ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description="What a bank for a capture domain brings.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="manifest or folder; rendered without")
    parser.add_argument("--bundle", type=Path, help="trained on it")
    parser.add_argument("--images", type=int, default=0, help="of the domain, at most; twice as many test images")
    parser.add_argument("--domains", nargs="+", default=["low_light@3", "low_light@5", "fog@3", "gaussian@4"])
    parser.add_argument("--recipe", default="plain", help="of the rendered network")
    parser.add_argument("--epochs", type=int, default=15, help="of the rendered network")
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    if (args.data is None) != (args.bundle is None):
        raise ConfigError("data and bundle go together")
    all_seeds(args, run_seed, table)


if __name__ == "__main__":
    main()
