"""The mode `gallery`: discriminants of frozen features behind the old logits, in seconds."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch
from torch import Tensor

from vmmr.data.manifest import Manifest
from vmmr.discriminants import discriminants, moments
from vmmr.errors import DataError
from vmmr.evaluation.calibration import fit_temperature
from vmmr.export.extension import extended, read_extendable
from vmmr.extend.images import OldImages, Seen, fresh_rows, old_images, see
from vmmr.extend.report import (
    Extended,
    Split,
    card_section,
    grown_detector,
    keep_promise,
    require_extendable_detector,
    require_kept,
    told_new,
    told_old,
)
from vmmr.incremental.gallery import CONFIDENCE, Gallery, crossfit, exceeding, fit_offset, fit_scale, fold_of, margins
from vmmr.incremental.network import GalleryNetwork

__all__ = ["extend_gallery"]

_FOLDS = 5


def extend_gallery(
    source: str | os.PathLike[str],
    new: Manifest,
    *,
    old: Manifest | None = None,
    bound: float = 0.02,
    confidence: float = CONFIDENCE,
    least: int = 5,
    max_drop: float = 0.5,
    force: bool = False,
    progress: bool = False,
) -> Extended:
    """The bundle in `source` with the classes of `new` behind its own; nothing is trained.

    new: images of classes that it does not know. old: the data it was trained on, with a split val; without it the
    bound rests on the bank of its detector. bound: share of old images whose answer may change, with this confidence,
    see `exceeding`. least: images that a class needs. max_drop: points of accuracy on the validation images of `old`
    that may be lost; TrainingError beyond, unless `force`.

    Held-out numbers of new classes come from five folds. The temperature is fitted anew where there is old data; the
    scale of the new logits is, so that their confidence is right at that temperature. A detector by neighbours gets
    the new images as well (`grown_knn`), pulled to their means until 90 % of held-out ones are known; where that is not
    enough, and without constants, the gate is opened until they are.

    Raises ConfigError for a detector of another score, DataError where all images of a class are of one group, and as
    `fresh_rows` and `old_images`.
    """
    bundle, files = read_extendable(source)
    require_extendable_detector(bundle)
    fresh = fresh_rows(bundle, new, least=least, progress=progress)
    network = bundle.network()
    before = old_images(bundle, network, old, progress=progress)
    shown = see(network, fresh.pixels, fresh.labels, fresh.rows)
    first = len(bundle.taxonomy)

    fold = fold_of(shown.labels, fresh.groups[fresh.rows], _FOLDS)
    gallery, lead, apart = _fitted(before, shown, fold, first, len(fresh.taxonomy))
    offset, promised = fit_offset(lead, bound, confidence)
    told = [(shown, apart)]
    if before.held is not None:
        told.append((before.held, gallery.margins(before.held.features).double()))
    scale = fit_scale(
        torch.cat([bundle.class_scores(seen.logits) for seen, _ in told]),
        torch.cat([margin for _, margin in told]),
        torch.cat([seen.labels for seen, _ in told]),
        offset,
        bundle.spec.temperature,
    )
    draft = extended(
        bundle,
        files,
        taxonomy=fresh.taxonomy,
        spec=replace(bundle.spec, classes=len(fresh.taxonomy)),
        tensors=gallery.state_dict(),
        added={"mode": "gallery"},
    )
    wide = GalleryNetwork(network, gallery, bundle.levels, draft.levels)

    def scores(seen: Seen, margin: Tensor) -> Tensor:
        return draft.class_scores(wide.widened(seen.logits, margin.float()))

    gallery.scale.fill_(scale)
    gallery.offset.fill_(offset)
    if before.held is not None:
        was = bundle.class_scores(before.held.logits).argmax(dim=1)
        step = 1 / scale
        most, _ = exceeding(len(was), bound, confidence)
        keep_promise(gallery.offset, step, lambda: int((scores(*told[1]).argmax(dim=1) != was).sum()), most)
    fitted = [scores(seen, margin) for seen, margin in told]
    temperature = bundle.spec.temperature
    if before.held is not None:
        temperature = fit_temperature(torch.cat(fitted), torch.cat([seen.labels for seen, _ in told]).numpy())
    outs = [fold == name for name in torch.unique(fold).tolist()]
    splits = [Split(_part(shown, ~out), _part(shown, out), fitted[0][out]) for out in outs]
    detector = grown_detector(bundle.detector, shown, splits)
    added = {
        "mode": "gallery",
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "classes": list(fresh.taxonomy.names[first:]),
        "images": len(fresh.rows),
        "skipped": len(fresh.skipped),
        "bound": {
            "share": promised,
            "confidence": confidence,
            "of": "validation images" if before.held is not None else before.source,
        },
        "new": told_new(shown, fitted[0], first) | {"known": detector.share},
        "old": None if before.held is None else told_old(bundle, before.held, fitted[1]),
    }
    require_kept(added, max_drop, force)
    card = f"{bundle.card.rstrip()}\n\n{card_section(added)}"
    spec = replace(draft.spec, temperature=round(temperature, 4))
    return Extended(replace(draft, spec=spec, detector=detector.detector, card=card, added=added), fresh.skipped)


def _part(seen: Seen, rows: Tensor) -> Seen:
    return Seen(*(part[rows] for part in seen))


def _fitted(before: OldImages, shown: Seen, dealt: Tensor, first: int, last: int) -> tuple[Gallery, Tensor, Tensor]:
    """The gallery of the classes [first, last), without scale and offset; and, held out by folds, the highest margin of
    each old image, [N], and the margins of the new ones, [M, K]. DataError where a class is in one fold alone."""
    # Old classes of which there are images, then the new ones.
    there, place = torch.unique(before.labels, return_inverse=True)
    features = torch.cat([before.features, shown.features])
    labels = torch.cat([place, shown.labels - first + len(there)])
    classes = len(there) + last - first
    fold = torch.cat([torch.arange(len(place)) % _FOLDS, dealt])
    apart = margins(crossfit(features, labels, classes, fold), len(there))
    if not apart.isfinite().all():
        raise DataError("a class has images of one group alone", do="name groups only where pictures must not part")
    weight, bias = discriminants(moments(features, labels, classes))
    gallery = Gallery(len(there), classes - len(there), features.shape[1])
    parts = {"weight": weight[len(there) :], "bias": bias[len(there) :]}
    old = {"reference": weight[: len(there)], "reference_bias": bias[: len(there)]}
    scalars = {"scale": torch.ones(()), "offset": torch.zeros(())}
    gallery.load_state_dict({name: value.float() for name, value in {**parts, **old, **scalars}.items()})
    lead = apart[: len(place)] if before.held is None else gallery.margins(before.held.features).double()
    return gallery, lead.amax(dim=1), apart[len(place) :]
