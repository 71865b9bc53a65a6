"""The mode `task`: a bank of BatchNorms and a head of their own for the new classes, trained; the rest is frozen."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vmmr.data.manifest import Manifest
from vmmr.discriminants import discriminants, moments
from vmmr.errors import ConfigError, DataError, TrainingError
from vmmr.evaluation.calibration import fit_temperature
from vmmr.export.bundle import Bundle, Network
from vmmr.export.extension import extended, read_extendable
from vmmr.export.layers import TASKS
from vmmr.extend.images import CropView, Seen, fresh_rows, labelled_pixels, old_splits, see
from vmmr.extend.report import (
    Extended,
    Split,
    card_section,
    fingerprint,
    grown_detector,
    keep_promise,
    require_kept,
    said,
    told_new,
    told_old,
)
from vmmr.incremental.banks import BankedNetwork
from vmmr.incremental.gallery import CONFIDENCE, exceeding, fit_likelihoods, fold_of
from vmmr.incremental.memory import Memory
from vmmr.incremental.network import Discriminants, TaskNetwork
from vmmr.incremental.routing import fit_calibration
from vmmr.incremental.task_norm import Plan, TaskNorm, learn_task
from vmmr.models.backbone import Backbone

__all__ = [
    "TaskSettings",
    "exemplars",
    "extend_task",
    "fit_discriminants",
    "frozen_banks",
    "heads_of",
    "routing_tensors",
]

_FOLDS = 5
_STEP = 0.1  # of log-odds


@dataclass(frozen=True)
class TaskSettings:
    """norm: the two stages, see `TaskNorm`; shorter than published by default. memory: images of old classes that are
    learned with, shared evenly. base_unknown: give the head of the base network an unknown output too, as published,
    and train it with the others; without one it stays as it is. discriminants: multiply what heads say with linear
    discriminants of all classes, of the features of the first bank, which is ours; a bundle that has them keeps them.
    seed: of everything drawn."""

    norm: TaskNorm = field(
        default_factory=lambda: TaskNorm(
            stage1=Plan(30, 0.01, (0.5, 0.8), batch_size=64, weight_decay=1e-4), stage2=Plan(50, 0.01, (0.55, 0.8))
        )
    )
    memory: int = 2000
    base_unknown: bool = False
    discriminants: bool = False
    seed: int = 0


def extend_task(
    source: str | os.PathLike[str],
    new: Manifest,
    *,
    old: Manifest | None,
    settings: TaskSettings | None = None,
    bound: float = 0.02,
    confidence: float = CONFIDENCE,
    least: int = 5,
    max_drop: float = 0.5,
    force: bool = False,
    progress: bool = False,
) -> Extended:
    """The bundle in `source` with the classes of `new` as a task behind its own; see `vmmr.incremental.task_norm`.

    old: the data that it was trained on. Its split train gives the exemplars, its split val says what changes. A fifth
    of the new images, groups held together, is kept from training and judges. bound, confidence: as of
    `extend_gallery`: the new head is made to say "unknown" more easily until so few old answers change. Other
    arguments as there.

    Convolutions and all earlier banks stay bit-identical, which is checked. Raises ConfigError without old data and for
    networks other than plain ones without levels or galleries, DataError where an old class has no training image.
    """
    settings = settings or TaskSettings()
    bundle, files = read_extendable(source)
    _require_plain(bundle)
    if old is None:
        raise ConfigError(
            "a task is learned beside a few images of every old class, and there are none",
            got="no old data",
            do="pass --data, the manifest it was trained on, with splits train and val; or use the mode gallery",
        )
    if bundle.detector is not None and bundle.detector.score not in ("knn", "knn_pca"):
        raise ConfigError(
            "logits of several tasks are routed, and the gate was fitted on others",
            got=f"unknown {bundle.detector.score}",
            do="calibrate the bundle by features alone first: vmmr calibrate --unknown knn_pca",
        )
    train, validation = old_splits(old)
    fresh = fresh_rows(bundle, new, least=least, progress=progress)
    network = bundle.network()
    first, classes = len(bundle.taxonomy), len(fresh.taxonomy)
    if isinstance(network, TaskNetwork):
        banked = network.banked
    else:
        assert isinstance(network, Backbone)
        banked = BankedNetwork(network, base_unknown=settings.base_unknown)
    earlier = frozen_banks(banked, len(banked))

    shown = see(network, fresh.pixels, fresh.labels, fresh.rows)
    out = fold_of(shown.labels, fresh.groups[fresh.rows], _FOLDS) == 0
    learned, held_new = (Seen(*(part[rows] for part in shown)) for rows in (~out, out))
    if len(torch.unique(learned.labels)) < classes - first or not len(held_new.labels):
        raise DataError("a class has images of one group alone", do="name groups only where pictures must not part")
    held_pixels, held_labels = labelled_pixels(bundle, validation, progress=progress)
    held = see(network, held_pixels, held_labels, np.arange(len(held_pixels)))
    memory, seen = exemplars(bundle, network, train, settings.memory, progress)

    generator = torch.Generator().manual_seed(settings.seed)
    view = CropView(bundle.preprocess)
    items = fresh.pixels[fresh.rows[~out.numpy()]]
    told = said if progress else None
    learn_task(banked, items, learned.labels, memory, view, settings=settings.norm, generator=generator, progress=told)
    if frozen_banks(banked, len(banked) - 1) != earlier:
        raise TrainingError("learning a task changed what is shared or an earlier bank", do="report this as a bug")

    heads_old = heads_of(banked, held_pixels[np.arange(len(held_pixels))], view)
    heads_new = heads_of(banked, fresh.pixels[fresh.rows[out.numpy()]], view)
    both, labels = torch.cat([heads_old, heads_new]), torch.cat([held.labels, held_new.labels])
    calibration = fit_calibration(both, labels, banked.classes, banked.widths)
    second = None
    if settings.discriminants or (isinstance(network, TaskNetwork) and network.discriminants is not None):
        second = fit_discriminants(_both(seen, learned), _both(held, held_new), classes)
    routed = TaskNetwork(banked, calibration.scale.clone(), calibration.offset.clone(), second)

    def scores(heads: Tensor, of: Seen) -> Tensor:
        return routed.scores(heads, of.features)

    was = bundle.class_scores(held.logits).argmax(dim=1)
    most, promised = exceeding(len(was), bound, confidence)
    # Heads that were aligned anew may change answers among old classes, which no offset undoes: those are not bounded.
    keep_promise(
        routed.offset[-1:],
        _STEP,
        lambda: int((scores(heads_old, held).argmax(dim=1) >= first).sum()),
        most,
    )
    fitted_old, fitted_new = scores(heads_old, held), scores(heads_new, held_new)
    temperature = fit_temperature(torch.cat([fitted_old, fitted_new]), labels.numpy())
    detector = grown_detector(bundle.detector, learned, [Split(learned, held_new, fitted_new)])
    added = {
        "mode": "task",
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "classes": list(fresh.taxonomy.names[first:]),
        "images": len(learned.labels),
        "skipped": len(fresh.skipped),
        "exemplars": len(memory),
        "discriminants": second is not None,
        "frozen": earlier,
        "bound": {"share": promised, "confidence": confidence, "of": "validation images"},
        "new": told_new(held_new, fitted_new, first) | {"known": detector.share},
        "old": told_old(bundle, held, fitted_old),
    }
    require_kept(added, max_drop, force)
    own = {k: v for k, v in banked.tensors().items() if k.startswith(("heads.", f"banks.{len(banked) - 1}."))}
    found = extended(
        bundle,
        files,
        taxonomy=fresh.taxonomy,
        spec=replace(bundle.spec, classes=classes, temperature=round(temperature, 4)),
        tensors={**own, **routing_tensors(routed)},
        detector=detector.detector,
        card=f"{bundle.card.rstrip()}\n\n{card_section(added)}",
        added=added,
    )
    return Extended(found, fresh.skipped)


def _require_plain(bundle: Bundle) -> None:
    mode = bundle.added.get("mode", "task")
    if bundle.spec.kind != "plain" or bundle.levels is not None or mode not in TASKS:
        what = f"a {mode}" if mode not in TASKS else f"{bundle.spec.kind}, levels or heads"
        raise ConfigError(
            "tasks are learned by plain networks of classes alone",
            got=what,
            do="use the mode gallery, or roll back what is on top first",
        )


def exemplars(bundle: Bundle, network: Network, train: Manifest, budget: int, progress: bool) -> tuple[Memory, Seen]:
    """Old training images, as many of each class, the most telling first; and what the network makes of all of them."""
    pixels, labels = labelled_pixels(bundle, train, progress=progress)
    missing = len(bundle.taxonomy) - len(np.unique(labels))
    if missing or budget < len(bundle.taxonomy):
        raise DataError(
            "a task is learned beside a training image of every old class",
            got=f"{missing} of {len(bundle.taxonomy)} classes without one, room for {budget} images",
            do="pass --data with training images of all classes that the bundle knows, and a larger memory",
        )
    seen = see(network, pixels, labels, np.arange(len(pixels)))
    memory = Memory(budget).with_classes(torch.arange(len(pixels)), seen.labels, seen.features)
    return replace(memory, items=pixels[memory.items.numpy()]), seen


def fit_discriminants(learned: Seen, held: Seen, classes: int) -> Discriminants:
    """Linear discriminants of so many classes, of the features of images `learned`; log-likelihoods by a factor that is
    fitted to others, `held`."""
    weight, bias = discriminants(moments(learned.features, learned.labels, classes))
    weight, bias = weight - weight.mean(dim=0), bias - bias.mean()  # what all share says nothing, and costs digits
    unit = functional.normalize(held.features.double(), dim=1)
    factor = fit_likelihoods(unit @ weight.T + bias, held.labels)
    return Discriminants((factor * weight).float(), (factor * bias).float())


def routing_tensors(network: TaskNetwork) -> dict[str, Tensor]:
    """What a layer holds of how tasks are routed."""
    found = {"routing.scale": network.scale, "routing.offset": network.offset}
    told = network.discriminants
    return found if told is None else found | {f"discriminants.{k}": v for k, v in told._asdict().items()}


def _both(one: Seen, other: Seen) -> Seen:
    return Seen(*(torch.cat(parts) for parts in zip(one, other, strict=True)))


@torch.no_grad()
def heads_of(banked: BankedNetwork, items: Tensor, view: CropView) -> Tensor:
    """The logits of all heads side by side, of images as they are answered."""
    return torch.cat([banked(view(part, None))["logits"] for part in torch.split(items, 64)])


def frozen_banks(banked: BankedNetwork, tasks: int) -> str:
    """The fingerprint of the shared weights and of the banks of the first tasks."""
    shared: Mapping[str, Tensor] = {
        f"shared.{name}": value for name, value in banked.backbone.state_dict().items() if ".banks." not in name
    }
    banks = {name: v for name, v in banked.tensors().items() if name.startswith("banks.") and _task_of(name) < tasks}
    return fingerprint({**shared, **banks})


def _task_of(name: str) -> int:
    return int(name.split(".")[1])
