"""What it costs to know what one does not know, and to learn on: time beside that of plain answers, on one machine.

    python benchmarks/openworld.py [--part scores tasks] [--backbone mobilenetv2_100] [--size 224] [--batches 1 32]
        [--tasks 1 2 4 8 16] [--rounds 7] [--threads 0] [--json FILE]

"scores": every unknown score with the two numbers that judge the picture, as `Detector.signs` computes them once the
network has answered, over the time of each runtime alone; and, of the score of --score, whole passes with and without a
detector. "tasks": a network with a bank of BatchNorms and a head for each of so many tasks, in one pass over shared
convolutions against one pass a task, in every runtime. Weights, features and banks are random, which costs the same.
Rounds visit the rows in turn, so that a drifting machine hits all of them alike; tables give medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from vmmr.data.preprocess import Preprocess
from vmmr.evaluation.markdown import table
from vmmr.export.artifact import Artifact
from vmmr.export.bundle import Bundle
from vmmr.export.export import export_bundle
from vmmr.export.extension import extended
from vmmr.export.onnx import OnnxRuntime, to_onnx
from vmmr.export.openvino import OpenvinoRuntime, to_ir
from vmmr.export.runtime import Runtime, TorchRuntime
from vmmr.extend.task import routing_tensors
from vmmr.files import write_json
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.network import TaskNetwork
from vmmr.models import Backbone
from vmmr.recognizer import Recognizer
from vmmr.taxonomy import Taxonomy, VehicleClass
from vmmr.unknown import BANK, SCORES, Gate, gather
from vmmr.unknown.detector import Detector
from vmmr.unknown.quality import contrast_and_detail

GATE = Gate(known=0.0, vehicle=0.0, dull=0.0, soft=-9.0, noisy=9.0)
TARGET = 0.03
"""What the recommended score may cost beside the network."""

Call = Callable[[], object]


def measure(calls: dict[str, Call], rounds: int, least: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: the median over rounds, and the lowest and the highest; rows in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start, passes = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < least or not passes:
                call()
                passes += 1
            times[name].append(1000 * spent / passes)
    return {
        name: {"ms": statistics.median(found), "lowest": min(found), "highest": max(found)}
        for name, found in times.items()
    }


def detectors(bundle: Bundle, bank: int) -> dict[str, Detector]:
    """Every score, fitted to random features of as many images as its bank keeps, all classes among them."""
    network = bundle.network()
    assert isinstance(network, Backbone)
    classifier = network.model.get_classifier()
    random = torch.Generator().manual_seed(0)
    classes = len(bundle.taxonomy)
    features = torch.rand(max(bank, 2 * network.width), network.width, generator=random)
    labels = torch.arange(len(features)) % classes
    batches = [(features, labels, torch.arange(len(features)))]
    fitted_to = gather(batches, classifier.weight, classifier.bias, bank=bank)
    return {name: Detector(name, GATE, score.fit(fitted_to)) for name, score in SCORES.items()}


def signs_alone(detector: Detector, outputs: dict[str, Tensor], pixels: Tensor) -> Call:
    """What `Recognizer.outputs` does besides the pass, on what the pass gave."""

    @torch.inference_mode()
    def call() -> object:
        return detector.signs(outputs["features"], outputs["logits"], pixels)

    return call


def scores(args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """{batch: {"runtimes", "signs", "whole"}}: milliseconds of the runtimes alone; of each score with the numbers of
    the picture, of both parts of the recommended one; and of whole passes with it and without."""
    from inference import random_bundle  # beside this file, which only a script sees

    bundle = replace(random_bundle(args.backbone), preprocess=Preprocess(args.size, args.size))
    every = detectors(bundle, args.bank)
    with tempfile.TemporaryDirectory() as folder:
        forms: dict[str, Artifact] = {}
        for form, name in (("onnx", "onnxruntime"), ("openvino", "openvino")):
            forms[name] = export_bundle(bundle, Path(folder) / form, form=form, precision="fp32")  # type: ignore[arg-type]
        models: dict[str, tuple[Bundle | Artifact, Any]] = {"torch": (bundle, TorchRuntime(bundle, threads=threads))}
        models |= {name: (model, model.runtime(name, threads=threads)) for name, model in forms.items()}
        found: dict[str, Any] = {}
        random = np.random.default_rng(0)
        for batch in args.batches:
            pixels = random.integers(0, 256, (batch, args.size, args.size, 3), dtype=np.uint8)
            recognizer = Recognizer(bundle, models["torch"][1])
            outputs = {name: torch.from_numpy(value) for name, value in recognizer.outputs(pixels).items()}
            shown = torch.from_numpy(pixels)
            calls: dict[str, Call] = {
                f"runtime {name}": partial(runtime, pixels) for name, (_, runtime) in models.items()
            }
            calls |= {f"signs {name}": signs_alone(detector, outputs, shown) for name, detector in every.items()}
            calls["picture"] = partial(contrast_and_detail, shown)
            for name, (model, runtime) in models.items():
                with_it = Recognizer(replace(model, detector=every[args.score]), runtime)
                calls[f"without {name}"] = partial(Recognizer(model, runtime).outputs, pixels)
                calls[f"with {name}"] = partial(with_it.outputs, pixels)
            rows = measure(calls, args.rounds, args.seconds)
            found[str(batch)] = {
                kind: {name.split()[1]: row for name, row in rows.items() if name.split()[0] == kind}
                for kind in ("runtime", "signs", "without", "with")
            } | {"picture": rows["picture"]}
    return found


WAYS = {"one pass": True, "a pass a task": False}
"""How the images of several tasks go through the shared convolutions, as `BankedNetwork.forward` names it."""


def with_tasks(bundle: Bundle, tasks: int, classes: int) -> Bundle:
    """The bundle extended until it has so many tasks, each but the first of so many classes and random."""
    names = bundle.taxonomy
    while (have := len(bundle.added.get("tasks", [0]))) < tasks:
        network = bundle.network()
        banked = network.banked if isinstance(network, TaskNetwork) else BankedNetwork(bundle.network())
        generator = torch.Generator().manual_seed(have)
        banked.add_bank(classes, generator=generator)
        with torch.no_grad():  # alike, libraries would compute them once
            for value in banked.bank_parameters(have):
                value.add_(0.01 * torch.rand(value.shape, generator=generator))
        new = [f"Model {n} of task {have}" for n in range(classes)]
        names = Taxonomy((*names.classes, *(VehicleClass("New", name, None) for name in new)))
        routed = TaskNetwork(banked, torch.ones(have + 1), torch.zeros(have + 1))
        own = {k: v for k, v in banked.tensors().items() if k.startswith(("heads.", f"banks.{have}."))}
        bundle = extended(
            bundle,
            {},
            taxonomy=names,
            spec=replace(bundle.spec, classes=len(names)),
            tensors=own | routing_tensors(routed),
            added={"mode": "task", "tasks": list(banked.classes)},
        )
    return bundle


def runtimes_of(bundle: Bundle, threads: int, batched: bool) -> dict[str, Runtime]:
    """The bundle in every runtime, its tasks in one pass or in turns."""
    size = bundle.preprocess.height, bundle.preprocess.width
    plain = TorchRuntime(bundle, threads=threads)
    for module in plain.network.modules():
        if isinstance(module, BankedNetwork):
            module.forward = partial(module.forward, batched=batched)  # type: ignore[method-assign]
    with patch.object(BankedNetwork, "forward", partialmethod(BankedNetwork.forward, batched=batched)):
        graph = to_onnx(bundle)
    return {
        "torch": plain,
        "onnxruntime": OnnxRuntime(graph, size, "fp32", threads=threads),
        "openvino": OpenvinoRuntime(*to_ir(graph), size, "fp32", threads=threads),
    }


def tasks(args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """{batch: {tasks: {way: {runtime: milliseconds}}}}, tasks "plain": the network alone, way "alone". Both ways give
    the same logits."""
    from inference import random_bundle  # beside this file, which only a script sees

    bundle = replace(random_bundle(args.backbone), preprocess=Preprocess(args.size, args.size))
    models: dict[tuple[str, str], dict[str, Runtime]] = {("plain", "alone"): runtimes_of(bundle, threads, False)}
    for count in args.tasks:
        several = with_tasks(bundle, count, args.classes)
        for way, batched in WAYS.items():
            print(f"exporting {count} tasks, {way}", file=sys.stderr)
            models[str(count), way] = runtimes_of(several, threads, batched)
    random, found = np.random.default_rng(0), {}
    for batch in args.batches:
        pixels = random.integers(0, 256, (batch, args.size, args.size, 3), dtype=np.uint8)
        for count in args.tasks:
            first, *rest = (run(pixels)["logits"] for way in WAYS for run in models[str(count), way].values())
            for other in rest:
                np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-3)
        calls: dict[str, Call] = {
            f"{count}|{way}|{name}": partial(run, pixels)
            for (count, way), runs in models.items()
            for name, run in runs.items()
        }
        rows: dict[str, Any] = {}
        for key, row in measure(calls, args.rounds, args.seconds).items():
            count, way, name = key.split("|")
            rows.setdefault(count, {}).setdefault(way, {})[name] = row
        found[str(batch)] = rows
    return found


def scores_table(found: dict[str, Any], score: str) -> str:
    """Markdown: each score's time, and its share of each runtime's, by batch; then passes with and without."""
    batches = list(found)
    runtimes = list(found[batches[0]]["runtime"])
    heads = [f"batch {b}, {what}" for b in batches for what in ("ms", *(f"% of {r}" for r in runtimes))]
    first = []
    for name in (*found[batches[0]]["signs"], "(picture alone)"):
        cells = []
        for b in batches:
            ms = (found[b]["picture"] if name == "(picture alone)" else found[b]["signs"][name])["ms"]
            cells += [f"{ms:.3f}", *(f"{100 * ms / found[b]['runtime'][r]['ms']:.2f}" for r in runtimes)]
        first.append([f"**{name}**" if name == score else name, *cells])
    second = []
    for b in batches:
        for r in runtimes:
            alone, told = found[b]["without"][r]["ms"], found[b]["with"][r]["ms"]
            more = told / alone - 1
            verdict = f"{'within' if more <= TARGET else 'above'} {100 * TARGET:g} %"
            second.append([r, b, f"{alone:.2f}", f"{told:.2f}", f"{100 * more:.1f}", verdict])
    passes = ["runtime", "batch", "alone, ms", f"with {score}, ms", "more, %", "target"]
    return f"{table(['score', *heads], first)}\n\n{table(passes, second)}"


def tasks_table(found: dict[str, Any]) -> str:
    """Markdown: milliseconds an image by the number of tasks and, in brackets, over those of the plain network."""
    runtimes = list(next(iter(found.values()))["plain"]["alone"])
    heads = [f"{name}, {way}" for name in runtimes for way in WAYS]
    lines = []
    for batch, rows in found.items():
        plain = {name: row["ms"] for name, row in rows["plain"]["alone"].items()}
        lines.append([batch, "plain", *(f"{plain[name] / int(batch):.1f}" for name in runtimes for _ in WAYS)])
        for count in (key for key in rows if key != "plain"):
            times = [(rows[count][way][name]["ms"], plain[name]) for name in runtimes for way in WAYS]
            lines.append([batch, count, *(f"{ms / int(batch):.1f} ({ms / alone:.1f})" for ms, alone in times)])
    return table(["batch", "tasks", *heads], lines)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("scores", "tasks"), default=["scores", "tasks"])
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--score", default="knn_pca", choices=SCORES, help="the recommended one")
    parser.add_argument("--bank", type=int, default=BANK, help="images that a bank keeps")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--classes", type=int, default=20, help="of a task")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, for a row of a round")
    parser.add_argument("--threads", type=int, default=0, help="of every runtime; 0: all cores")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    threads = args.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    document: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "torch": torch.__version__},
        "settings": {**vars(args), "json": None, "threads": threads},
    }
    if "scores" in args.part:
        document["scores"] = scores(args, threads)
        print(f"\n{args.backbone} at {args.size} px, {threads} threads: unknown scores\n")
        print(scores_table(document["scores"], args.score))
    if "tasks" in args.part:
        document["tasks"] = tasks(args, threads)
        print(f"\n{args.backbone} at {args.size} px, {threads} threads: tasks of {args.classes} classes\n")
        print(tasks_table(document["tasks"]))
    if args.json:
        write_json(args.json, document)


if __name__ == "__main__":
    main()
