"""What a batch costs: plain, SAM, PMAL and PMD, published and fast, as ratios to plain, in one process.

    python benchmarks/training_step.py [--size 64] [--batch 4] [--rounds 3] [--backbones resnet50 mobilenetv2_100]
        [--json FILE]

Every variant gets the same backbone, images and size, and a whole batch of its method: all steps, both SAM passes,
noise, optimiser. Time is the median over rounds that visit the variants in turn, so that a drifting machine hits all
of them alike; MACs are counted by torch (half of the floating point operations of matrix products and convolutions,
forward and backward). PMD is timed in its first phase, with the teacher; published PMD spends half its epochs in a
second phase, one SAM step on labels, which is the SAM row: its mean over a run is the mean of the two rows.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vmmr.config import TrainConfig
from vmmr.files import write_json
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.recipes import recipe
from vmmr.training.distil import Distil
from vmmr.training.loop import build_optimizer
from vmmr.training.method import Method, total
from vmmr.training.plain import Plain
from vmmr.training.progressive import Progressive
from vmmr.training.sam import clear_gradients, sharpness_aware

CLASSES = 196
VARIANTS = ("plain", "sam", "pmal_published", "pmal_fast", "pmd_published", "pmd_fast")


def one_batch(method: Method, config: TrainConfig, image: torch.Tensor, label: torch.Tensor) -> Callable[[int], None]:
    """What the training loop does with a batch, without data and logs."""
    network = method.network.train()
    parameters = list(network.parameters())
    optimizer = build_optimizer(method, config)
    generator = torch.Generator().manual_seed(0)

    def run(step: int) -> None:
        batch = method.begin({"image": image, "label": label}, 0)
        for update in method.steps(0, step):
            with torch.no_grad():
                prepared = update.prepare(batch, generator)
            sharpness_aware(
                lambda update=update, prepared=prepared: total(update.losses(prepared)).backward(),
                parameters,
                rho=config.sam_rho,
                networks=(network,),
                dense=config.dense_zero_grads,
            )
            optimizer.step()
            clear_gradients(parameters, dense=config.dense_zero_grads)

    return run


def build(name: str, backbone: str) -> tuple[Method, TrainConfig]:
    """A recipe's method on the backbone; students get a fresh teacher of their own form."""
    config = recipe(name)
    trunk = Backbone(backbone, CLASSES)
    if config.method == "plain":
        return Plain(trunk, config), config
    if config.method == "pmal":
        return Progressive(ProgressiveNetwork(trunk, CLASSES, config.heads), config), config
    heads = "published" if config.mode == "published" else "lean"
    return Distil(trunk, ProgressiveNetwork(Backbone(backbone, CLASSES), CLASSES, heads), config), config


def measure(backbone: str, *, size: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and MACs a batch of every variant, and both as ratios to plain."""
    torch.manual_seed(0)
    image, label = torch.rand(batch, 3, size, size) * 2 - 1, torch.randint(0, CLASSES, (batch,))
    runs: dict[str, Callable[[int], None]] = {}
    macs: dict[str, float] = {}
    for name in VARIANTS:
        method, config = build(name, backbone)
        if config.channels_last:
            method.network.to(memory_format=torch.channels_last)
        runs[name] = one_batch(method, config, image, label)
        counts = []
        for step in range(3):  # the fast teacher's depth rotates over three batches
            with FlopCounterMode(display=False) as counter:
                runs[name](step)
            counts.append(counter.get_total_flops() / 2)
        macs[name] = statistics.mean(counts)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for step in range(rounds):
        for name in VARIANTS:
            start = time.perf_counter()
            for offset in range(3):
                runs[name](3 * step + offset)
            seconds[name].append((time.perf_counter() - start) / 3)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        name: {
            "seconds": median[name],
            "gmacs": macs[name] / 1e9,
            "time_ratio": median[name] / median["plain"],
            "mac_ratio": macs[name] / macs["plain"],
        }
        for name in VARIANTS
    }


def table(backbone: str, found: dict[str, dict[str, float]]) -> str:
    """Markdown: a row a variant, ratios to plain; below it fast over published."""
    lines = [f"| {backbone} | s/batch | GMAC/batch | time ratio | MAC ratio |", "|---|---|---|---|---|"]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {row['gmacs']:.2f} | {row['time_ratio']:.2f} | {row['mac_ratio']:.2f} |"
        )
    seconds = {name: row["seconds"] for name, row in found.items()}
    pmal, pmd = (seconds[f"{method}_fast"] / seconds[f"{method}_published"] for method in ("pmal", "pmd"))
    whole = 2 * seconds["pmd_fast"] / (seconds["pmd_published"] + seconds["sam"])
    lines += [
        "",
        f"In time, PMAL fast is {pmal:.3f} of published; PMD fast is {pmd:.3f} of published's first phase and "
        f"{whole:.3f} of a batch of its whole run.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print one table a backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenetv2_100"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": args.size,
        "batch": args.batch,
    }
    for backbone in args.backbones:
        document[backbone] = measure(backbone, size=args.size, batch=args.batch, rounds=args.rounds)
        print(f"\n{table(backbone, document[backbone])}", flush=True)
    if args.json:
        write_json(args.json, document)


if __name__ == "__main__":
    main()
