"""One bundle on one split of a manifest: clean, and under every condition asked for, in one document of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vmmr
from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.data.splits import require_no_leakage
from vmmr.errors import ConfigError
from vmmr.evaluation.calibration import (
    calibration_error,
    confidences,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)
from vmmr.evaluation.classify import accuracy, macro_accuracy, make_accuracy, predict_logits
from vmmr.evaluation.confusion import confusions, mistakes, worst_classes
from vmmr.evaluation.cost import answer_time, macs, parameters
from vmmr.evaluation.intervals import interval, resampled_means
from vmmr.evaluation.restoration import restoration
from vmmr.evaluation.robustness import condition, summary
from vmmr.export.bundle import Bundle
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.training.samples import Side, open_side

__all__ = ["evaluate", "validation_temperature"]

_FORMAT, _VERSION = "vmmr-evaluation", 1


def evaluate(
    bundle: Bundle,
    manifest: Manifest,
    *,
    wanted: Iterable[str] = ("clean",),
    seed: int = 0,
    validation: Manifest | None = None,
    restored: int = 0,
    timed: bool = False,
    device: torch.device | str = "cpu",
    memory_gib: float = 4.0,
    pixels: Pixels | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """A bundle on all rows of the manifest, as one document that JSON can hold; docs/evaluation.md says what is in it.

    wanted: names of conditions, see `vmmr.evaluation.robustness.condition`. seed: of noise and bootstrap. validation:
    rows that the temperature is fitted on anew; without them it is the bundle's, where it has one. restored: images,
    evenly spaced, on which the decoders of a progressive bundle are measured under each condition. timed: measure
    latency and throughput too. pixels: images already decoded for this manifest and this bundle's preprocessing. Raises
    ManifestError for classes that the bundle does not know, LeakageError where a validation image is judged as well.
    """
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        raise ConfigError("there is nothing to evaluate", got="no condition", do="name some, such as clean")
    manifest = manifest.with_taxonomy(bundle.taxonomy)
    # The network brings its own statistics; noise is defined on images in [-1, 1].
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = bundle.network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    answer = partial(_answer, network)
    temperature = None if bundle.spec.temperature == 1 else bundle.spec.temperature
    fitted_on = None if temperature is None else "validation images of the training"
    if validation is not None:
        require_no_leakage(validation, manifest)
        side = open_side(
            validation.with_taxonomy(bundle.taxonomy), preprocess, memory_gib=memory_gib, progress=progress
        )
        temperature, fitted_on = validation_temperature(network, side, preprocess, device=device), "val"
    if pixels is None:
        pixels = open_side(manifest, preprocess, memory_gib=memory_gib, progress=progress).pixels

    conditions: dict[str, dict[str, Any]] = {}
    confidence: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    clean: Tensor | None = None
    decoded: dict[str, Any] = {}
    some = np.unique(np.linspace(0, len(manifest) - 1, min(restored, len(manifest))).round().astype(np.int64))
    for name in wanted:
        degrade = condition(name, seed=seed)
        logits = predict_logits(answer, network, pixels, preprocess, device=device, degrade=degrade)
        clean = logits if name == "clean" else clean
        conditions[name] = _scores(logits, manifest, temperature)
        confidence[name] = confidences(logits)
        right[name] = logits.argmax(dim=1) == torch.from_numpy(manifest.labels)
        if isinstance(network, ProgressiveNetwork) and degrade is not None and restored:
            decoded[name] = restoration(network, pixels, preprocess, degrade, rows=some, device=device)
    resamples = resampled_means(torch.stack(list(right.values()), dim=1).double().numpy(), seed=seed)
    for scores, draws in zip(conditions.values(), resamples.T, strict=True):
        scores["interval"] = interval(draws)
    tempered = {} if clean is None or temperature is None else {"clean": confidences(clean, temperature)}
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "vmmr": vmmr.__version__,
        "bundle": {
            "name": bundle.name,
            "digest": bundle.digest,
            "kind": bundle.spec.kind,
            "backbone": bundle.spec.backbone,
            "size": preprocess.height,
        },
        "data": {
            "split": ", ".join(sorted(set(manifest.splits.tolist()))),
            "images": len(manifest),
            "classes": len(bundle.taxonomy),
            "makes": len(bundle.taxonomy.makes),
        },
        "seed": seed,
        "conditions": conditions,
        "summary": summary(
            {name: scores["top1"] for name, scores in conditions.items()}, dict(zip(right, resamples.T, strict=True))
        ),
        "calibration": {
            "temperature": temperature,
            "fitted_on": fitted_on,
            "bins": _bins(confidence, right, ["clean"]),
            "bins_calibrated": _bins(tempered, right, ["clean"]),
            "bins_corrupted": _bins(confidence, right, [name for name in right if "@" in name]),
        },
        **_mistaken(clean, manifest),
        "restoration": decoded,
        "cost": _cost(network, preprocess, device, timed),
    }


def validation_temperature(
    network: Backbone | ProgressiveNetwork, side: Side, preprocess: Preprocess, *, device: torch.device | str = "cpu"
) -> float:
    """The temperature that makes the labels of these images likeliest, see `fit_temperature`.

    side: validation images, never those that are judged. preprocess: to [-1, 1]. device: where the network is.
    """
    logits = predict_logits(partial(_answer, network), network, side.pixels, preprocess, device=device)
    return fit_temperature(logits, side.labels)


def _answer(network: Backbone | ProgressiveNetwork, image: Tensor) -> Tensor:
    if isinstance(network, ProgressiveNetwork):
        return network.answer(image)
    logits: Tensor = network(image)["logits_0"]
    return logits


def _scores(logits: Tensor, manifest: Manifest, temperature: float | None) -> dict[str, Any]:
    labels, answers = manifest.labels, logits.argmax(dim=1).numpy()
    right = torch.from_numpy(answers == labels)
    found = {
        **accuracy(logits, labels),
        "macro": macro_accuracy(answers, labels),
        "make": make_accuracy(answers, labels, manifest.taxonomy.make_of),
        "nll": negative_log_likelihood(logits, labels),
        "ece": calibration_error(confidences(logits), right),
    }
    if temperature is not None:
        found["ece_calibrated"] = calibration_error(confidences(logits, temperature), right)
    return found


def _bins(confidence: dict[str, Tensor], right: dict[str, Tensor], names: list[str]) -> list[dict[str, Any]]:
    """The reliability of these conditions together, as far as they were evaluated."""
    found = [name for name in names if name in confidence]
    if not found:
        return []
    return reliability_bins(torch.cat([confidence[n] for n in found]), torch.cat([right[n] for n in found]))


def _mistaken(clean: Tensor | None, manifest: Manifest) -> dict[str, Any]:
    """What clean images are taken for; nothing where they were not evaluated."""
    if clean is None:
        return {"confusions": [], "worst_classes": [], "mistakes": None}
    answers, labels, taxonomy = clean.argmax(dim=1).numpy(), manifest.labels, manifest.taxonomy
    worst = worst_classes(answers, labels, taxonomy)
    for item in worst:
        item["example"] = _relative(manifest, item.pop("row"))
    return {
        "confusions": confusions(answers, labels, taxonomy),
        "worst_classes": worst,
        "mistakes": mistakes(answers, labels, taxonomy),
    }


def _relative(manifest: Manifest, row: int) -> str:
    """The path of a row, from the manifest's folder where it lies in there."""
    path, root = Path(manifest.table["path"][row].as_py()), manifest.root.resolve()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _cost(
    network: Backbone | ProgressiveNetwork, preprocess: Preprocess, device: torch.device | str, timed: bool
) -> dict[str, Any]:
    answer = partial(_answer, network)
    image = torch.zeros(1, 3, preprocess.height, preprocess.width, device=device)
    found = {"parameters": parameters(network), "macs": macs(answer, image)}
    return found | answer_time(answer, image) if timed else found
