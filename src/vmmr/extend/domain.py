"""The mode `domain`: a bank of BatchNorms for the same classes under another capture condition."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.splits import groups_of, require_no_leakage
from vmmr.errors import ConfigError, DataError, TrainingError
from vmmr.export.bundle import Bundle, Network
from vmmr.export.extension import extended, read_extendable
from vmmr.extend.images import CropView, Seen, labelled_pixels, old_splits, see
from vmmr.extend.report import Extended, domain_section, fingerprint, require_kept, said, told_old
from vmmr.incremental.domains import PLACE, adapt, domain_banks, fit_level, gaussian, signatures, tune
from vmmr.incremental.gallery import fold_of
from vmmr.incremental.task_norm import Plan
from vmmr.models.backbone import Backbone
from vmmr.unknown import BANK
from vmmr.unknown.detector import strangeness

__all__ = ["DomainSettings", "extend_domain"]

_FOLDS = 5


@dataclass(frozen=True)
class DomainSettings:
    """plan: how gamma and beta are learned where images have labels; 0 epochs leave them. seed: of everything drawn."""

    plan: Plan = field(default_factory=lambda: Plan(30, 0.1, (0.5, 0.8), batch_size=64))
    seed: int = 0


def extend_domain(
    source: str | os.PathLike[str],
    new: Manifest | Sequence[str],
    *,
    old: Manifest | None,
    settings: DomainSettings | None = None,
    bound: float = 0.02,
    least: int = 5,
    max_drop: float = 0.5,
    force: bool = False,
    progress: bool = False,
) -> Extended:
    """The bundle in `source` with a bank for images of its own classes from another domain; see
    `vmmr.incremental.domains`.

    new: pictures without labels, which give statistics alone, or a table, whose labels teach gamma and beta too; rows
    of the split test are left alone, and a fifth of the others, groups held together, is kept apart and judges. old:
    the data that the bundle was trained on; its split train says what it looks like, its split val what changes.
    bound: share of old images that may go to the new bank. least: images that it takes. Other arguments as of
    `extend_gallery`.

    All weights and earlier banks stay bit-identical, which is checked. Raises ConfigError without old data and for
    networks without BatchNorm or with banks of tasks, DataError for too few readable images.
    """
    settings = settings or DomainSettings()
    bundle, files = read_extendable(source)
    if old is None:
        raise ConfigError(
            "a domain is told from what the bundle was trained on, and there is none",
            got="no old data",
            do="pass --data, the manifest it was trained on, with splits train and val",
        )
    train, validation = old_splits(old)
    network = bundle.network().requires_grad_(False)
    backbone = network if isinstance(network, Backbone) else network.backbone
    banks = domain_banks(backbone)
    frozen = _frozen(network, len(banks))

    paths, pixels, labels, groups = _pictures(bundle, new, progress)
    bad = {row for row, _ in pixels.bad}
    rows = np.array([row for row in range(len(pixels)) if row not in bad], dtype=np.int64)
    out = (fold_of(torch.zeros(len(rows), dtype=torch.int64), groups[rows], _FOLDS) == 0).numpy()
    if len(rows) < max(least, 2) or not 2 <= (~out).sum() < len(rows):
        raise DataError("a domain has too few images", got=f"{len(rows)}, {len(bad)} more could not be read", do="add")
    told = np.zeros(len(pixels), dtype=np.int64) if labels is None else labels
    held_pixels, held_labels = labelled_pixels(bundle, validation, progress=progress)
    every = np.arange(len(held_pixels))
    held_before, out_before = see(network, held_pixels, held_labels, every), see(network, pixels, told, rows[out])

    def answer(image: Tensor) -> Tensor:
        return bundle.class_scores(network.answer_of(network(image, pooled=True)))

    generator = torch.Generator().manual_seed(settings.seed)
    view, items = CropView(bundle.preprocess), pixels[rows[~out]]
    domain = adapt(backbone, items, view, generator=generator)
    if labels is not None:
        targets, talk = torch.from_numpy(told[rows[~out]]), said if progress else None
        tune(backbone, domain, answer, items, targets, view, plan=settings.plan, generator=generator, progress=talk)
    shown = [signatures(backbone, items, view)]
    if domain == 1:
        shown.insert(0, signatures(backbone, _some(bundle, train, progress), view))
    places = [gaussian(some) for some in shown]
    banks.place({name: torch.stack([place[name] for place in places]) for name in PLACE})
    lead_old = banks.lead(signatures(backbone, held_pixels[every], view))
    lead_new = banks.lead(signatures(backbone, pixels[rows[out]], view))
    offset, promised = fit_level(lead_old, lead_new, bound)
    banks.level = torch.cat([banks.level[:-1], banks.level[-1:] + offset])
    if _frozen(network, domain) != frozen:
        raise TrainingError("learning a domain changed what is shared or an earlier bank", do="report this as a bug")

    held_after, out_after = see(network, held_pixels, held_labels, every), see(network, pixels, told, rows[out])
    own = {
        "images": int(out.sum()),
        "taken": float((lead_new > offset).double().mean()),
        "before": _judged(bundle, out_before, labels is not None),
        "after": _judged(bundle, out_after, labels is not None),
    }
    added: dict[str, Any] = {
        "mode": "domain",
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "domain": domain,
        "labels": labels is not None,
        "images": int((~out).sum()),
        "skipped": len(bad),
        "frozen": frozen,
        "bound": {"share": promised, "of": "validation images"},
        "new": own,
        "old": told_old(bundle, held_before, bundle.class_scores(held_after.logits))
        | {"taken": float((lead_old > offset).double().mean())},
    }
    require_kept(added, max_drop, force)
    tensors = banks.tensors(domain)
    tensors |= {f"place.{name}": getattr(banks, name)[-len(shown) :].clone() for name in PLACE}
    card = f"{bundle.card.rstrip()}\n\n{domain_section(added)}"
    found = extended(bundle, files, tensors=tensors, card=card, added=added)
    return Extended(found, tuple((paths[row], reason) for row, reason in pixels.bad))


class _Pictures(NamedTuple):
    """Of a domain: paths, decoded, with labels, where there are any, and groups, int64 [N]."""

    paths: list[str]
    pixels: Pixels
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64]


def _pictures(bundle: Bundle, new: Manifest | Sequence[str], progress: bool) -> _Pictures:
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    if not isinstance(new, Manifest):
        paths = [*new]
        return _Pictures(
            paths, Pixels(paths, preprocess, progress=progress, on_bad="skip"), None, np.arange(len(paths))
        )
    learned = new.select(new.splits != "test")
    if (new.splits == "test").any():
        require_no_leakage(learned, new.split("test"))
    known, by_level = bundle.labelled(learned)
    labels = known.labels if bundle.levels is None else by_level[bundle.levels.finest]
    pixels = Pixels(known.path_list(), preprocess, boxes=known.boxes, progress=progress, on_bad="skip")
    return _Pictures(known.path_list(), pixels, labels, groups_of(known))


def _some(bundle: Bundle, train: Manifest, progress: bool) -> Tensor:
    """Old training images, decoded: all, or so many that the rest would change nothing."""
    some = np.random.default_rng(0).permutation(len(train))[:BANK]
    pixels, _ = labelled_pixels(bundle, train.select(np.sort(some)), progress=progress)
    return pixels[np.arange(len(pixels))]


def _judged(bundle: Bundle, seen: Seen, labelled: bool) -> dict[str, float | None]:
    """Top-1, where there are labels, and the share that is known, where the bundle tells."""
    scores, detector = bundle.class_scores(seen.logits), bundle.detector
    top1 = float((scores.argmax(dim=1) == seen.labels).double().mean()) if labelled else None
    if detector is None:
        return {"top1": top1, "known": None}
    strange = strangeness(detector.score, seen.features, scores, detector.fitted)
    return {"top1": top1, "known": float((strange <= detector.gate.known).double().mean())}


def _frozen(network: Network, domains: int) -> str:
    """The fingerprint of all weights and of the banks of the first domains, without what domains are told by."""
    return fingerprint(
        {
            name: value
            for name, value in network.state_dict().items()
            if f".banks.{domains}." not in name and name.rpartition(".")[2] not in PLACE
        }
    )
