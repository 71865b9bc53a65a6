"""What an extension did: to old and new classes, to what is unknown, and how the card says it."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmmr.errors import ConfigError, TrainingError
from vmmr.export.bundle import Bundle
from vmmr.extend.images import Seen
from vmmr.unknown import Fitted, accept_threshold
from vmmr.unknown.detector import Detector, strangeness
from vmmr.unknown.knn import KNNFitted, grown_knn
from vmmr.unknown.knn_pca import ReducedKNNFitted, grown_knn_pca

__all__ = [
    "Extended",
    "Known",
    "Split",
    "card_section",
    "domain_section",
    "fingerprint",
    "grown_detector",
    "keep_promise",
    "merge_section",
    "require_extendable_detector",
    "require_kept",
    "said",
    "told_new",
    "told_old",
]

_PULLS = (0.0, 0.25, 0.5, 0.75, 1.0)
_STEPS = 100
_ACCEPT = 0.9  # of held-out images of new classes, as known: more would let strangers in as well


class Extended(NamedTuple):
    """The bundle, ready for `write_bundle`, and the pictures that could not be read: (path, reason)."""

    bundle: Bundle
    skipped: tuple[tuple[str, str], ...]


class Known(NamedTuple):
    """A detector, and the share of held-out images of new classes that it knows."""

    detector: Detector | None
    share: float | None


class Split(NamedTuple):
    """Images of new classes that a detector is given, others that judge it, and the scores [N, C + K] of those."""

    learned: Seen
    out: Seen
    scores: Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def said(stage: str, done: int, epochs: int, loss: float) -> None:
    """Say how far a stage has come, on standard error; see `task_norm.Progress`."""
    print(f"vmmr: {stage} {done}/{epochs}, loss {loss:.4f}", file=sys.stderr)


def grown_detector(detector: Detector | None, shown: Seen, splits: Sequence[Split]) -> Known:
    """The detector that knows images of new classes too, shown: by neighbours the new bank, and a gate further open
    where that is not enough or there is no bank. splits: what says how far, so that 90 % of images that it was not
    given are known."""
    if detector is None:
        return Known(None, None)
    fitted, gate = detector.fitted, detector.gate

    def grown(seen: Seen, pull: float) -> Fitted:
        if isinstance(fitted, ReducedKNNFitted):
            return grown_knn_pca(fitted, seen.features, seen.labels, pull)
        return grown_knn(fitted, seen.features, seen.labels, pull) if isinstance(fitted, KNNFitted) else fitted

    for pull in _PULLS if isinstance(fitted, KNNFitted) else _PULLS[:1]:
        strange = [strangeness(detector.score, s.out.features, s.scores, grown(s.learned, pull)) for s in splits]
        found = torch.cat(strange)
        if float((found <= gate.known).double().mean()) >= _ACCEPT:
            break
    known = max(gate.known, accept_threshold(found, _ACCEPT))
    gate = replace(gate, known=known, vehicle=max(known, gate.vehicle))
    share = float((found <= known).double().mean())
    return Known(replace(detector, gate=gate, fitted=grown(shown, pull)), share)


def require_extendable_detector(bundle: Bundle) -> None:
    """ConfigError where the constants of the bundle's detector cannot be extended."""
    detector = bundle.detector
    if detector is not None and not (type(detector.fitted) is Fitted or isinstance(detector.fitted, KNNFitted)):
        raise ConfigError(
            f"the constants of {detector.score} cannot be extended",
            do="calibrate the bundle with another score first: vmmr calibrate --unknown knn_pca",
        )


def keep_promise(value: Tensor, step: float, changed: Callable[[], int], most: int) -> None:
    """Raise a value in place, by growing steps, until at most so many old answers change. TrainingError where no step
    is enough."""
    for _ in range(_STEPS):
        if changed() <= most:
            return
        value.add_(step)
        step *= 1.2
    raise TrainingError(
        "old answers change whatever the offset", got=f"{changed()}, {most} may", do="pass a higher bound"
    )


def told_new(shown: Seen, scores: Tensor, first: int) -> dict[str, Any]:
    """Top-1 of held-out images of new classes, among all classes and among the new ones."""
    among = scores[:, first:].argmax(dim=1) + first
    return {
        "images": len(shown.labels),
        "top1": float((scores.argmax(dim=1) == shown.labels).double().mean()),
        "top1_among_new": float((among == shown.labels).double().mean()),
    }


def told_old(bundle: Bundle, held: Seen, scores: Tensor) -> dict[str, Any]:
    """Validation images of old classes: top-1 before and after, and how many answers changed."""
    was, now = bundle.class_scores(held.logits).argmax(dim=1), scores.argmax(dim=1)
    return {
        "images": len(now),
        "before": float((was == held.labels).double().mean()),
        "after": float((now == held.labels).double().mean()),
        "changed": int((was != now).sum()),
    }


def require_kept(added: Mapping[str, Any], max_drop: float, force: bool) -> None:
    """TrainingError where old accuracy fell by more than so many points, unless forced."""
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
        f"On {added['when']}, from {added['images']} images ({added['skipped']} more could not be read"
        f"{_beside(added)}): {names}.",
        "",
        f"- new classes, {new['images']} held-out images: top-1 {_percent(new['top1'])} among all, "
        f"{_percent(new['top1_among_new'])} among the new ones"
        + ("" if new["known"] is None else f"; {_percent(new['known'])} of them are known vehicles"),
        f"- bound: with {100 * bound['confidence']:g}% confidence at most {_percent(bound['share'])} of old images, if "
        f"they are like the {bound['of']}, "
        + ("change their answer" if added["mode"] == "gallery" else "are answered as a new class")
        + ("" if old is not None else "; of images that were not trained on, several times as many may"),
    ]
    if added["mode"] == "task":
        lines.append("- routing, temperature and gate were fitted on the same held-out and validation images")
        if added["discriminants"]:
            lines.append("- answers are those of heads and of linear discriminants together")
    if old is None:
        lines.append("- old classes: not measured again, there were no validation images")
    else:
        lines.append(
            f"- old classes, {old['images']} validation images: top-1 {_percent(old['before'])} before, "
            f"{_percent(old['after'])} after; {old['changed']} answers changed"
        )
    return "\n".join(lines) + "\n"


def domain_section(added: Mapping[str, Any]) -> str:
    """The same of a domain: how many images, who goes to its bank, and what it did to them and to the old ones."""
    new, old = added["new"], added["old"]
    taught = "statistics, gamma and beta" if added["labels"] else "statistics alone, no labels"
    lines = [
        f"## Extended: domain {added['domain']}",
        "",
        f"On {added['when']}, from {added['images']} images ({added['skipped']} more could not be read): {taught}.",
        "",
        f"- its own, {new['images']} held-out images: {_percent(new['taken'])} go to its bank"
        + "".join(
            f"; {name} {_percent(new['before'][key])} before, {_percent(new['after'][key])} after"
            for key, name in (("top1", "top-1"), ("known", "known vehicles"))
            if new["before"][key] is not None
        ),
        f"- bound: on average at most {_percent(added['bound']['share'])} of old images, if they are like the "
        f"{added['bound']['of']}, go to its bank",
        f"- old domains, {old['images']} validation images: {_percent(old['taken'])} go to its bank; top-1 "
        f"{_percent(old['before'])} before, {_percent(old['after'])} after; {old['changed']} answers changed",
    ]
    return "\n".join(lines) + "\n"


def merge_section(added: Mapping[str, Any]) -> str:
    """The same of merged tasks."""
    old, tasks = added["old"], added["tasks"]
    return (
        f"## Extended: the last two tasks are one\n\n"
        f"On {added['when']}, with {added['exemplars']} images of all classes: {len(tasks)} tasks are left, of "
        f"{', '.join(map(str, tasks))} classes.\n\n"
        f"- {old['images']} validation images, on which routing and temperature were fitted: top-1 "
        f"{_percent(old['before'])} before, {_percent(old['after'])} after; {old['changed']} answers changed\n"
    )


def _beside(added: Mapping[str, Any]) -> str:
    return f"; beside {added['exemplars']} old ones" if "exemplars" in added else ""


def _plain(name: str) -> str:
    return re.sub(r"([\\`*_|<>&\[\]])", r"\\\1", name)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
