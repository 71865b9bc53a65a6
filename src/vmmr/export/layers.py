"""What a layer of an extended bundle may say, and the network that it makes of the one below."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vmmr.errors import BundleError
from vmmr.incremental.banks import BankedNetwork, require_bank
from vmmr.incremental.domains import PLACE, domain_banks
from vmmr.incremental.gallery import Gallery
from vmmr.incremental.network import Discriminants, GalleryNetwork, TaskNetwork
from vmmr.models.backbone import Backbone

if TYPE_CHECKING:
    from vmmr.export.bundle import Bundle, Network

__all__ = ["MODES", "TASKS", "layered_network", "require_on_top", "taken_out"]

MODES = ("domain", "gallery", "merge", "task")
"""How a bundle can be extended."""

TASKS = ("merge", "task")
"""Those that leave banks and heads of tasks."""


def taken_out(config: dict[str, Any], parent: Bundle, name: str) -> dict[str, Any]:
    """What the settings of an extended bundle say of the extension, taken out of them. BundleError, which calls the
    folder `name`, where they speak of another parent or an unknown mode."""
    before, added = config.pop("parent", None), config.pop("added", None)
    if before != parent.digest:
        raise BundleError(f"{name} extends another bundle than the one it holds", got=str(before)[:80])
    if not isinstance(added, dict) or added.get("mode") not in MODES:
        raise BundleError(f"{name} is extended in a way that is not known", got=str(added)[:80])
    return added


def require_on_top(bundle: Bundle, parent: Bundle) -> None:
    """BundleError unless the bundle answers what its parent does and, where classes are added, those behind."""
    old, spec = len(parent.taxonomy), bundle.spec
    if (mode := bundle.added["mode"]) in ("domain", "merge"):
        same = replace(spec, temperature=parent.spec.temperature) if mode == "merge" else spec
        if bundle.taxonomy != parent.taxonomy or same != parent.spec:
            raise BundleError(f"{bundle.name} has a {mode} of another network or of other classes than its parent")
        if mode == "merge" and parent.added.get("mode") not in TASKS:
            raise BundleError(f"{bundle.name} merges tasks of a bundle that has none", got=parent.added.get("mode"))
        return
    if bundle.taxonomy.classes[:old] != parent.taxonomy.classes or len(bundle.taxonomy) == old:
        raise BundleError(f"{bundle.name} does not add classes behind those it had", got=f"{old} of its parent")
    told, hierarchy = parent.spec.hierarchy, spec.hierarchy
    if told is not None and hierarchy is not None:
        hierarchy = replace(hierarchy, beta=told.beta, thresholds=told.thresholds)
    same = replace(spec, classes=old, temperature=parent.spec.temperature, hierarchy=hierarchy)
    if same != parent.spec:
        raise BundleError(f"{bundle.name} describes another network than the one it extends")
    if mode == "task" and (spec.kind != "plain" or told is not None or parent.added.get("mode", "task") not in TASKS):
        raise BundleError(f"{bundle.name} has a task on a network that takes none", got=parent.added.get("mode"))


def layered_network(bundle: Bundle) -> Network:
    """The network of a bundle that extends another. BundleError where what was added does not fit."""
    parent = bundle.parent
    assert parent is not None
    network = parent.network()
    if bundle.added["mode"] == "domain":
        return _domain_network(bundle, network)
    new = len(bundle.taxonomy) - len(parent.taxonomy)
    if bundle.added["mode"] in TASKS:
        return _task_network(bundle, network, new)
    width = (network if isinstance(network, Backbone) else network.backbone).width
    rows = bundle.tensors.get("reference_bias", torch.zeros(0)).numel()
    if not rows or not all(torch.isfinite(value).all() for value in bundle.tensors.values()):
        raise BundleError(f"{bundle.name} has a gallery without old classes, or with numbers that are not finite")
    gallery = Gallery(rows, new, width)
    gallery.load_state_dict(bundle.tensors)
    return GalleryNetwork(network, gallery, parent.levels, bundle.levels)


def _domain_network(bundle: Bundle, network: Network) -> Network:
    """The network below with one bank more in its BatchNorms."""
    banks = domain_banks(network if isinstance(network, Backbone) else network.backbone)
    own = dict(bundle.tensors)
    told = {name: own.pop(f"place.{name}", torch.zeros(0)) for name in PLACE}
    domain = banks.add()
    wanted = banks.tensors(domain)
    if own.keys() != wanted.keys():
        raise BundleError(f"{bundle.name} has a bank of another network", got=sorted(own.keys() ^ wanted.keys())[:3])
    for name, value in wanted.items():
        require_bank(name, own[name], value)
    banks.load(domain, own)
    banks.place(told)
    return network


def _task_network(bundle: Bundle, network: object, new: int) -> TaskNetwork:
    """Banks of earlier tasks are those of the bundles below: the layer holds that of its last one alone. new: classes
    behind those below, or none, where the last two tasks below are one here."""
    base = bundle
    while base.parent is not None:
        base = base.parent
    trunk = base.network()
    assert isinstance(trunk, Backbone)
    own = dict(bundle.tensors)
    routing = [own.pop(f"routing.{name}", torch.zeros(0)) for name in ("scale", "offset")]
    told = {name: own.pop(f"discriminants.{name}") for name in Discriminants._fields if f"discriminants.{name}" in own}
    head = own.get("heads.0.bias", torch.zeros(0))
    unknown = head.numel() == len(base.taxonomy) + 1
    below = network.banked if isinstance(network, TaskNetwork) else BankedNetwork(trunk, base_unknown=unknown)
    if not new and len(below) < 3 - unknown:
        raise BundleError(f"{bundle.name} merges tasks of a bundle that has too few", got=len(below))
    classes = (*below.classes, new) if new else (*below.classes[:-2], sum(below.classes[-2:]))
    kept = tuple(f"banks.{task}." for task in range(len(classes) - 1))
    banks = {name: value for name, value in below.tensors().items() if name.startswith(kept)}
    if set(banks) & set(own):
        raise BundleError(f"{bundle.name} holds banks of earlier tasks", got=sorted(set(banks) & set(own))[:3])
    banked = BankedNetwork.from_tensors(trunk, {**banks, **own}, classes, base_unknown=unknown)
    if any(part.shape != (len(classes),) or not part.isfinite().all() for part in routing):
        raise BundleError(f"{bundle.name} routes other tasks than it has", got=[list(part.shape) for part in routing])
    scale, offset = routing
    if not told:
        return TaskNetwork(banked, scale, offset)
    shapes = {"weight": (sum(classes), banked.width), "bias": (sum(classes),)}
    if {k: v.shape for k, v in told.items()} != shapes or not all(v.isfinite().all() for v in told.values()):
        raise BundleError(f"{bundle.name} has discriminants of other classes", got=[[*v.shape] for v in told.values()])
    return TaskNetwork(banked, scale, offset, Discriminants(**told))
