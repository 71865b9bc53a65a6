"""Next year's cars: a bundle learns new classes, answers the old ones as before, and can be rolled back.

`vmmr extend BUNDLE NEW_DATA --out DIR` in Python; see docs/extend.md.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmmr.data.manifest import Manifest
from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.data.splits import groups_of, require_no_leakage, training_view
from vmmr.errors import ConfigError, DataError, ManifestError, TrainingError
from vmmr.evaluation.calibration import fit_temperature
from vmmr.evaluation.classify import views
from vmmr.export.bundle import Bundle, Network
from vmmr.export.extension import extended, read_extendable
from vmmr.incremental.gallery import (
    Gallery,
    crossfit,
    discriminants,
    fit_offset,
    fit_scale,
    fold_of,
    margins,
    moments,
)
from vmmr.incremental.network import GalleryNetwork
from vmmr.taxonomy import Taxonomy
from vmmr.unknown import BANK, SCORES, Fitted, accept_threshold
from vmmr.unknown.detector import Detector, strangeness
from vmmr.unknown.knn import KNNFitted, grown_knn

__all__ = [
    "Extended",
    "Fresh",
    "OldImages",
    "Seen",
    "card_section",
    "extend_gallery",
    "fresh_rows",
    "old_images",
    "see",
]

_FOLDS = 5
_PULLS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LEAST_MARGIN = -1e4  # finite, so that sums over classes are
_ACCEPT = 0.95  # of held-out images of new classes, as known


class Seen(NamedTuple):
    """What a network makes of images: features [N, D], its answer [N, outputs], and their labels int64 [N]."""

    features: Tensor
    logits: Tensor
    labels: Tensor


@torch.no_grad()
def see(network: Network, pixels: Pixels, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Seen:
    """These rows of pixels, in one pass."""
    preprocess = replace(pixels.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = []
    for _, image in views(pixels, preprocess, rows=rows):
        outputs = network(image, pooled=True)
        found.append((outputs["pooled"].float(), network.answer_of(outputs).float()))
    features, logits = (torch.cat(part) for part in zip(*found, strict=True))
    return Seen(features, logits, torch.from_numpy(labels[rows]))


@dataclass(frozen=True)
class Fresh:
    """Images of new classes. taxonomy: old and new classes; labels int64 [N] in it, groups int64 [N]. rows: those that
    could be read; skipped: (path, reason) of the others."""

    taxonomy: Taxonomy
    pixels: Pixels
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    rows: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...]


def fresh_rows(bundle: Bundle, new: Manifest, *, least: int = 5, progress: bool = False) -> Fresh:
    """The images of classes that the bundle does not know, decoded; those of the split test are left alone.

    Raises ManifestError for classes that it does know and where no row is left, DataError where a class has fewer than
    `least` readable images.
    """
    if least < 2:
        raise ConfigError("a class is learned from two images or more", got=least)
    learned = new.select(new.splits != "test")
    finest = "class" if bundle.levels is None else bundle.levels.finest
    told = learned if bundle.levels is None else learned.upto(finest)
    if bundle.levels is not None:
        told = told.with_taxonomy(told.taxonomy.upto(finest), strict=False)
    used = np.unique(told.labels[told.labels >= 0])
    if not len(used):
        raise ManifestError(
            "no row to learn from", got=repr(new), do=f"rows, not of the split test, that tell {finest}"
        )
    classes = Taxonomy(tuple(told.taxonomy.classes[label] for label in used.tolist()))
    known = [item.name for item in classes.classes if item.key in bundle.taxonomy]
    if known:
        raise ManifestError(
            f"{len(known)} of the classes are known already",
            got=known[:10],
            do="drop their rows: the old stay as they are",
        )
    if (new.splits == "test").any():
        require_no_leakage(learned, new.split("test"))
    merged = bundle.taxonomy.merge(classes)
    told = told.with_taxonomy(merged, strict=False)
    told = told.select(told.labels >= 0)
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    paths = told.path_list()
    pixels = Pixels(paths, preprocess, boxes=told.boxes, progress=progress, on_bad="skip")
    bad = {row for row, _ in pixels.bad}
    rows = np.array([row for row in range(len(paths)) if row not in bad], dtype=np.int64)
    count = np.bincount(told.labels[rows], minlength=len(merged))
    added = range(len(bundle.taxonomy), len(merged))
    few = [f"{merged.names[label]}: {count[label]}" for label in added if count[label] < least]
    if few:
        also = f" ({len(bad)} images could not be read)" if bad else ""
        raise DataError(f"{len(few)} classes have too few images{also}", got=few[:10], do=f"{least} or more of each")
    skipped = tuple((paths[row], reason) for row, reason in pixels.bad)
    return Fresh(merged, pixels, told.labels, groups_of(told), rows, skipped)


@dataclass(frozen=True)
class OldImages:
    """What is left of the old classes. features [M, D], labels int64 [M]: of training images, source says where from.
    held: validation images, as the network before answers them, where there is old data."""

    features: Tensor
    labels: Tensor
    source: str
    held: Seen | None


def old_images(bundle: Bundle, network: Network, old: Manifest | None, *, progress: bool = False) -> OldImages:
    """Features of old training images, from the bank of the bundle's detector or, where it has none, of the split train
    of `old`; and validation images of `old`, where it is given. Test images are not touched.

    Raises ConfigError where there is neither bank nor old data, ManifestError where the old data has no split val.
    """
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    held = bank = None
    detector = bundle.detector
    if detector is not None and isinstance(detector.fitted, KNNFitted) and detector.score == "knn":
        bank = detector.fitted.bank, detector.fitted.label, "training images in the bundle's bank"
    if old is not None:
        if not (old.splits == "val").any():
            raise ManifestError("the old data has no validation images", do="mark some rows with the split val")
        train, validation = training_view(old), old.split("val")
        require_no_leakage(train, validation)
        if (old.splits == "test").any():
            require_no_leakage(validation, old.split("test"))
        held = _seen_of(bundle, network, validation, preprocess, progress)
        if bank is None:
            some = np.random.default_rng(0).permutation(len(train))[:BANK]
            seen = _seen_of(bundle, network, train.select(np.sort(some)), preprocess, progress)
            bank = seen.features, seen.labels, "training images"
    if bank is None:
        raise ConfigError(
            "new classes are told from old ones by features of old images, and there are none",
            got="no bank of neighbours in the bundle, and no old data",
            do="pass --data, the manifest it was trained on, or first `vmmr calibrate` the bundle with --unknown knn",
        )
    return OldImages(*bank, held)


def _seen_of(bundle: Bundle, network: Network, rows: Manifest, preprocess: Preprocess, progress: bool) -> Seen:
    known, by_level = bundle.labelled(rows)
    labels = known.labels if bundle.levels is None else by_level[bundle.levels.finest]
    pixels = Pixels(known.path_list(), preprocess, boxes=known.boxes, progress=progress)
    return see(network, pixels, labels, np.arange(len(pixels)))


class Extended(NamedTuple):
    """The bundle, ready for `write_bundle`, and the pictures that could not be read: (path, reason)."""

    bundle: Bundle
    skipped: tuple[tuple[str, str], ...]


def extend_gallery(
    source: str | os.PathLike[str],
    new: Manifest,
    *,
    old: Manifest | None = None,
    bound: float = 0.01,
    least: int = 5,
    max_drop: float = 0.5,
    force: bool = False,
    progress: bool = False,
) -> Extended:
    """The bundle in `source` with the classes of `new` behind its own; nothing is trained.

    new: images of classes that it does not know. old: the data it was trained on, with a split val; without it the
    bound rests on the bank of its detector. bound: share of old images whose answer may change, see `fit_offset`.
    least: images that a class needs. max_drop: points of accuracy on the validation images of `old` that may be lost;
    TrainingError beyond, unless `force`.

    Held-out numbers of new classes come from five folds. The temperature is fitted anew where there is old data; the
    scale of the new logits is, so that their confidence is right at that temperature. A detector by neighbours gets
    the new images as well (`grown_knn`), pulled to their means until 95 % of held-out ones are known; its gate stays.
    Of one without constants the gate is opened until 95 % are.

    Raises ConfigError for a detector of another score, and as `fresh_rows` and `old_images`.
    """
    bundle, files = read_extendable(source)
    if (
        bundle.detector is not None
        and bundle.detector.score != "knn"
        and SCORES[bundle.detector.score].kind is not Fitted
    ):
        raise ConfigError(
            f"the constants of {bundle.detector.score} cannot be extended",
            do="calibrate the bundle with another score first: vmmr calibrate --unknown knn",
        )
    fresh = fresh_rows(bundle, new, least=least, progress=progress)
    network = bundle.network()
    before = old_images(bundle, network, old, progress=progress)
    shown = see(network, fresh.pixels, fresh.labels, fresh.rows)
    first = len(bundle.taxonomy)

    gallery, lead, apart = _fitted(before, shown, fresh, first)
    offset, promised = fit_offset(lead, bound)
    sure = apart.gather(1, (shown.labels - first)[:, None])[:, 0].isfinite()  # in its fold the class has other images
    shown, apart = Seen(*(part[sure] for part in shown)), apart[sure].clamp(min=_LEAST_MARGIN)
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
        _keep_promise(
            gallery, lambda: int((scores(*told[1]).argmax(dim=1) != was).sum()), promised * (len(was) + 1) - 1
        )
    fitted = [scores(seen, margin) for seen, margin in told]
    temperature = bundle.spec.temperature
    if before.held is not None:
        temperature = fit_temperature(torch.cat(fitted), torch.cat([seen.labels for seen, _ in told]).numpy())
    detector = _detector(
        bundle.detector, shown, fitted[0], fold_of(shown.labels, fresh.groups[fresh.rows][sure.numpy()], _FOLDS)
    )
    added = {
        "mode": "gallery",
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "classes": list(fresh.taxonomy.names[first:]),
        "images": len(fresh.rows),
        "skipped": len(fresh.skipped),
        "bound": {"share": promised, "of": "validation images" if before.held is not None else before.source},
        "new": _told_new(shown, fitted[0], first) | {"known": detector.share},
        "old": None if before.held is None else _told_old(bundle, before.held, fitted[1]),
    }
    _require_kept(added, max_drop, force)
    card = f"{bundle.card.rstrip()}\n\n{card_section(added)}"
    spec = replace(draft.spec, temperature=round(temperature, 4))
    return Extended(replace(draft, spec=spec, detector=detector.detector, card=card, added=added), fresh.skipped)


def _fitted(before: OldImages, shown: Seen, fresh: Fresh, first: int) -> tuple[Gallery, Tensor, Tensor]:
    """The gallery, without scale and offset; and, held out, the highest margin of each old image, [N], and the margins
    of the new ones, [M, K]."""
    # Old classes of which there are images, then the new ones.
    there, place = torch.unique(before.labels, return_inverse=True)
    features = torch.cat([before.features, shown.features])
    labels = torch.cat([place, shown.labels - first + len(there)])
    classes = len(there) + len(fresh.taxonomy) - first
    dealt = fold_of(shown.labels, fresh.groups[fresh.rows], _FOLDS)
    fold = torch.cat([torch.arange(len(place)) % _FOLDS, dealt])
    apart = margins(crossfit(features, labels, classes, fold), len(there))
    weight, bias = discriminants(moments(features, labels, classes))
    gallery = Gallery(len(there), classes - len(there), features.shape[1])
    parts = {"weight": weight[len(there) :], "bias": bias[len(there) :]}
    old = {"reference": weight[: len(there)], "reference_bias": bias[: len(there)]}
    scalars = {"scale": torch.ones(()), "offset": torch.zeros(())}
    gallery.load_state_dict({name: value.float() for name, value in {**parts, **old, **scalars}.items()})
    lead = apart[: len(place)] if before.held is None else gallery.margins(before.held.features).double()
    return gallery, lead.amax(dim=1), apart[len(place) :]


def _keep_promise(gallery: Gallery, changed: Callable[[], int], most: float) -> None:
    """Raise the offset until at most so many old answers change: coarser levels, where there are some, have a say."""
    step = 1 / gallery.scale.item()
    while changed() > most + 1e-6:
        gallery.offset.add_(step)
        step *= 1.2


class _Known(NamedTuple):
    """A detector, and the share of held-out images of new classes that it knows."""

    detector: Detector | None
    share: float | None


def _detector(detector: Detector | None, shown: Seen, scores: Tensor, fold: Tensor) -> _Known:
    """The detector that knows images of new classes too; scores [N, C + K]: what is answered to held-out ones."""
    if detector is None:
        return _Known(None, None)
    gate = detector.gate
    if not isinstance(detector.fitted, KNNFitted):
        found = strangeness(detector.score, shown.features, scores, detector.fitted)
        known = max(gate.known, accept_threshold(found, _ACCEPT))
        gate = replace(gate, known=known, vehicle=max(known, gate.vehicle))
        return _Known(replace(detector, gate=gate), float((found <= known).double().mean()))
    for pull in _PULLS:
        found = torch.empty(len(fold))
        for name in torch.unique(fold).tolist():
            out = fold == name
            bank = grown_knn(detector.fitted, shown.features[~out], shown.labels[~out], pull)
            found[out] = strangeness(detector.score, shown.features[out], scores[out], bank)
        share = float((found <= gate.known).double().mean())
        if share >= _ACCEPT:
            break
    grown = grown_knn(detector.fitted, shown.features, shown.labels, pull)
    return _Known(replace(detector, fitted=grown), share)


def _told_new(shown: Seen, scores: Tensor, first: int) -> dict[str, Any]:
    """Top-1 of held-out images of new classes, among all classes and among the new ones."""
    among = scores[:, first:].argmax(dim=1) + first
    return {
        "images": len(shown.labels),
        "top1": float((scores.argmax(dim=1) == shown.labels).double().mean()),
        "top1_among_new": float((among == shown.labels).double().mean()),
    }


def _told_old(bundle: Bundle, held: Seen, scores: Tensor) -> dict[str, Any]:
    """Validation images of old classes: top-1 before and after, and how many answers changed."""
    was, now = bundle.class_scores(held.logits).argmax(dim=1), scores.argmax(dim=1)
    return {
        "images": len(now),
        "before": float((was == held.labels).double().mean()),
        "after": float((now == held.labels).double().mean()),
        "changed": int((was != now).sum()),
    }


def _require_kept(added: Mapping[str, Any], max_drop: float, force: bool) -> None:
    old = added["old"]
    if old is None or force:
        return
    drop = 100 * (old["before"] - old["after"])
    if drop > max_drop + 1e-9:
        raise TrainingError(
            "the old classes lose too much",
            got=f"{drop:.2f} points of accuracy on {old['images']} validation images",
            do=f"lower the bound, look at the new images, or allow it: at most {max_drop:g}, or force",
        )


def card_section(added: Mapping[str, Any]) -> str:
    """What the card says about an extension: what, when, of how many images, old and new accuracy, the bound."""
    new, old, bound = added["new"], added["old"], added["bound"]
    names = ", ".join(_plain(name) for name in added["classes"])
    lines = [
        f"## Extended: {added['mode']}, {len(added['classes'])} classes",
        "",
        f"On {added['when']}, from {added['images']} images ({added['skipped']} more could not be read): {names}.",
        "",
        f"- new classes, {new['images']} held-out images (five folds): top-1 {_percent(new['top1'])} among all, "
        f"{_percent(new['top1_among_new'])} among the new ones"
        + ("" if new["known"] is None else f"; {_percent(new['known'])} of them are known vehicles"),
        f"- bound: at most {_percent(bound['share'])} of old images, if they are like the {bound['of']}, change their "
        "answer",
    ]
    if old is None:
        lines.append("- old classes: not measured again, there were no validation images")
    else:
        lines.append(
            f"- old classes, {old['images']} validation images: top-1 {_percent(old['before'])} before, "
            f"{_percent(old['after'])} after; {old['changed']} answers changed"
        )
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    return re.sub(r"([\\`*_|<>&\[\]])", r"\\\1", name)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
