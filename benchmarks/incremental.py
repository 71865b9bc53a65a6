"""New classes, task after task: banks of BatchNorms against one growing softmax and class means.

    python benchmarks/incremental.py --out runs/incremental [--seeds 0 1 2] [--tasks 4] [--budgets 2 20]
    python benchmarks/incremental.py --data DATA --bundle BUNDLE --protocol PROTOCOL.json --tasks 7 --split blocks.5
        --out runs/new-cars

A base network knows some classes: those of the protocol, or half of the rendered ones. The others come in a seeded
order, in tasks of equal size. A budget is what the memory holds in the end of each class; it is full from the start. In
every task each method puts about --images images through what it trains, in whole epochs. --split: the layer at which
the network is cut in two; what stands before is frozen and computed once for each image and its mirror image. All
methods learn what stands behind it, of the task's images cropped at the centre; "banks" alone, as published, bank the
BatchNorms of the whole network and learn from random crops. Without a layer all methods learn the whole network.
"heads alone" have the BatchNorms of the base network in all tasks: what the banks add. "kept" banks start a head from
that of stage 1, and later tasks align its unknown output alone. "times discriminants" multiplies the calibrated
probabilities of all heads with those of the discriminants, and takes the likeliest class. Class means, discriminants
and "gallery" train nothing and keep sums of features instead of exemplars; "gallery" is that of `vmmr extend`: the
answer of the base network stands but where the discriminant of a new class leads by enough.

Nothing is chosen by test images. A (seed, method, budget) that is finished is not run again. Prints Markdown tables and
writes results.json.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incremental_stream import Kept, Stream, open_stream
from openset import all_seeds
from vmmr.discriminants import discriminants, moments
from vmmr.evaluation.cost import answer_time
from vmmr.evaluation.incremental import Stage, future_auroc, seen_accuracy, stream_scores, tasks_of
from vmmr.evaluation.markdown import table
from vmmr.evaluation.seeds import with_spread
from vmmr.files import write_json
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.gallery import crossfit, fit_likelihoods, fit_offset, fold_of, margins
from vmmr.incremental.icarl import icarl_loss
from vmmr.incremental.memory import Memory
from vmmr.incremental.prototypes import class_means, cosines
from vmmr.incremental.replay import GrowingNetwork, Loss, learn_classes
from vmmr.incremental.routing import (
    Routed,
    class_log_likelihoods,
    fit_calibration,
    route,
    route_by_max_softmax,
    route_to,
)
from vmmr.incremental.task_norm import Plan, TaskNorm, learn_task
from vmmr.incremental.weight_aligning import aligned_weights, distilled_cross_entropy

GROWING: dict[str, Loss | None] = {
    "fine-tuning": None,
    "replay": None,
    "icarl": icarl_loss,
    "weight aligning": distilled_cross_entropy,
}
WITHOUT_MEMORY = ("class means", "discriminants", "gallery", "fine-tuning", "joint")
BOUND = 0.02
"""The share of old answers that a gallery may change, as `vmmr extend` has it."""
BANKS = ("heads alone", "late banks", "kept late banks", "banks", "kept banks")
METHODS = (*WITHOUT_MEMORY, "replay", "icarl", "weight aligning", *BANKS)


def _plan(args: argparse.Namespace, lr: float, images: int, *, tasks: int = 1) -> Plan:
    """Whole epochs of so many images, as many as come nearest to --images."""
    epochs = max(1, round(tasks * args.images / images))
    return Plan(epochs, lr, (0.35, 0.65, 0.85), batch_size=args.batch_size, weight_decay=1e-4)


def _parameters(*parts: torch.nn.Module | None, alike: bool = False) -> int:
    """Of what answers: without the BatchNorms that new banks start from; alike: all banks count as one."""
    named = [item for part in parts if part is not None for item in part.named_parameters()]
    spare = re.compile(r"\.origin\.|\.banks\.[1-9]" if alike else r"\.origin\.")
    return sum(value.numel() for name, value in named if not spare.search(name))


def run_banks(stream: Stream, args: argparse.Namespace, method: str, memory: Memory, seed: int) -> dict[str, Any]:
    """Banks of all BatchNorms, or of those behind the stem, or no bank that learns: by "unknown", by max-softmax,
    calibrated on memory; and calibrated heads as one of two experts, `_base_discriminants` being the other."""
    late, alone, keep = method not in ("banks", "kept banks"), method == "heads alone", method.startswith("kept")
    view = stream.maps if late else stream.pixels
    network = BankedNetwork(stream.rest if late else stream.whole)
    kept = Kept(network, view, len(stream.labels), alike=alone)
    generator = torch.Generator().manual_seed(seed)
    truth = stream.labels[stream.test]
    names = (method, f"{method}, max softmax", f"{method}, calibrated", f"{method}, times discriminants")
    rules: dict[str, list[Stage]] = {name: [] for name in names}
    told, least, parameters = [], [], []
    for task in range(len(stream.classes)):
        rows = stream.rows(task)
        labels = stream.labels[rows]
        if task:
            plan = _plan(args, args.bank_lr, len(rows) + len(memory))
            settings = TaskNorm(
                stage1=replace(plan, epochs=0) if alone else plan,
                stage2=Plan(args.align_epochs, args.align_lr, (0.55, 0.8)),
                head="auxiliary" if keep else "random",
                aligned="unknown" if keep else "heads",
                augment_alignment=False,
            )
            memory = learn_task(
                network, rows, labels, memory, view, settings=settings, features=kept, generator=generator
            )
        else:
            memory = memory.with_classes(rows, labels, kept(rows, [0])[:, 0])
        shape = network.classes, network.widths
        logits = _head_logits(network, kept, stream.test)
        calibration = None
        if task:
            calibration = fit_calibration(_head_logits(network, kept, memory.items), memory.labels, *shape)
        found = [
            route(logits, *shape),
            route_by_max_softmax(logits, *shape),
            route(logits, *shape, calibration=calibration),
        ]
        for name, routed in zip(names[:3], found, strict=True):
            rules[name].append(_stage(routed))
        both = class_log_likelihoods(logits, *shape, calibration=calibration) + _base_discriminants(kept, stream, task)
        rules[names[-1]].append(_answered(both, 1 - both.softmax(dim=1).amax(dim=1), stream))
        own = torch.from_numpy(tasks_of(truth, stream.classes)).clamp(max=task)
        told.append(_stage(route_to(own, logits, *shape)))
        least.append(rules[method][-1]._replace(unknown=found[0].unknown.double().numpy()))
        parameters.append(_parameters(network, stream.stem if late else None, alike=alone))
        _say(method, task, stream, rules[method])
    rows_of = {name: stream_scores(s, truth, stream.classes, parameters) for name, s in rules.items()}
    rows_of[method]["auroc_unknown"] = float(future_auroc(least, truth, stream.classes).mean())
    return {"rows": rows_of, "told_task": seen_accuracy(told, truth, stream.classes).tolist()}


def _stage(routed: Routed) -> Stage:
    """As published, what is strange is what is answered with little probability."""
    return Stage(routed.label.numpy(), routed.task.numpy(), 1 - routed.score.double().numpy())


def _base_discriminants(kept: Kept, stream: Stream, task: int) -> Tensor:
    """Log-likelihoods [test, classes so far] by discriminants of the base network's features, which are those of bank
    0; they are scaled by training images that the discriminants had not seen."""
    rows = torch.cat([stream.rows(t) for t in range(task + 1)])
    labels, last = stream.labels[rows], sum(stream.classes[: task + 1])
    seen, shown = kept(rows, [0])[:, 0], kept(stream.test, [0])[:, 0]
    held = crossfit(seen, labels, last, fold_of(labels, np.arange(len(rows)), 5))
    weight, bias = discriminants(moments(seen, labels, last))
    scores = torch.nn.functional.normalize(shown.double(), dim=1) @ weight.T + bias
    return (fit_likelihoods(held, labels) * scores).log_softmax(dim=1)


@torch.no_grad()
def _head_logits(network: BankedNetwork, kept: Kept, items: Tensor) -> Tensor:
    return network.head_logits(kept(items, range(len(network))))


def _answered(scores: Tensor, unknown: Tensor, stream: Stream) -> Stage:
    label = scores.argmax(dim=1).numpy()
    return Stage(label, tasks_of(label, stream.classes), unknown.double().numpy())


@torch.no_grad()
def _features(network: GrowingNetwork, stream: Stream, rows: Tensor) -> Tensor:
    return torch.cat([network.features(stream.maps(part, None)) for part in torch.split(rows, 128)])


def _of_softmax(network: GrowingNetwork, stream: Stream) -> Stage:
    with torch.no_grad():
        logits = network.head(_features(network, stream, stream.test))
    return _answered(logits, 1 - logits.softmax(dim=1).amax(dim=1), stream)


def run_growing(stream: Stream, args: argparse.Namespace, method: str, memory: Memory, seed: int) -> dict[str, Any]:
    """One softmax that grows, by the loss of the method; iCaRL answers by the means of its exemplars."""
    network = GrowingNetwork(stream.rest)
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    truth = stream.labels[stream.test]
    stages: list[Stage] = []
    parameters = []
    for task, last in enumerate(accumulate(stream.classes)):
        own = stream.rows(task)
        if task:
            rows = torch.cat([memory.items, own]) if len(memory) else own
            plan = _plan(args, args.lr, len(rows))
            loss = GROWING[method]
            learn_classes(network, rows, stream.labels[rows], stream.maps, plan=plan, loss=loss, generator=generator)
            if method == "weight aligning":
                aligned = aligned_weights(network.head.weight.detach(), last - stream.classes[task])
                network.head.weight.data.copy_(aligned)
        memory = memory.with_classes(own, stream.labels[own], _features(network, stream, own))
        if method == "icarl":
            means = class_means(_features(network, stream, memory.items), memory.labels, last)
            near = cosines(_features(network, stream, stream.test), means)
            stages.append(_answered(near, -near.amax(dim=1), stream))
        else:
            stages.append(_of_softmax(network, stream))
        parameters.append(_parameters(network, stream.stem))
        _say(method, task, stream, stages)
    return {"rows": {method: stream_scores(stages, truth, stream.classes, parameters)}}


def run_class_means(stream: Stream, args: argparse.Namespace, method: str, memory: Memory, seed: int) -> dict[str, Any]:
    """The base network as it is; a class is the mean of all its training images."""
    network = GrowingNetwork(stream.rest)
    network.eval()
    seen, shown = _features(network, stream, torch.arange(stream.training)), _features(network, stream, stream.test)
    means = class_means(seen, stream.labels[: stream.training], sum(stream.classes))
    stages, parameters = [], []
    for last in accumulate(stream.classes):
        near = cosines(shown, means[:last])
        stages.append(_answered(near, -near.amax(dim=1), stream))
        parameters.append(_parameters(network.backbone, stream.stem) + last * means.shape[1])
    return {"rows": {method: stream_scores(stages, stream.labels[stream.test], stream.classes, parameters)}}


def run_discriminants(
    stream: Stream, args: argparse.Namespace, method: str, memory: Memory, seed: int
) -> dict[str, Any]:
    """The base network as it is, and linear discriminants of all classes, or of the new ones before its answers."""
    network = GrowingNetwork(stream.rest)
    network.eval()
    seen, shown = _features(network, stream, torch.arange(stream.training)), _features(network, stream, stream.test)
    labels, base = stream.labels[: stream.training], stream.classes[0]
    with torch.no_grad():
        old_answers = network.head(shown).argmax(dim=1)
    unit = torch.nn.functional.normalize(shown.double(), dim=1)
    stages, parameters = [], []
    for task, last in enumerate(accumulate(stream.classes)):
        there = labels < last
        weight, bias = discriminants(moments(seen[there], labels[there], last))
        scores = unit @ weight.T + bias
        stage = _answered(scores, 1 - scores.softmax(dim=1).amax(dim=1), stream)
        if method == "gallery":
            label = old_answers
            if task:
                fold = fold_of(labels[there], np.arange(int(there.sum())), 5)
                held = crossfit(seen[there], labels[there], last, fold)[labels[there] < base]
                offset, _ = fit_offset(margins(held, base).amax(dim=1), BOUND, None)
                lead, new = margins(scores, base).max(dim=1)
                label = torch.where(lead > offset, base + new, old_answers)
            stage = stage._replace(answers=label.numpy(), tasks=tasks_of(label.numpy(), stream.classes))
        stages.append(stage)
        parameters.append(_parameters(network.backbone, stream.stem) + last * (weight.shape[1] + 1))
    return {"rows": {method: stream_scores(stages, stream.labels[stream.test], stream.classes, parameters)}}


def run_joint(stream: Stream, args: argparse.Namespace, method: str, memory: Memory, seed: int) -> dict[str, Any]:
    """All classes at once, of all their images, with the images of all tasks to train on: what could be had at most."""
    network = GrowingNetwork(stream.rest)
    rows = torch.arange(stream.training)
    plan = _plan(args, args.lr, len(rows), tasks=len(stream.classes) - 1)
    labels = stream.labels[: stream.training]
    learn_classes(network, rows, labels, stream.maps, plan=plan, generator=torch.Generator().manual_seed(seed))
    stage = _of_softmax(network, stream)
    truth = stream.labels[stream.test].numpy()
    own = stage.tasks == tasks_of(truth, stream.classes)
    return {"rows": {method: {"final": float((stage.answers == truth).mean()), "task": float(own.mean())}}}


def _say(method: str, task: int, stream: Stream, stages: list[Stage]) -> None:
    """One line after each task, so that a long run can be watched."""
    truth = stream.labels[stream.test].numpy()
    seen = tasks_of(truth, stream.classes) <= task
    accuracy = (stages[-1].answers == truth)[seen].mean()
    print(f"{method}, task {task}: {100 * accuracy:.1f} % of {sum(stream.classes[: task + 1])} classes", flush=True)


RUN: dict[str, Callable[..., dict[str, Any]]] = {
    "class means": run_class_means,
    "discriminants": run_discriminants,
    "gallery": run_discriminants,
    "joint": run_joint,
    **dict.fromkeys(BANKS, run_banks),
    **dict.fromkeys(GROWING, run_growing),
}


def times(stream: Stream, size: int) -> dict[str, dict[str, Any]]:
    """What an answer costs with so many tasks: images a second, one at a time and in batches."""
    found: dict[str, dict[str, Any]] = {}
    image = torch.zeros(1, 3, size, size)
    most = len(stream.classes)
    for tasks in sorted({1, min(2, most), min(4, most), most}):
        cases: dict[str, tuple[torch.nn.Module, BankedNetwork]] = {
            "banks": (torch.nn.Identity(), BankedNetwork(stream.whole))
        }
        if stream.stem is not None:
            cases["late banks"] = (stream.stem, BankedNetwork(stream.rest))
        for name, (first, network) in cases.items():
            for count in stream.classes[1:tasks]:
                network.add_bank(count)

            def answer(x: Tensor, first: torch.nn.Module = first, network: BankedNetwork = network) -> Tensor:
                logits: Tensor = network(first(x))["logits"]
                return logits

            timed = answer_time(answer, image, batch=16, seconds=0.5)
            found.setdefault(name, {})[str(tasks)] = {key: timed[key] for key in ("latency_ms", "images_per_s")}
    return found


def tables(records: list[dict[str, Any]], costs: dict[str, dict[str, Any]]) -> str:
    """Markdown, in percent; growth in numbers a task."""
    heads = ["method", "exemplars a class", "final", "average", "forgetting", "lost within", "task", "future AUROC"]
    heads += ["by min unknown", "parameters a task", "seconds"]
    rows = []
    names = ("final", "average", "forgetting", "lost_within", "task", "auroc", "auroc_unknown")
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for record in records:
        for run in record["runs"]:
            for row, scores in run["rows"].items():
                key = row, str(run["budget"] or "none")
                grouped.setdefault(key, []).append(scores)
                seconds.setdefault(key, []).append(run["seconds"])
    for key, found in grouped.items():
        cells = [with_spread([100 * f[name] for f in found]) if name in found[0] else "" for name in names]
        growth = f"{np.mean([f['growth'] for f in found]):,.0f}" if "growth" in found[0] else ""
        rows.append([*key, *cells, growth, f"{np.mean(seconds[key]):.0f}"])
    parts = [table(heads, rows)]
    runs = [run for record in records for run in record["runs"] if "told_task" in run]
    told = {(run["method"], run["budget"]): [] for run in runs}  # type: ignore[var-annotated]
    for run in runs:
        told[run["method"], run["budget"]].append(100 * run["told_task"][-1])
    parts += ["", *(f"{m}, {b} a class, told the task: {with_spread(v)}" for (m, b), v in told.items())]
    counts = list(next(iter(costs.values())))
    rows = []
    for name, by_count in costs.items():
        rows.append([f"{name}, one at a time", *(f"{1000 / by_count[n]['latency_ms']:.0f}" for n in counts)])
        rows.append([f"{name}, 16 at once", *(f"{by_count[n]['images_per_s']:.0f}" for n in counts)])
    parts += ["", table(["images a second", *(f"{n} tasks" for n in counts)], rows)]
    return "\n".join(parts)


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All methods and budgets on one stream; what is on disk is not run again."""
    home = args.out / f"seed-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    wanted = [(m, 0) for m in args.methods if m in WITHOUT_MEMORY]
    wanted += [(m, b) for b in args.budgets for m in args.methods if m not in WITHOUT_MEMORY]
    files = {(m, b): home / f"{m.replace(' ', '-')}-{b}.json" for m, b in wanted}
    about, costs = home / "stream.json", home / "times.json"
    stream = None
    if not about.exists() or not costs.exists() or not all(file.exists() for file in files.values()):
        stream, described = open_stream(args, seed, home)
        write_json(about, described)
    if stream is not None and not costs.exists():
        write_json(costs, times(stream, json.loads(about.read_text())["size"]))
    for (method, budget), file in files.items():
        if stream is not None and not file.exists():
            started = time.process_time()
            found = RUN[method](stream, args, method, Memory(budget * sum(stream.classes)), seed)
            write_json(file, {"method": method, "budget": budget, "seconds": time.process_time() - started, **found})
    runs = [json.loads(file.read_text()) for file in files.values()]
    return {**json.loads(about.read_text()), "times": json.loads(costs.read_text()), "runs": runs}


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder or manifest with train and test images")
    parser.add_argument("--bundle", type=Path, help="a plain bundle of the known classes of --protocol")
    parser.add_argument("--protocol", type=Path)
    parser.add_argument("--near-duplicates", action="store_true", help="also look for test pictures scaled or re-coded")
    parser.add_argument("--out", type=Path, default=Path("runs/incremental"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tasks", type=int, default=4, help="after the base")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 20], help="exemplars of each class in the end")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--split", default="", help="the first layer that learns, as blocks.5 or layer4; default: all")
    parser.add_argument("--images", type=int, default=4800, help="through what is trained, in each task")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01, help="of a network that is trained whole")
    parser.add_argument("--bank-lr", type=float, default=0.05)
    parser.add_argument("--align-lr", type=float, default=0.01)
    parser.add_argument("--align-epochs", type=int, default=40)
    parser.add_argument("--test-per-class", type=int, default=0, help="test images judged of each class; 0: all")
    rendered = parser.add_argument_group("without --data")
    rendered.add_argument("--makes", type=int, default=8, help="of four models each")
    rendered.add_argument("--per-class", type=int, default=60, help="training images")
    rendered.add_argument("--recipe", default="plain_noise")
    rendered.add_argument("--backbone", default="test_resnet")
    rendered.add_argument("--size", type=int, default=64)
    rendered.add_argument("--epochs", type=int, default=48)
    rendered.add_argument("--base-lr", type=float, default=1.6e-2)
    args = parser.parse_args()
    if len({args.data is None, args.bundle is None, args.protocol is None}) > 1:
        parser.error("--data, --bundle and --protocol go together")
    if not args.split:
        args.methods = [method for method in args.methods if "late" not in method]
    all_seeds(args, run_seed, lambda records: tables(records, records[0]["times"]))


if __name__ == "__main__":
    main()
