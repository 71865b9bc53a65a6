"""The last two tasks of a bundle as one: an answer costs a pass less."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import torch

from vmmr.data.manifest import Manifest
from vmmr.errors import ConfigError, TrainingError
from vmmr.evaluation.calibration import fit_temperature
from vmmr.export.bundle import Bundle
from vmmr.export.extension import extended, read_extendable
from vmmr.extend.images import CropView, labelled_pixels, old_splits, see
from vmmr.extend.report import merge_section, require_kept, said, told_old
from vmmr.extend.task import TaskSettings, exemplars, frozen_banks, heads_of, routing_tensors
from vmmr.incremental.network import TaskNetwork
from vmmr.incremental.routing import fit_calibration
from vmmr.incremental.task_norm import align

__all__ = ["merge_tasks"]


def merge_tasks(
    source: str | os.PathLike[str],
    old: Manifest,
    *,
    settings: TaskSettings | None = None,
    max_drop: float = 0.5,
    force: bool = False,
    progress: bool = False,
) -> Bundle:
    """The bundle in `source` with its last two tasks merged, by `BankedNetwork.merge` with shares by classes, and heads
    aligned anew.

    old: images of all classes that it knows; the split train gives the exemplars, the split val fits routing and
    temperature, and says what is lost. settings: the second stage, memory and seed count. max_drop: points of accuracy
    on the validation images that may be lost; TrainingError beyond, unless `force`.

    Convolutions and banks of all other tasks stay bit-identical, which is checked. Raises ConfigError for bundles
    whose last layer is no task, and where the base is one of the two and has no unknown output.
    """
    settings = settings or TaskSettings()
    bundle, files = read_extendable(source)
    network = bundle.network()
    if not isinstance(network, TaskNetwork):
        raise ConfigError("there are no tasks to merge", got=bundle.added.get("mode", "no extension"))
    banked, task = network.banked, len(network.banked) - 2
    train, validation = old_splits(old)
    pixels, labels = labelled_pixels(bundle, validation, progress=progress)
    held = see(network, pixels, labels, np.arange(len(pixels)))
    memory, _ = exemplars(bundle, network, train, settings.memory, progress)
    frozen = frozen_banks(banked, task)

    one, two = banked.classes[-2:]
    banked.merge(task, (one, two))
    view, generator = CropView(bundle.preprocess), torch.Generator().manual_seed(settings.seed)
    told = said if progress else None
    align(banked, memory.items, memory.labels, view, settings=settings.norm, generator=generator, progress=told)
    if frozen_banks(banked, task) != frozen:
        raise TrainingError("merging changed what is shared or another bank", do="report this as a bug")

    heads = heads_of(banked, pixels[np.arange(len(pixels))], view)
    calibration = fit_calibration(heads, held.labels, banked.classes, banked.widths)
    routed = TaskNetwork(banked, calibration.scale, calibration.offset, network.discriminants)
    scores = routed.scores(heads, held.features)
    added = {
        "mode": "merge",
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "tasks": list(banked.classes),
        "exemplars": len(memory),
        "frozen": frozen,
        "old": told_old(bundle, held, scores),
    }
    require_kept(added, max_drop, force)
    tensors = {k: v for k, v in banked.tensors().items() if k.startswith(("heads.", f"banks.{task}."))}
    tensors |= routing_tensors(routed)
    return extended(
        bundle,
        files,
        spec=replace(bundle.spec, temperature=round(fit_temperature(scores, held.labels.numpy()), 4)),
        tensors=tensors,
        card=f"{bundle.card.rstrip()}\n\n{merge_section(added)}",
        added=added,
    )
