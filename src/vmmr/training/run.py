"""From settings and data to a bundle: `vmmr train` and `vmmr distil`."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import vmmr
from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.errors import BundleError, ConfigError, TrainingError
from vmmr.evaluation.evaluate import calibrated, evaluate, require_fittable, with_unknown
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle, write_bundle
from vmmr.files import write_json
from vmmr.levels import HierarchySpec
from vmmr.models import Backbone, HierarchicNetwork, HierarchicProgressiveNetwork, ProgressiveNetwork, load_weights
from vmmr.models.hierarchic import trunk_state
from vmmr.training.distil import Distil
from vmmr.training.frozen import freeze
from vmmr.training.loop import Fitted, fit
from vmmr.training.method import Method
from vmmr.training.multitask import Multitask
from vmmr.training.plain import Plain
from vmmr.training.progressive import Progressive
from vmmr.training.samples import Samples, open_samples

import timm  # isort: skip

__all__ = ["train"]

_HALF = (0.5, 0.5, 0.5)


def train(
    config: TrainConfig,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    teacher: str | os.PathLike[str] | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    test: bool = True,
) -> dict[str, Any]:
    """Train as `config` says on a manifest or folder; leave out/bundle, out/metrics.json, out/config.yaml, out/log.csv.

    teacher: the progressive bundle that PMD learns from; its taxonomy and input statistics are kept, and `config` must
    name its backbone. resume: go on
    from the newest checkpoint in `out`. Test images, where the data has some, are looked at once, at the very end.
    Under torchrun every process calls this; the first one writes. Returns the metrics.
    """
    from lightning.fabric import Fabric  # slow to import

    out = Path(out)
    if (config.method == "pmd") != (teacher is not None):
        raise ConfigError(
            "only PMD has a teacher, and it needs one",
            got=f"method={config.method}, teacher={teacher}",
            do="use `vmmr distil --teacher BUNDLE` or another recipe",
        )
    if (out / "metrics.json").exists() or ((out / "checkpoints").exists() and not resume):
        raise TrainingError(
            "this folder holds a run", got=str(out), do="name a new folder, or resume an unfinished run"
        )
    manifest = Manifest.load(Path(data))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=processes // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp" if processes > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    torch.manual_seed(config.seed)
    guide = read_bundle(teacher) if teacher is not None else None
    if guide is not None and guide.spec.kind != "progressive":
        raise BundleError("a PMD teacher has denoising-recognition heads", got=f"a {guide.spec.kind} bundle")
    if guide is not None and guide.parent is not None:
        raise BundleError("a PMD teacher is not extended", got=guide.name, do="roll it back: vmmr rollback")
    taught = guide.spec.hierarchy if guide is not None else None
    if taught is not None and not config.levels:
        config = config.with_(levels=list(taught.names))
    if guide is not None and set(config.levels) != set(taught.names if taught is not None else ()):
        got = f"{list(taught.names) if taught is not None else 'classes alone'} and {config.levels}"
        raise ConfigError("teacher and student must answer the same levels", got=got, do="leave out levels")
    samples = open_samples(
        manifest,
        config,
        taxonomy=guide.taxonomy if guide is not None else None,
        levels=taught.levels(guide.taxonomy) if guide is not None and taught is not None else None,
        progress=progress and fabric.is_global_zero,
    )
    if config.unknown != "none":  # now, not after hours of training
        require_fittable(samples.train.labels, len(samples.taxonomy))
    method, spec = _assemble(config, samples, guide)
    if isinstance(method, Distil):
        fabric.to_device(method.teacher)
    start: dict[str, Tensor] = {}
    if isinstance(method, Plain | Multitask) and config.frozen:
        start = method.network.state_dict()
        samples = freeze(
            method.network, samples, config, device=fabric.device, progress=progress and fabric.is_global_zero
        )
        if not all(p.requires_grad for step in method.steps(0, 0) for p in step.shared):
            do = "freeze less, or leave out balancer and measure_every"
            raise ConfigError("no trained layer is shared by the levels", got=f"frozen={config.frozen!r}", do=do)
    out.mkdir(parents=True, exist_ok=True)
    if fabric.is_global_zero:
        config.write_yaml(out / "config.yaml")
    started = time.time()
    fitted = fit(method, samples, config, fabric, out, resume=resume, progress=progress)
    if not fabric.is_global_zero:
        return {}
    fitted = replace(fitted, state={**start, **fitted.state})
    if config.keep == "trunk":
        fitted, spec = replace(fitted, state=trunk_state(fitted.state)), replace(spec, kind="plain")
    bundle = _bundle(method, fitted, samples, spec, config)
    bundle = calibrated(bundle, samples.validation, samples.preprocess, precision=config.back_off, device=fabric.device)
    if config.unknown != "none":
        bundle = with_unknown(
            bundle,
            samples.train,
            samples.validation,
            samples.preprocess,
            score=config.unknown,
            device=fabric.device,
        )
    write_bundle(out / "bundle", bundle)
    best = fitted.history[fitted.best]
    metrics: dict[str, Any] = {
        "val_top1": best["val_top1"],
        "val_top5": best["val_top5"],
        **{f"val_{level}": best[f"val_{level}"] for level in config.levels if f"val_{level}" in best},
        "best_epoch": fitted.best,
        "temperature": bundle.spec.temperature,
        "train_images": len(samples.train),
        "val_images": len(samples.validation),
        "dropped_duplicates_of_test": samples.dropped,
        "splits": samples.splits,
        "train_seconds": round(fitted.seconds, 2),
        "images_per_s": round(len(samples.train) * config.epochs / max(fitted.seconds, 1e-9), 2),
        "history": fitted.history,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": vmmr.__version__,
        "wall_seconds": round(time.time() - started, 2),
    }
    if test and (manifest.splits == "test").any():
        judged = evaluate(
            bundle, manifest.split("test"), device=fabric.device, memory_gib=config.memory_gib, progress=progress
        )
        clean = judged["conditions"]["clean"]
        metrics |= {"test_top1": clean["top1"], "test_top5": clean["top5"], "test_images": judged["data"]["images"]}
    write_json(out / "metrics.json", metrics)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return metrics


_Triple = tuple[float, float, float]


def _statistics(config: TrainConfig) -> tuple[_Triple, _Triple]:
    if config.statistics in ("half", "image"):
        return _HALF, _HALF
    found = timm.get_pretrained_cfg(config.backbone)
    if found is None:
        raise ConfigError(f"timm knows no statistics of {config.backbone!r}", do="use statistics='half'")
    return cast(_Triple, tuple(found.mean)), cast(_Triple, tuple(found.std))


def _assemble(config: TrainConfig, samples: Samples, guide: Bundle | None) -> tuple[Method, ModelSpec]:
    mean, std = _statistics(config)
    classes, name, source = len(samples.taxonomy), config.backbone, None
    if config.pretrained:
        outputs = classes if samples.levels is None else 0
        source = Backbone(name, outputs, pretrained=True, options=config.backbone_options)
        if ":" in name:  # hf-hub:owner/name or local-dir:path say where from; a bundle says what it is
            name = str(source.model.pretrained_cfg["architecture"])
    levels = samples.levels
    hierarchy = None
    if levels is not None:
        hierarchy = HierarchySpec(
            levels.names, dict(levels.attributes), form=config.hierarchy, feed=config.feed, taps=config.taps
        )
    spec = ModelSpec(
        hierarchy=hierarchy,
        kind="progressive" if config.method == "pmal" else "plain",
        backbone=name,
        classes=classes,
        backbone_options=config.backbone_options,
        heads=config.heads,
        mean=mean,
        std=std,
        standardise=config.statistics == "image",
    )
    if guide is not None and (guide.spec.backbone, guide.spec.backbone_options) != (name, config.backbone_options):
        raise ConfigError(
            "teacher and student must share the backbone",
            got=f"{guide.spec.backbone} {guide.spec.backbone_options} and {name} {config.backbone_options}",
            do="train the student with the teacher's backbone",
        )
    if guide is not None:
        spec = replace(spec, mean=guide.spec.mean, std=guide.spec.std, standardise=guide.spec.standardise)
    options = {
        "stop_gradient": config.stop_gradient,
        "teacher_forcing": config.teacher_forcing,
        "dropout": config.head_dropout,
    }
    network = build_network(spec, samples.taxonomy, **(options if levels is not None else {}))
    backbone = network if isinstance(network, Backbone) else network.backbone
    _require_size(backbone, config)
    if source is not None:
        backbone.model.load_state_dict(source.model.state_dict())
    elif config.weights is not None:
        load_weights(backbone.model, config.weights)
    if isinstance(network, ProgressiveNetwork):
        return Progressive(network, config), spec
    if guide is None:
        if config.frozen:  # the maps are of noisy views
            config = config.with_(noise="none")
        return Multitask(network, config) if isinstance(network, HierarchicNetwork) else Plain(network, config), spec
    teacher = guide.network()
    assert isinstance(teacher, ProgressiveNetwork)
    if config.student_init == "teacher":
        backbone.load_state_dict(teacher.backbone.state_dict())
        if isinstance(network, HierarchicNetwork) and isinstance(teacher, HierarchicProgressiveNetwork):
            assert guide.spec.hierarchy is not None
            if (guide.spec.hierarchy.form, guide.spec.hierarchy.feed) == (config.hierarchy, config.feed):
                network.head.load_state_dict(teacher.level_heads[0].state_dict())
    return Distil(network, teacher, config), spec


@torch.no_grad()
def _require_size(backbone: Backbone, config: TrainConfig) -> None:
    was_training = backbone.training
    try:
        backbone.eval().answer(torch.zeros(1, 3, config.size, config.size))
    except (AssertionError, RuntimeError, ValueError) as error:
        do = "change size, or tell the network: backbone_options {img_size: ...}"
        raise ConfigError(f"{config.backbone!r} takes no image of {config.size} pixels", got=error, do=do) from error
    backbone.train(was_training)


def _bundle(method: Method, fitted: Fitted, samples: Samples, spec: ModelSpec, config: TrainConfig) -> Bundle:
    tensors = fitted.state
    preprocess = samples.preprocess
    if spec.kind == "plain" and spec.hierarchy is None:
        tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
        preprocess = replace(preprocess, mean=spec.mean, std=spec.std)
    told = spec.hierarchy
    levels = "" if told is None else f"- levels: {', '.join(told.names)} ({told.form})\n"
    card = (
        f"# vmmr bundle: {spec.kind} {spec.backbone}\n\n"
        f"- classes: {spec.classes}\n{levels}- input: {config.size} x {config.size}\n"
        f"- method: {config.method} ({config.mode}), noise {config.noise}, seed {config.seed}\n"
        f"- training images: {len(samples.train)}, validation images: {len(samples.validation)}\n"
        f"- validation top-1 of the kept epoch: {fitted.history[fitted.best]['val_top1']:.4f}\n"
        "- data licence: that of the images it was trained on; check before passing the bundle on\n"
    )
    return Bundle(spec, samples.taxonomy, preprocess, tensors, card)
