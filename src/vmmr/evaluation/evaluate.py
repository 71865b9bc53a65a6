"""One bundle on one split of a manifest: clean, and under every condition asked for, in one document of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vmmr
from vmmr.config import OF_CLASSIFIER
from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.data.splits import require_no_leakage
from vmmr.errors import ConfigError, DataError
from vmmr.evaluation.calibration import (
    calibration_error,
    confidences,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)
from vmmr.evaluation.classify import accuracy, macro_accuracy, make_accuracy, predict_logits, views
from vmmr.evaluation.confusion import confusions, mistakes, worst_classes
from vmmr.evaluation.cost import answer_time, macs, parameters
from vmmr.evaluation.gate import SIGNS, answer_and_signs, gate_part, gate_scores
from vmmr.evaluation.hierarchy import fit_decoding, hierarchy_scores, level_scores
from vmmr.evaluation.intervals import interval, resampled_means
from vmmr.evaluation.markdown import with_part
from vmmr.evaluation.restoration import restoration
from vmmr.evaluation.robustness import condition, summary
from vmmr.export.bundle import Bundle, Network
from vmmr.levels import Levels
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.models.decoding import independent, joint_scores
from vmmr.models.heads.hierarchy import log_marginal, split_levels
from vmmr.training.samples import Side, open_side
from vmmr.unknown import SCORES, fit_gate, gather, hidden_scores
from vmmr.unknown.detector import Detector, strangeness
from vmmr.unknown.quality import contrast, detail

__all__ = ["calibrated", "evaluate", "require_fittable", "with_unknown"]

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
    manifest, labels = bundle.labelled(manifest)
    # The network brings its own statistics; noise is defined on images in [-1, 1].
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = bundle.network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    levels = bundle.levels
    temperature = None if bundle.spec.temperature == 1 else bundle.spec.temperature
    fitted_on = None if temperature is None else "validation images of the training"
    if validation is not None:
        require_no_leakage(validation, manifest)
        side = open_side(
            bundle.labelled(validation)[0], preprocess, levels=levels, memory_gib=memory_gib, progress=progress
        )
        held = predict_logits(network.answer, network, side.pixels, preprocess, device=device)
        temperature, fitted_on = fit_temperature(bundle.class_scores(held), side.labels), "val"
    if pixels is None:
        pixels = open_side(manifest, preprocess, memory_gib=memory_gib, progress=progress).pixels

    conditions: dict[str, dict[str, Any]] = {}
    confidence: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    clean: Tensor | None = None
    decoded: dict[str, Any] = {}
    some = np.unique(np.linspace(0, len(manifest) - 1, min(restored, len(manifest))).round().astype(np.int64))
    detector = bundle.detector
    answer = network.answer if detector is None else answer_and_signs(bundle, network, detector)
    for name in wanted:
        degrade = condition(name, seed=seed)
        wide = predict_logits(answer, network, pixels, preprocess, device=device, degrade=degrade)
        if detector is not None:
            wide, signs = wide[:, :-SIGNS], wide[:, -SIGNS:]
        logits = bundle.class_scores(wide)
        clean = logits if name == "clean" else clean
        conditions[name] = _scores(logits, manifest, temperature)
        if detector is not None:
            conditions[name]["unknown"] = gate_scores(bundle, detector, logits, signs)
        if levels is not None:
            conditions[name] |= _level_scores(wide, logits, labels, levels)
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
        "unknown": None if detector is None else detector.settings,
        **_mistaken(clean, manifest),
        "restoration": decoded,
        "cost": _cost(network, preprocess, device, timed),
    }


def calibrated(
    bundle: Bundle,
    side: Side,
    preprocess: Preprocess,
    *,
    precision: float = 0.0,
    device: torch.device | str = "cpu",
) -> Bundle:
    """The bundle with what validation images tell: its temperature, see `fit_temperature`; where it has levels, also
    the weight of the coarser ones and, for a precision above 0, the thresholds of the back-off, see `fit_decoding`.

    side: validation images with labels, never those that are judged. preprocess: to [-1, 1].
    """
    network = bundle.network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = predict_logits(network.answer, network, side.pixels, preprocess, device=device)
    spec = bundle.spec
    levels = bundle.levels
    if spec.hierarchy is None or levels is None:
        return replace(bundle, spec=replace(spec, temperature=round(fit_temperature(logits, side.labels), 4)))
    by_level = split_levels(logits, levels.widths)
    hierarchy, temperature = fit_decoding(by_level, side.by_level, levels, spec.hierarchy, precision)
    return replace(bundle, spec=replace(spec, hierarchy=hierarchy, temperature=temperature))


def with_unknown(
    bundle: Bundle,
    train: Side,
    validation: Side,
    preprocess: Preprocess,
    *,
    score: str = "knn_pca",
    accept: float = 0.95,
    shortest: int = 0,
    device: torch.device | str = "cpu",
) -> Bundle:
    """The bundle with a detector of unknown vehicles: the score's constants from training images, its gate from
    validation images, see `fit_gate`; its card says how it was set. Neither may be images that are judged.

    preprocess: to [-1, 1]. score: a name in `vmmr.unknown.SCORES`. accept: share of validation images that are known.
    shortest: pixels of the shorter side below which nothing is said. Images that do not tell the finest level are left
    out. Raises ConfigError for a score that reads the classifier where the answer is not that classifier's, and for a
    `shortest` to which pictures may be shrunk; DataError as `require_fittable`.
    """
    if score not in SCORES:
        raise ConfigError("no such unknown score", got=repr(score), do=f"choose of {', '.join(SCORES)}")
    if not 0 <= shortest <= preprocess.shrink_to:
        raise ConfigError("shortest is out of range", got=shortest, do=f"pass 0 to {preprocess.shrink_to} pixels")
    classes = len(bundle.taxonomy)
    require_fittable(train.labels, classes)
    network = bundle.network().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if score in OF_CLASSIFIER:
        weight, bias = _classifier(network)
    else:
        width = (network if isinstance(network, Backbone) else network.backbone).width
        weight, bias = torch.zeros(classes, width), torch.zeros(classes)  # which nothing reads
    seen = _seen(bundle, network, train, preprocess, device)
    fitted = SCORES[score].fit(gather(((s.features, s.labels, s.rows) for s in seen), weight, bias))
    held = [
        (s.features, s.logits, s.labels, contrast(s.image), detail(s.image))
        for s in _seen(bundle, network, validation, preprocess, device)
    ]
    if not held:
        raise DataError("no validation image tells what it shows", got=f"{len(validation)} images")
    features, logits, labels, light, edges = (torch.cat(parts) for parts in zip(*held, strict=True))
    known = strangeness(score, features, logits, fitted)
    hidden = hidden_scores(SCORES[score].score, features, logits, labels, fitted).float()
    gate = fit_gate(known, hidden, light, edges, rate=accept, shortest=shortest)
    detector = Detector(score, gate, fitted)
    return replace(
        bundle, detector=detector, card=with_part(bundle.card, "unknown", gate_part(detector, known, hidden))
    )


def require_fittable(labels: NDArray[np.int64], classes: int) -> None:
    """DataError unless training images with these labels, -1 for none, tell what is known: two classes or more, and an
    image of each."""
    missing = classes - len(np.unique(labels[labels >= 0]))
    if classes < 2 or missing:
        raise DataError(
            "telling unknown vehicles takes two classes, and a training image of each",
            got=f"{classes} classes, {missing} without an image",
            do="add images, or set unknown to none",
        )


class _Seen(NamedTuple):
    """A batch of labelled images [B, 3, H, W], and what a network makes of them: features [B, D], logits of classes
    [B, C]. All on the processor."""

    image: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor
    rows: Tensor


@torch.no_grad()
def _seen(
    bundle: Bundle, network: Network, side: Side, preprocess: Preprocess, device: torch.device | str
) -> Iterator[_Seen]:
    rows, start = np.flatnonzero(side.labels >= 0), 0
    for _, image in views(side.pixels, preprocess, rows=rows, device=device):
        outputs = network(image, pooled=True)
        some = rows[start : start + len(image)]
        start += len(image)
        logits = bundle.class_scores(network.answer_of(outputs).float().cpu())
        labels, keys = torch.from_numpy(side.labels[some]), torch.from_numpy(some)
        yield _Seen(image.cpu(), outputs["pooled"].float().cpu(), logits, labels, keys)


def _classifier(network: Network) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of the layer that gives the answer."""
    head = network.model.get_classifier() if isinstance(network, Backbone) else None
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            "this unknown score reads a plain classifier", got=type(head or network).__name__, do="use another: knn"
        )
    weight = head.weight.detach()
    return weight, torch.zeros(len(weight)) if head.bias is None else head.bias.detach()


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


def _level_scores(wide: Tensor, scores: Tensor, labels: dict[str, NDArray[np.int64]], levels: Levels) -> dict[str, Any]:
    """`levels`: each level by itself. `independent` and `consistent`: how the levels go together, each by itself or
    decoded as one. `marginal`: accuracy of the make as the finest level alone tells it, be it a level or not."""
    by_level = split_levels(wide, levels.widths)
    alone = {level: found.numpy() for level, found in independent(by_level).items() if level in levels.tree}
    fine = scores.argmax(dim=1).numpy()
    decoded = {level: levels.parents(levels.finest, level)[fine] for level in levels.tree}
    make_of = levels.parents(levels.finest, "make")
    own = joint_scores(by_level, levels, 0.0)
    told = log_marginal(own, torch.from_numpy(make_of.copy()), len(levels.nodes("make"))).argmax(dim=1).numpy()
    return {
        "levels": level_scores(by_level, labels),
        "independent": hierarchy_scores(alone, labels, levels),
        "consistent": hierarchy_scores(decoded, labels, levels),
        "marginal": {"make": float((told == make_of[labels[levels.finest]]).mean())},
    }


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


def _cost(network: Network, preprocess: Preprocess, device: torch.device | str, timed: bool) -> dict[str, Any]:
    answer = network.answer
    image = torch.zeros(1, 3, preprocess.height, preprocess.width, device=device)
    found = {"parameters": parameters(network), "macs": macs(answer, image)}
    return found | answer_time(answer, image) if timed else found
