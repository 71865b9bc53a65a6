"""The whole way in minutes on two cores: draw vehicles, train, distil, evaluate, report, predict. `vmmr demo`.

Three models of one backbone see the same pictures for the same number of epochs: plain training on clean images; PMAL,
the teacher, which learns to recognise and to denoise; PMD, the student, a plain network that starts from the teacher's
trunk and keeps close to its answers.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import vmmr
from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.data.rendered import World, write_dataset
from vmmr.errors import ConfigError
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.cost import macs, parameters
from vmmr.evaluation.evaluate import evaluate
from vmmr.evaluation.examples import example_strips
from vmmr.evaluation.report import under_noise, write_report
from vmmr.evaluation.robustness import noise_curve
from vmmr.export.bundle import Bundle, read_bundle
from vmmr.recipes import recipe
from vmmr.recognizer import Recognizer, load
from vmmr.training.run import train
from vmmr.training.samples import open_side

import timm  # isort: skip

__all__ = ["DemoSettings", "run_demo"]

_MARKER = ".vmmr-demo"
_OURS = ("data", "plain", "teacher", "student", "demo.json", "report.html")
_RECIPES = {"plain": "plain", "teacher": "pmal_fast", "student": "pmd_fast"}
_ABOUT = {
    "plain": "The backbone, trained on clean images in the usual way.",
    "teacher": "The backbone with denoising-recognition heads, trained on noisy images (PMAL).",
    "student": "The plain backbone again, distilled from the teacher (PMD): no more to run than plain.",
}
_VIEWPOINTS = ("front", "front-left", "front-right")


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is; the defaults fit six minutes and 3 GiB on two cores.

    makes, models_per_make: of the rendered world, in one year each; together they give the classes. train_per_class,
    test_per_class: pictures of each class, no vehicle in both. picture, size: side of the drawn picture and of the
    network's input, in pixels. backbone: a timm name. epochs: of each model. lr: peak learning rate from scratch.
    student_lr: that of the student, lower, or it forgets the trunk that it starts from.
    """

    makes: int = 6
    models_per_make: int = 4
    train_per_class: int = 60
    test_per_class: int = 20
    picture: int = 96
    size: int = 64
    backbone: str = "test_resnet"
    epochs: int = 16
    lr: float = 1.6e-2
    student_lr: float = 5e-3

    def config(self, model: str, seed: int) -> TrainConfig:
        """The settings of one of the three runs: plain, teacher or student."""
        lr = self.student_lr if model == "student" else self.lr
        return recipe(_RECIPES[model]).with_(
            backbone=self.backbone,
            size=self.size,
            epochs=self.epochs,
            lr=lr,
            trunk_lr=lr,  # nothing is pretrained: trunk and heads learn alike
            near_duplicates=False,  # no vehicle is in two splits, and drawn pictures of two vehicles may look alike
            seed=seed,
        )


def run_demo(
    out: Path, *, seed: int = 0, progress: bool = True, settings: DemoSettings | None = None
) -> dict[str, Any]:
    """Do all of it in `out`: data/, {plain,teacher,student}/bundle, demo.json, report.html.

    What an earlier demo left in `out` is replaced, and nothing else there is touched. Returns what demo.json says.
    Raises ConfigError where `out` has files but none of a demo.
    """
    settings = DemoSettings() if settings is None else settings
    out = Path(out)
    _make_room(out)
    console = Console(quiet=not progress)
    parts: list[dict[str, Any]] = []
    with _part(parts, "draw the vehicles", console):
        world = World(
            seed=seed,
            makes=settings.makes,
            models_per_make=settings.models_per_make,
            years=1,
            fleet=settings.train_per_class + settings.test_per_class,  # no vehicle twice
        )
        source = write_dataset(
            out / "data",
            world=world,
            per_class={"train": settings.train_per_class, "test": settings.test_per_class},
            size=settings.picture,
            seed=seed,
            viewpoints=_VIEWPOINTS,
        )
    runs = {}
    for model in _RECIPES:
        with _part(parts, f"train the {model}" if model != "plain" else "train plain", console):
            teacher = out / "teacher" / "bundle" if model == "student" else None
            config = settings.config(model, seed)
            runs[model] = train(config, source, out / model, teacher=teacher, progress=progress, test=False)
    test = Manifest.load(source).split("test")
    models = {}
    with _part(parts, "evaluate, clean and noisy", console):
        bundles = {model: read_bundle(out / model / "bundle") for model in _RECIPES}
        test = test.with_taxonomy(bundles["plain"].taxonomy)
        pixels = open_side(test, bundles["plain"].preprocess).pixels
        for model, bundle in bundles.items():
            judged = evaluate(bundle, test, wanted=noise_curve(), seed=seed, pixels=pixels)
            models[model] = _described(model, bundle, runs[model], judged["conditions"])
    with _part(parts, "predict", console):
        examples = example_strips(bundles, test, seed=seed)
        sample = _predict(load(out / "student" / "bundle"), test, out)
    noisy = {model: under_noise(found["conditions"]) for model, found in models.items()}
    results: dict[str, Any] = {
        "title": "Recognising vehicles when the image is bad",
        "lead": f"Three models with the same backbone learned {len(test.taxonomy)} rendered vehicle models from "
        f"{runs['plain']['train_images']:,} pictures, then met {len(test):,} pictures of vehicles they had never "
        "seen: clean, and spoiled in many ways.",
        "models": models,
        "under_noise": noisy,
        "beats_plain": {model: noisy[model] > noisy["plain"] for model in ("teacher", "student")},
        "sample": sample,
        "parts": parts,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "cpu_seconds": round(sum(part["cpu_seconds"] for part in parts), 1),
        "peak_gib": _peak_gib(),
        "seed": seed,
        "settings": asdict(settings),
        "facts": _facts(settings, seed, runs["plain"], len(test)),
        "notes": [
            "Every network starts from random weights; the student starts from the teacher's trunk.",
            "Plain training has met no noise at all. Its stronger rival, noise as augmentation, is the recipe "
            "plain_noise.",
            "One seed and a small set: a difference of a few per cent says little, the gap under noise does.",
        ],
    }
    write_report(out / "report.html", results, examples)
    draft = out / ".demo.json.draft"
    draft.write_text(json.dumps(results, indent=1), encoding="utf-8")
    draft.replace(out / "demo.json")
    _show(console, results, out)
    return results


def _make_room(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError("the demo needs a folder", got=str(out), do="name a new one")
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).is_file():
        raise ConfigError("this folder holds something other than a demo", got=str(out), do="name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).write_text("What an earlier `vmmr demo` left here is replaced by the next one.\n")
    for name in _OURS:
        if (out / name).is_dir() and not (out / name).is_symlink():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)


def _peak_gib() -> float:
    """The most memory this process has held so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)


@contextmanager
def _part(parts: list[dict[str, Any]], name: str, console: Console) -> Iterator[None]:
    console.print(f"[bold]{name}[/bold]")
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    parts.append(
        {
            "name": name,
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "peak_gib": _peak_gib(),
        }
    )


def _described(model: str, bundle: Bundle, run: Mapping[str, Any], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says about one model; parameters and MACs are those that an answer needs."""
    network, spec = bundle.network(), bundle.preprocess
    return {
        "title": model.capitalize(),
        "about": _ABOUT[model],
        "recipe": _RECIPES[model],
        "parameters": parameters(network),
        "macs": macs(network.answer, torch.zeros(1, 3, spec.height, spec.width)),
        "train_seconds": run["train_seconds"],
        "best_epoch": run["best_epoch"],
        "val_top1": run["val_top1"],
        "history": [{"epoch": row["epoch"], "val_top1": row["val_top1"]} for row in run["history"]],
        "conditions": conditions,
    }


def _predict(student: Recognizer, test: Manifest, out: Path) -> dict[str, Any]:
    """The student's answer to the first test picture, cut out as a detector would."""
    path = test.path(0)
    with Image.open(path) as picture:
        left, top, right, bottom = test.boxes[0].tolist()
        answer = student(picture.crop((left, top, right, bottom)))
    return {
        "picture": path.resolve().relative_to(out.resolve()).as_posix(),
        "truth": test.class_names[test.labels[0]],
        "text": str(answer),
        "answer": answer.to_dict(),
    }


def _facts(settings: DemoSettings, seed: int, run: Mapping[str, Any], test_images: int) -> dict[str, str]:
    return {
        "Pictures": f"{run['train_images']} to train, {run['val_images']} to select the epoch, {test_images} to test; "
        f"drawn at {settings.picture} px from the front and half front, no vehicle in two of the three",
        "Classes": f"{settings.makes * settings.models_per_make} models of {settings.makes} makes",
        "Backbone": f"{settings.backbone} from scratch at {settings.size} px",
        "Training": f"{settings.epochs} epochs each, peak learning rate {settings.lr:g}, "
        f"student {settings.student_lr:g}; recipes {', '.join(_RECIPES.values())}",
        "Corruptions": "severity 3 of 5",
        "Seed": str(seed),
        "Versions": f"vmmr {vmmr.__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"timm {timm.__version__}",
        "Computer": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}",
    }


def _show(console: Console, results: Mapping[str, Any], out: Path) -> None:
    models = results["models"]
    table = Table(title="Share of test images named right")
    table.add_column("condition")
    for model in models.values():
        table.add_column(model["title"], justify="right")
    for name in models["plain"]["conditions"]:
        scores = [model["conditions"][name]["top1"] for model in models.values()]
        table.add_row(condition_title(name), *(f"{score:.1%}" for score in scores), end_section=name == "clean")
    table.add_section()
    table.add_row("mean under noise", *(f"{noisy:.1%}" for noisy in results["under_noise"].values()), style="bold")
    console.print(table)
    sample = results["sample"]
    console.print(f"{sample['picture']} is {sample['truth']}; the student says {sample['text']}")
    console.print(f"{results['seconds']:.0f} s, at most {results['peak_gib']:.2f} GiB; read {out / 'report.html'}")
