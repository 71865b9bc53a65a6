"""A model on disk: a flat folder of safetensors and JSON, with names, sizes and SHA-256 of everything in it.

    bundle/
      weights.safetensors   the network's tensors; a plain bundle holds exactly the timm model's
      config.json           kind, backbone, options, classes
      taxonomy.json         class -> make, model, year
      preprocess.json       bytes -> input
      card.md               where it comes from
      unknown.safetensors   constants of the unknown score, where config.json names one
      manifest.json         {"files": {name: {"size", "sha256"}}}

An extended bundle holds the files of the one before, bit for bit, and a numbered layer on top: weights-1.safetensors
with what was added, and config-1.json, taxonomy-1.json, card-1.md, unknown-1.safetensors, which speak of the whole.

`vmmr.export.folder` writes it whole and reads it without trust.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vmmr.data.labels import level_labels
from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.errors import BundleError, ConfigError, DataError, ManifestError
from vmmr.export.folder import (
    Format,
    digest_of,
    layer_of,
    numbered,
    parse_json,
    read_config,
    read_folder,
    to_json,
    write_folder,
)
from vmmr.export.layers import layered_network, require_on_top, taken_out
from vmmr.incremental.network import GalleryNetwork, TaskNetwork
from vmmr.levels import HierarchySpec, Levels
from vmmr.models import Backbone, HierarchicNetwork, HierarchicProgressiveNetwork, ProgressiveNetwork
from vmmr.models.decoding import joint_scores
from vmmr.models.heads import HeadForm
from vmmr.models.heads.hierarchy import split_levels
from vmmr.taxonomy import MAX_NODES, Taxonomy
from vmmr.unknown.detector import Detector

import timm  # isort: skip

__all__ = [
    "BUNDLE",
    "OPTIONS",
    "UNKNOWN",
    "Bundle",
    "Facts",
    "ModelSpec",
    "Network",
    "build_network",
    "described",
    "parsed_bundle",
    "read_bundle",
    "read_facts",
    "write_bundle",
]

_Built = Backbone | HierarchicNetwork | ProgressiveNetwork
Network = _Built | GalleryNetwork | TaskNetwork

OPTIONS: dict[str, type | tuple[type, ...]] = {
    "act_layer": str,
    "drop_path_rate": (int, float),
    "drop_rate": (int, float),
    "img_size": int,
    "output_stride": int,
    "pad_type": str,
    "window_size": int,
}
"""The arguments of timm.create_model that a model on disk may carry, and their types."""

_NAMES = ("weights.safetensors", "config.json", "taxonomy.json", "preprocess.json", "card.md")
UNKNOWN = "unknown.safetensors"
"""The file that is there only where config.json names an unknown score."""

_LAYER = ("weights.safetensors", "config.json", "taxonomy.json", "card.md")
BUNDLE = Format("vmmr-bundle", "bundle", 1, (_NAMES, (*_NAMES, UNKNOWN)), (_LAYER, (*_LAYER, UNKNOWN)))
"""The folder's format."""

_LEAST_SIDE = 3  # of an input whose detail is measured


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to build the network that the weights fit: config.json.

    kind: plain (a timm classifier and nothing else) or progressive (with denoising-recognition heads).
    mean, std: the backbone's input statistics on [0, 1]. standardise: instead, every image is brought to mean 0 and
    standard deviation 1. temperature: what logits are divided by before the softmax that confidence is read from,
    fitted on validation images; 1 where none was. hierarchy: the levels of a network that answers more than classes.
    """

    kind: Literal["plain", "progressive"]
    backbone: str
    classes: int
    backbone_options: dict[str, Any] = field(default_factory=dict)
    heads: HeadForm = "lean"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    standardise: bool = False
    temperature: float = 1.0
    hierarchy: HierarchySpec | None = None

    def __post_init__(self) -> None:
        # A spec may come from a stranger's bundle: no name that timm would fetch, no option that names a file.
        if self.kind not in ("plain", "progressive") or self.heads not in get_args(HeadForm):
            raise ConfigError("no such kind of network", got=f"kind={self.kind!r}, heads={self.heads!r}")
        if not isinstance(self.backbone, str) or ":" in self.backbone or not timm.is_model(self.backbone):
            raise ConfigError(
                "timm has no such backbone", got=repr(self.backbone), do="pick a name from timm.list_models()"
            )
        if type(self.classes) is not int or not 1 <= self.classes <= MAX_NODES:
            raise ConfigError("the number of classes is out of range", got=repr(self.classes))
        if not isinstance(self.backbone_options, dict):
            raise ConfigError("backbone_options is a mapping", got=repr(self.backbone_options))
        for name, value in self.backbone_options.items():
            if name not in OPTIONS or not isinstance(value, OPTIONS[name]) or isinstance(value, bool):
                raise ConfigError(
                    "a bundle cannot carry this backbone option",
                    got=f"{name}={value!r}",
                    do=f"use {', '.join(OPTIONS)}",
                )
        if self.hierarchy is not None and not isinstance(self.hierarchy, HierarchySpec):
            raise ConfigError("hierarchy describes levels", got=type(self.hierarchy).__name__)
        if not isinstance(self.standardise, bool):
            raise ConfigError("standardise is true or false", got=repr(self.standardise))
        warmth = self.temperature
        if not isinstance(warmth, int | float) or isinstance(warmth, bool) or not 0 < warmth < math.inf:
            raise ConfigError("a temperature is a finite number above 0", got=repr(warmth))
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = len(values) == 3 and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
            if not numbers or (name == "std" and min(values) <= 0):
                raise ConfigError(f"{name} needs three finite numbers, std above 0", got=repr(values))


class Facts:
    """What a network's logits mean, for whoever holds its spec and its taxonomy: a bundle or an exported artifact.

    detector: says what it does not know; None where it cannot.
    """

    spec: ModelSpec
    taxonomy: Taxonomy
    preprocess: Preprocess
    card: str
    detector: Detector | None

    @property
    def levels(self) -> Levels | None:
        """What the network answers, where it is more than classes."""
        return None if self.spec.hierarchy is None else self.spec.hierarchy.levels(self.taxonomy)

    def labelled(self, manifest: Manifest) -> tuple[Manifest, dict[str, NDArray[np.int64]]]:
        """The rows under this taxonomy and, where it has levels, their labels at each, int64 [N].

        Rows that do not tell the finest level are left out. Raises ManifestError for vehicles that it does not know,
        and where no row is left.
        """
        levels = self.levels
        if levels is None:
            return manifest.with_taxonomy(self.taxonomy), {}
        told = level_labels(manifest, levels)
        kept = told[levels.finest] >= 0
        if not kept.any():
            raise ManifestError(f"no image tells its {levels.finest}", got=f"{len(manifest)} rows")
        known = manifest.upto(levels.finest).with_taxonomy(self.taxonomy, strict=False)
        return known.select(kept), {level: labels[kept] for level, labels in told.items()}

    def class_scores(self, logits: Tensor) -> Tensor:
        """What a network answers, [B, outputs] -> scores [B, classes] whose softmax is the answer's distribution: the
        logits themselves, or, where there are levels, those of all of them decoded together."""
        levels = self.levels
        if self.spec.hierarchy is None or levels is None:
            return logits
        return joint_scores(split_levels(logits, levels.widths), levels, self.spec.hierarchy.beta)


@dataclass(frozen=True)
class Bundle(Facts):
    """A bundle in memory: verified, not yet a network. `name` is its folder's name; `digest` that of its manifest.

    parent: the bundle that this one extends, and files: its files as they were read. added: facts about the extension,
    see `vmmr.extend`; tensors are then what was added, and all else speaks of the whole.
    """

    spec: ModelSpec
    taxonomy: Taxonomy
    preprocess: Preprocess
    tensors: dict[str, Tensor]
    card: str
    name: str = ""
    digest: str = ""
    detector: Detector | None = None
    parent: Bundle | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    added: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> Network:
        """The network with these weights, in evaluation mode, for images in [-1, 1]."""
        try:
            network: Network
            if self.parent is None:
                network = build_network(self.spec, self.taxonomy)
                (network.model if isinstance(network, Backbone) else network).load_state_dict(self.tensors)
            else:
                network = layered_network(self)
        except ConfigError as error:
            raise BundleError(f"the config.json of {self.name} describes no network", got=error) from error
        except RuntimeError as error:
            raise BundleError(
                f"the weights of {self.name} do not fit its config.json", got=str(error).split("\n")[1:2]
            ) from error
        backbone = network if isinstance(network, Backbone) else network.backbone
        if self.detector is not None and self.detector.fitted.width not in (None, backbone.width):
            raise BundleError(
                f"the unknown score of {self.name} is of another network",
                got=f"{self.detector.fitted.width} features",
                do=f"need {backbone.width}; fit it anew: vmmr calibrate",
            )
        return network.eval()


def build_network(spec: ModelSpec, taxonomy: Taxonomy | None = None, **options: Any) -> _Built:
    """A fresh network as the spec says. taxonomy: needed where the spec has levels; options: what only training reads
    of hierarchy heads, see `HierarchyHead`. Raises ConfigError where they do not fit."""
    if spec.hierarchy is not None and taxonomy is None:
        raise ConfigError("levels need their taxonomy", got=list(spec.hierarchy.names), do="pass it")
    levels = spec.hierarchy.levels(taxonomy) if spec.hierarchy is not None and taxonomy is not None else None
    backbone = Backbone(
        spec.backbone,
        spec.classes if levels is None else 0,
        mean=spec.mean,
        std=spec.std,
        standardise=spec.standardise,
        options=spec.backbone_options,
    )
    if levels is None or spec.hierarchy is None:
        return backbone if spec.kind == "plain" else ProgressiveNetwork(backbone, spec.classes, spec.heads)
    if spec.kind == "plain":
        return HierarchicNetwork(backbone, levels, spec.hierarchy, **options)
    return HierarchicProgressiveNetwork(backbone, levels, spec.hierarchy, spec.heads, **options)


def write_bundle(folder: Path, bundle: Bundle) -> Path:
    """Write all files beside the target and rename the folder into place; an earlier bundle there is replaced.

    A run that dies leaves the earlier bundle or none, never half of one.
    """
    files = {
        "weights.safetensors": save({k: v.contiguous() for k, v in bundle.tensors.items()}),
        "config.json": to_json({**BUNDLE.stamp, **described(bundle)}),
        **fact_files(bundle),
    }
    if bundle.parent is not None:
        told = {"parent": bundle.parent.digest, "added": dict(bundle.added)}
        files["config.json"] = to_json({**BUNDLE.stamp, **described(bundle), **told})
        del files["preprocess.json"]  # that of the parent
        layer = 1 + max(map(layer_of, bundle.files))
        files = {**bundle.files, **{numbered(name, layer): data for name, data in files.items()}}
    return write_folder(folder, BUNDLE, files)


def fact_files(facts: Facts) -> dict[str, bytes]:
    """The files that a bundle and an artifact have alike, config.json aside; `read_facts` reads them."""
    return {
        "taxonomy.json": facts.taxonomy.to_json().encode(),
        "preprocess.json": facts.preprocess.to_json().encode(),
        "card.md": facts.card.encode(),
        **({} if facts.detector is None else {UNKNOWN: facts.detector.to_bytes()}),
    }


def described(facts: Facts) -> dict[str, Any]:
    """The settings of spec and detector as config.json holds them, and `read_facts` reads them."""
    return asdict(facts.spec) | ({} if facts.detector is None else {"unknown": facts.detector.settings})


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Verify and read a bundle. BundleError says which file is missing, altered, linked, oversized or malformed."""
    payload, digest = read_folder(folder, BUNDLE)
    return parsed_bundle(payload, digest, Path(folder).name)


def parsed_bundle(payload: Mapping[str, bytes], digest: str, name: str) -> Bundle:
    """The bundle that verified files hold: of an extended one the last layer, on the bundle of all below."""
    layer = max(map(layer_of, payload))
    below = {key: data for key, data in payload.items() if layer_of(key) != layer}
    parent = parsed_bundle(below, digest_of(BUNDLE, below), name) if layer else None
    payload = {key: payload[numbered(key, layer)] for key in (*_NAMES, UNKNOWN) if numbered(key, layer) in payload}
    config = read_config(payload, BUNDLE)
    added: dict[str, Any] = {}
    if parent is not None:
        payload["preprocess.json"] = below["preprocess.json"]
        added = taken_out(config, parent, name)
    spec, taxonomy, preprocess, card, detector = read_facts(payload, config, name)
    try:
        tensors = load(payload["weights.safetensors"])
    except SafetensorError as error:
        raise BundleError(f"the bundle {name} is malformed", got=error) from error
    bundle = Bundle(spec, taxonomy, preprocess, tensors, card, name, digest, detector)
    if parent is None:
        return bundle
    bundle = replace(bundle, parent=parent, files=below, added=added)
    require_on_top(bundle, parent)
    return bundle


def read_facts(
    payload: Mapping[str, bytes], config: dict[str, Any], name: str, *, width: int | None = None
) -> tuple[ModelSpec, Taxonomy, Preprocess, str, Detector | None]:
    """What belongs to weights, from verified files and the settings that `described` gave: spec, taxonomy,
    preprocessing, card and detector. width: features of the network, where they are known. BundleError, which calls the
    folder `name`, where they are malformed or contradict each other."""
    parse_json(payload["preprocess.json"], "preprocess.json")
    config, unknown = {**config}, config.get("unknown")
    config.pop("unknown", None)
    try:
        config = {**config, "mean": tuple(config["mean"]), "std": tuple(config["std"])}
        if config.get("hierarchy") is not None:
            config["hierarchy"] = HierarchySpec(**config["hierarchy"])
        spec = ModelSpec(**config)
        taxonomy = Taxonomy.from_json(payload["taxonomy.json"].decode())
        preprocess = Preprocess.from_json(payload["preprocess.json"].decode())
        card = payload["card.md"].decode()
    except (TypeError, KeyError, UnicodeDecodeError, ConfigError, DataError) as error:
        raise BundleError(f"the bundle {name} is malformed", got=error) from error
    if spec.classes != len(taxonomy):
        raise BundleError(
            f"config.json and taxonomy.json of {name} disagree",
            got=f"{spec.classes} outputs, {len(taxonomy)} classes",
        )
    if (unknown is None) != (UNKNOWN not in payload):
        raise BundleError(f"config.json and {UNKNOWN} of {name} go together", got="one of them")
    if unknown is None:
        return spec, taxonomy, preprocess, card, None
    detector = Detector.read(unknown, payload[UNKNOWN], classes=spec.classes, width=width)
    if detector.gate.shortest > preprocess.shrink_to or min(preprocess.height, preprocess.width) < _LEAST_SIDE:
        raise BundleError(
            f"the gate of {name} does not fit its preprocessing",
            got=f"shortest={detector.gate.shortest}, an input of {preprocess.height} x {preprocess.width}",
            do=f"pass at most {preprocess.shrink_to}, to which large pictures are shrunk",
        )
    return spec, taxonomy, preprocess, card, detector
