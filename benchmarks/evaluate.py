"""What the whole robustness benchmark costs: images per second, and the share of it spent in corruption code.

    python benchmarks/evaluate.py [--size 160] [--images 196] [--classes 196] [--backbone mobilenetv2_100]
        [--severities 1 2 3 4 5] [--json FILE]

Evaluates a bundle that has learned nothing on smooth random pictures, clean, under Gaussian noise and under every
corruption at every severity, as `vmmr evaluate --noise` does. Then the corruptions alone are timed on the same
batches. Decoding the pictures is part of neither: it happens once, whatever the number of conditions.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.evaluation.classify import views
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.robustness import condition, noise_curve
from vmmr.export.bundle import Bundle, ModelSpec, build_network
from vmmr.files import write_json
from vmmr.training.samples import open_side


def pictures(folder: Path, images: int, classes: int, size: int) -> Manifest:
    """A manifest of smooth random pictures, classes in turn."""
    random = np.random.default_rng(0)
    names = []
    for number in range(images):
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        names.append(f"{number}.png")
    kinds = [number % classes for number in range(max(images, classes))]
    columns = {
        "path": [*names, *["none.png"] * (len(kinds) - images)],  # rows beyond the pictures only name classes
        "make": [f"make {kind // 4}" for kind in kinds],
        "model": [f"model {kind}" for kind in kinds],
        "split": ["test" if row < images else "" for row in range(len(kinds))],
    }
    return Manifest.from_columns(columns, root=folder).split("test")


def corruption_seconds(pixels: Pixels, preprocess: Preprocess, names: list[str]) -> dict[str, float]:
    """Seconds that each condition's corruption alone takes over all images."""
    clean = list(views(pixels, preprocess))
    seconds = {}
    for name in names:
        degrade = condition(name)
        assert degrade is not None
        start, row = time.perf_counter(), 0
        for image, _ in clean:
            degrade(image, np.arange(row, row + len(image)))
            row += len(image)
        seconds[name] = time.perf_counter() - start
    return seconds


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of the benchmark and of the corruptions in it."""
    manifest = pictures(folder, args.images, args.classes, args.size)
    torch.manual_seed(0)
    spec = ModelSpec(kind="plain", backbone=args.backbone, classes=len(manifest.taxonomy))
    preprocess = Preprocess(height=args.size, width=args.size)
    tensors = build_network(spec).model.state_dict()
    bundle = Bundle(spec, manifest.taxonomy, preprocess, tensors, card="")
    pixels = open_side(manifest, preprocess).pixels
    wanted = noise_curve(args.severities)
    evaluate(bundle, manifest, pixels=pixels)  # the first forwards also allocate
    start = time.perf_counter()
    evaluate(bundle, manifest, wanted=wanted, pixels=pixels)
    whole = time.perf_counter() - start
    corrupting = corruption_seconds(pixels, preprocess, wanted[1:])
    shown = args.images * len(wanted)
    return {
        "backbone": args.backbone,
        "size": args.size,
        "images": args.images,
        "classes": len(manifest.taxonomy),
        "conditions": len(wanted),
        "severities": args.severities,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "seconds": whole,
        "images_per_s": shown / whole,
        "corruption_share": sum(corrupting.values()) / whole,
        "corruption_ms": {name: 1000 * seconds / args.images for name, seconds in corrupting.items()},
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: the corruptions, slowest first, and a sentence of the totals."""
    means: dict[str, list[float]] = {}
    for name, value in found["corruption_ms"].items():
        means.setdefault(name.partition("@")[0] if "@" in name else "plain Gaussian", []).append(value)
    rows = sorted(means.items(), key=lambda item: -np.mean(item[1]))
    lines = ["| corruption | ms an image, mean over severities |", "|---|---|"]
    lines += [f"| {name} | {np.mean(values):.2f} |" for name, values in rows]
    totals = (
        f"{found['backbone']}, {found['size']} px, {found['classes']} classes, {found['images']} images under "
        f"{found['conditions']} conditions, {found['threads']} threads: {found['seconds']:.1f} s, "
        f"{found['images_per_s']:.0f} images/s, of which corruptions {found['corruption_share']:.0%}"
    )
    return "\n".join([*lines, "", totals])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--images", type=int, default=196)
    parser.add_argument("--classes", type=int, default=196)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--severities", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0, 5.0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    print(table(found))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
