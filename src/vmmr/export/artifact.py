"""What `vmmr export` leaves: a network in another library's form, with all that an answer needs, in a flat folder.

    artifact/
      model.onnx              the graph (ONNX), or
      model.xml, model.bin    the network (OpenVINO)
      config.json             the bundle's settings, precision, what it was made from and with, how far it is off
      taxonomy.json           class -> make, model, year
      preprocess.json         bytes -> pixels
      golden.safetensors      pictures, and what torch answered to them
      card.md                 where it comes from
      unknown.safetensors     constants of the unknown score, where the bundle has one
      manifest.json           {"files": {name: {"size", "sha256"}}}

`vmmr.export.folder` writes it whole and reads it without trust; `vmmr.export.parity` says what the golden pictures are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from vmmr.data.preprocess import Preprocess
from vmmr.errors import BundleError, ConfigError
from vmmr.export.bundle import UNKNOWN, Facts, ModelSpec, described, fact_files, read_facts
from vmmr.export.folder import Format, read_config, read_folder, to_json, write_folder
from vmmr.export.parity import Golden
from vmmr.export.runtime import Runtime
from vmmr.taxonomy import Taxonomy
from vmmr.unknown.detector import Detector

__all__ = ["ARTIFACT", "Artifact", "ExportFormat", "Precision", "read_artifact", "runtimes_for", "write_artifact"]

ExportFormat = Literal["onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]

_COMMON = ("config.json", "taxonomy.json", "preprocess.json", "golden.safetensors", "card.md")
_CONTENTS = (("model.onnx", *_COMMON), ("model.xml", "model.bin", *_COMMON))
ARTIFACT = Format("vmmr-artifact", "artifact", 1, (*_CONTENTS, *((*names, UNKNOWN) for names in _CONTENTS)))
"""The folder's format."""

_RUNTIMES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
"""What runs which form, the fastest first. A graph in int8 is run by what it was quantised for and judged with."""


@dataclass(frozen=True)
class Artifact(Facts):
    """An artifact in memory. model: model.onnx or model.xml; weights: model.bin, where there is one. provenance: plain
    facts for people, as config.json holds them: the bundle's name and digest, versions, parity, what precision costs.
    `name` is its folder's, `digest` that of its manifest."""

    spec: ModelSpec
    taxonomy: Taxonomy
    preprocess: Preprocess
    precision: Precision
    model: bytes
    weights: bytes | None
    golden: Golden
    card: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    digest: str = ""
    detector: Detector | None = None

    @property
    def format(self) -> ExportFormat:
        """onnx or openvino."""
        return "onnx" if self.weights is None else "openvino"

    def runtime(
        self, name: str = "auto", *, threads: int | None = None, streams: int = 1, batch: int | None = None
    ) -> Runtime:
        """The network, ready to run. name: "auto" for the fastest that is installed. threads, streams, batch: see
        `OpenvinoRuntime`; ONNX Runtime has one stream. ConfigError for one that is not installed or cannot run this
        form, BundleError for a network that is none or that refers to other files."""
        able, known = runtimes_for(self.format, self.precision), _known(self.format, self.precision)
        chosen = next(iter(able), None) if name == "auto" else name
        if chosen not in able:
            raise ConfigError(
                f"an artifact in {self.format} and {self.precision} cannot be run here",
                got=f"runtime={name!r}",
                do=f"install vmmr[{self.format}]" if name in ("auto", *known) else f"choose of {', '.join(known)}",
            )
        size = self.preprocess.height, self.preprocess.width
        model = self.model
        if self.format == "onnx":
            from vmmr.export.onnx import OnnxRuntime, checked_onnx  # what it needs is an extra

            model = checked_onnx(model, size)
            if chosen == "onnxruntime":
                return OnnxRuntime(model, size, self.precision, threads=threads, batch=batch)
        from vmmr.export.openvino import OpenvinoRuntime, checked_ir

        if self.weights is not None:
            model = checked_ir(model)
        return OpenvinoRuntime(model, self.weights, size, self.precision, threads=threads, streams=streams, batch=batch)


def runtimes_for(form: ExportFormat, precision: Precision) -> tuple[str, ...]:
    """The runtimes that are installed and run this form, the fastest first."""
    return tuple(name for name in _known(form, precision) if find_spec(name) is not None)


def _known(form: ExportFormat, precision: Precision) -> tuple[str, ...]:
    return _RUNTIMES[form][:1] if precision == "int8" else _RUNTIMES[form]


def write_artifact(folder: Path, artifact: Artifact) -> Path:
    """Write it whole, beside the target, and rename it into place; an earlier artifact there is replaced."""
    network = {"model.onnx": artifact.model}
    if artifact.weights is not None:
        network = {"model.xml": artifact.model, "model.bin": artifact.weights}
    config = {**ARTIFACT.stamp, "precision": artifact.precision, "spec": described(artifact), **artifact.provenance}
    files = {
        **network,
        "config.json": to_json(config),
        "golden.safetensors": artifact.golden.to_bytes(),
        **fact_files(artifact),
    }
    return write_folder(folder, ARTIFACT, files)


def read_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """Verify and read an artifact. BundleError says which file is missing, altered, linked, oversized or malformed."""
    payload, digest = read_folder(folder, ARTIFACT)
    name = Path(folder).name
    config = read_config(payload, ARTIFACT)
    precision, settings = config.pop("precision", None), config.pop("spec", None)
    if precision not in get_args(Precision) or not isinstance(settings, dict):
        raise BundleError("config.json describes no artifact", got=f"precision={precision!r}", do="export it anew")
    golden = Golden.from_bytes(payload["golden.safetensors"])
    width = golden.features.shape[1]
    spec, taxonomy, preprocess, card, detector = read_facts(payload, settings, name, width=width)
    if golden.pixels.shape[1:] != (preprocess.height, preprocess.width, 3):
        raise BundleError("golden.safetensors and preprocess.json disagree", got=list(golden.pixels.shape))
    model = payload.get("model.onnx", payload.get("model.xml", b""))
    weights = payload.get("model.bin")
    return Artifact(spec, taxonomy, preprocess, precision, model, weights, golden, card, config, name, digest, detector)
