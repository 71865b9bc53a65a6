"""From a bundle to an artifact: convert, quantise, prove that it is the same network, say what it costs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vmmr
from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError
from vmmr.evaluation.robustness import condition
from vmmr.export.artifact import ARTIFACT, Artifact, ExportFormat, Precision, read_artifact, write_artifact
from vmmr.export.bundle import Bundle
from vmmr.export.folder import require_replaceable
from vmmr.export.parity import golden_set, require_parity
from vmmr.export.runtime import Runtime, TorchRuntime
from vmmr.training.samples import open_side

__all__ = ["CONDITIONS", "export_bundle"]

CONDITIONS = ("clean", "gaussian_0.2", "fog@3", "motion_blur@3")
"""What a precision is judged under. Calibration sees clean images and the Gaussian noise alone."""

_BATCH = 32
_NEEDED = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}


def export_bundle(
    bundle: Bundle,
    out: Path,
    *,
    form: ExportFormat,
    precision: Precision = "fp32",
    data: Manifest | None = None,
    split: str = "train",
    images: int = 300,
    judged: int = 1000,
    seed: int = 0,
) -> Artifact:
    """Write the bundle as an artifact in `out`, and return it as it is read again.

    data: images that int8 is calibrated on (`images` of `split`, every other one under noise) and that every precision
    is judged on: at most `judged` of its split val, or, where it has none, of those of `split` that calibration did not
    see. seed: of the choice and the noise. Nothing is written unless the artifact gives what torch gives, within the
    bounds of `vmmr.export.parity`.

    Raises ConfigError for int8 without data and for a precision that the form has not, BundleError where the artifact
    is not the same network, ManifestError for vehicles that the bundle does not know.
    """
    if form == "onnx" and precision == "bf16":
        raise ConfigError("ONNX Runtime has no bf16 on processors", do="export to openvino, or to onnx in int8 or fp32")
    if precision == "int8" and data is None:
        raise ConfigError("int8 is calibrated on images", got="no data", do="pass a manifest with training images")
    require_replaceable(out, ARTIFACT)  # now, not after minutes of work
    needed = ["onnx", "onnxscript", *_NEEDED[form], *(["nncf"] if (form, precision) == ("openvino", "int8") else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "the export needs more packages", got=f"no {', '.join(missing)}", do="install vmmr[onnx,openvino]"
        )
    from vmmr.export.onnx import quantise_onnx, to_onnx  # what they need is an extra

    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    chosen, held = (None, None) if data is None else _rows(bundle, data, split, images, judged, seed)
    model, weights = to_onnx(bundle), None
    if form == "openvino":
        from vmmr.export.openvino import quantise_ir, to_ir

        model, weights = to_ir(model)
    if precision == "int8":
        assert chosen is not None
        shown = _shown(chosen, preprocess, ("clean", "gaussian_0.2"), seed)
        calibration = np.concatenate([shown["clean"][::2], shown["gaussian_0.2"][1::2]])
        if weights is None:
            model = quantise_onnx(model, calibration)
        else:
            model, weights = quantise_ir(model, weights, calibration)
    plain = Artifact(
        bundle.spec,
        bundle.taxonomy,
        bundle.preprocess,
        precision,
        model,
        weights,
        golden_set(bundle),
        bundle.card,
        detector=bundle.detector,
    )
    runtime = plain.runtime()
    parity = require_parity(plain, plain.golden, runtime)
    provenance: dict[str, Any] = {
        "bundle": {"name": bundle.name, "digest": bundle.digest},
        "versions": _versions(form, precision),
        "parity": asdict(parity),
        "calibration": None if precision != "int8" or chosen is None else {"images": len(chosen), "split": split},
        "cost": None,
    }
    if held is not None:
        provenance["cost"] = _cost(bundle, runtime, held, preprocess, seed)
    card = f"{bundle.card.rstrip()}\n\n{_section(form, precision, provenance)}"
    write_artifact(out, replace(plain, provenance=provenance, card=card))
    return read_artifact(out)


def _rows(
    bundle: Bundle, data: Manifest, split: str, images: int, judged: int, seed: int
) -> tuple[Manifest, Manifest | None]:
    """Rows to calibrate on and rows to judge by, disjoint."""
    random = np.random.default_rng(seed)
    source = data.split(split)
    order = random.permutation(len(source))
    chosen = source.select(np.sort(order[:images]))
    if (data.splits == "val").any() and split != "val":
        held = data.split("val")
        held = held.select(np.sort(random.permutation(len(held))[:judged]))
    else:
        held = source.select(np.sort(order[images : images + judged]))
    return chosen, held if len(held) else None


def _shown(
    manifest: Manifest, preprocess: Preprocess, conditions: Sequence[str], seed: int
) -> dict[str, NDArray[np.uint8]]:
    """The images under each condition, as a camera would store them: uint8 [N, H, W, 3]."""
    pixels = open_side(manifest, preprocess).pixels
    found: dict[str, NDArray[np.uint8]] = {}
    for name in conditions:
        degrade = condition(name, seed=seed)
        parts: list[Tensor] = []
        for start in range(0, len(manifest), _BATCH):
            keys = np.arange(start, min(start + _BATCH, len(manifest)))
            image = preprocess.centre_crop(pixels[keys])
            if degrade is not None:
                noisy = degrade(preprocess.normalise(image), keys)
                image = ((noisy + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            parts.append(image.permute(0, 2, 3, 1))
        found[name] = torch.cat(parts).numpy()
    return found


def _cost(bundle: Bundle, runtime: Runtime, held: Manifest, preprocess: Preprocess, seed: int) -> dict[str, Any]:
    """{condition: {"torch", "exported", "agreement"}}, shares of images: top-1 of both, and the same first answer."""
    known, labels = bundle.labelled(held)
    levels = bundle.levels
    truth = known.labels if levels is None else labels[levels.finest]
    reference, found = TorchRuntime(bundle), {}
    for name, pixels in _shown(known, preprocess, CONDITIONS, seed).items():
        first = []
        for network in (reference, runtime):
            rows = [network(pixels[start : start + _BATCH])["logits"] for start in range(0, len(pixels), _BATCH)]
            first.append(bundle.class_scores(torch.from_numpy(np.concatenate(rows))).argmax(dim=1).numpy())
        found[name] = {
            "torch": float((first[0] == truth).mean()),
            "exported": float((first[1] == truth).mean()),
            "agreement": float((first[0] == first[1]).mean()),
        }
    return {"images": len(known), "split": sorted(set(held.splits.tolist())), "conditions": found}


def _versions(form: ExportFormat, precision: Precision) -> dict[str, str]:
    used = ["torch", "timm", "onnx", "onnxruntime"] if form == "onnx" else ["torch", "timm", "onnx", "openvino"]
    if form == "openvino" and precision == "int8":
        used.append("nncf")
    return {"vmmr": vmmr.__version__, "python": platform.python_version(), **{name: version(name) for name in used}}


def _section(form: ExportFormat, precision: Precision, facts: dict[str, Any]) -> str:
    """What the card says about the export."""
    parity, cost = facts["parity"], facts["cost"]
    lines = [
        f"## Exported: {form}, {precision}",
        "",
        f"From the bundle {facts['bundle']['digest'][:16]}. On the golden pictures outputs are off by at most "
        f"{parity['difference']:.2g} ({parity['relative']:.2g} of their norm, in the median), and "
        f"{parity['agreement']:.0%} of the first answers are torch's.",
        "",
    ]
    if cost is not None:
        splits = ", ".join(name or "none" for name in cost["split"])
        lines += [
            f"On {cost['images']} images (split {splits}):",
            "",
            "| condition | torch | exported | same first answer |",
            "|---|---|---|---|",
            *(
                f"| {name} | {' | '.join(f'{100 * row[key]:.1f} %' for key in ('torch', 'exported', 'agreement'))} |"
                for name, row in cost["conditions"].items()
            ),
            "",
        ]
    return "\n".join(lines)
