"""What a training step costs under each rule, as a ratio to the plain sum of the losses, in one process.

    python benchmarks/balancing.py [--backbone resnet50] [--size 96] [--batch 16] [--tasks 2 4 8] [--rounds 7]
        [--rules avgnorm avgnorm@features] [--device cpu] [--json FILE]

A step is forward, backward under the rule and SGD, on random images; each loss has a linear head on the pooled
features. Rules compare gradients at the weight of the last convolution, those named `...@features` at the pooled
features, those named `...@trunk` over all parameters of the trunk. Each rule's step is timed right after one of the
plain sum, and its ratio is the median over rounds of those pairs, so that a drifting or busy machine hits both alike;
on a CPU time is the process's own, wall time elsewhere. MACs are counted by torch (half of the floating point
operations of matrix products and convolutions).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vmmr.torchvision_ops  # noqa: F401  isort: skip  (before timm)
import timm

from vmmr.balancing import BALANCERS, Fixed, balanced_backward
from vmmr.files import write_json

CLASSES = 196
FEATURES = ("avgnorm", "upgrad")
TRUNK = ("pcgrad", "upgrad")
Step = Callable[[], None]


def build(backbone: str, *, tasks: int, size: int, batch: int, device: str) -> tuple[Step, dict[str, Step]]:
    """The plain step and those of all rules, on one network."""
    torch.manual_seed(0)
    trunk = timm.create_model(backbone, pretrained=False, num_classes=0).to(device).train()
    names = [f"task_{i}" for i in range(tasks)]
    heads = nn.ModuleDict({name: nn.Linear(trunk.num_features, CLASSES) for name in names}).to(device)
    last = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d)][-1].weight
    image = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    labels = torch.randint(CLASSES, (tasks, batch), device=device)
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def step(rule: Any, where: str = "") -> None:
        features = trunk(image)
        losses = {n: nn.functional.cross_entropy(heads[n](features), y) for n, y in zip(names, labels, strict=True)}
        if rule is None:
            torch.stack(list(losses.values())).sum().backward()
        else:
            shared = {"": [last], "features": [features], "trunk": list(trunk.parameters())}[where]
            balanced_backward(losses, rule, shared, heads=list(heads.parameters()))
        optimizer.step()
        optimizer.zero_grad()

    steps = {name: partial(step, make(names).to(device)) for name, make in BALANCERS.items()}
    steps |= {f"{name}@features": partial(step, BALANCERS[name](names).to(device), "features") for name in FEATURES}
    steps |= {f"{name}@trunk": partial(step, BALANCERS[name](names).to(device), "trunk") for name in TRUNK}
    del steps["fixed"]
    return partial(step, None), {"fixed": partial(step, Fixed(names).to(device)), **steps}


def seconds(step: Step, device: str) -> float:
    """Time of one step: of the process on a CPU, of the wall elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def macs(step: Step) -> float:
    """Multiplications with additions of one step, which also warms it up."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


def measure(plain: Step, steps: dict[str, Step], *, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """By rule: its seconds a step, and time and MACs over those of the plain sum."""
    base = macs(plain)
    counted = {name: macs(step) / base for name, step in steps.items()}
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            pairs[name].append((seconds(plain, device), seconds(step, device)))
    return {
        name: {
            "seconds": statistics.median(own for _, own in found),
            "time_ratio": statistics.median(own / before for before, own in found),
            "mac_ratio": counted[name],
        }
        for name, found in pairs.items()
    }


def table(found: dict[int, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row a rule, for each number of losses time and MACs as ratios to the plain sum."""
    head = " | ".join(f"{tasks} losses: time | MACs" for tasks in found)
    lines = [f"| rule | {head} |", "|---" * (1 + 2 * len(found)) + "|"]
    for name in next(iter(found.values())):
        cells = " | ".join(f"{rows[name]['time_ratio']:.3f} | {rows[name]['mac_ratio']:.3f}" for rows in found.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rules", nargs="+", help="all that there are, unless named")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[int, dict[str, dict[str, float]]] = {}
    for tasks in args.tasks:
        plain, steps = build(args.backbone, tasks=tasks, size=args.size, batch=args.batch, device=args.device)
        chosen = {name: steps[name] for name in args.rules or steps}
        found[tasks] = measure(plain, chosen, rounds=args.rounds, device=args.device)
    print(table(found), flush=True)
    if args.json:
        about = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_json(args.json, {**about, **vars(args), "json": str(args.json), "tasks": found})


if __name__ == "__main__":
    main()
