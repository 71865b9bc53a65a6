"""`vmmr calibrate`: a bundle that is there learns to tell what it does not know."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from vmmr.config import UnknownScore
from vmmr.errors import ManifestError

__all__ = ["add_calibrate", "run_calibrate"]


def add_calibrate(verbs: Any) -> None:
    """The verb."""
    calibrate = ArgumentParser(
        description="Let a bundle tell unknown vehicles: fitted on training images, set by validation images."
    )
    calibrate.add_argument("bundle", type=str, help="bundle folder, written anew")
    calibrate.add_argument("--data", required=True, type=str, help="manifest it was trained on, with a split val")
    scores = [name for name in get_args(UnknownScore) if name != "none"]
    calibrate.add_argument("--unknown", default="knn_pca", choices=scores, help="the score, see docs/unknown.md")
    calibrate.add_argument("--accept", default=0.95, type=float, help="share of validation images that are known")
    calibrate.add_argument("--shortest", default=0, type=int, help="pixels of the shorter side below which: too_small")
    verbs.add_subcommand("calibrate", calibrate, help="let a bundle tell unknown vehicles")


def run_calibrate(args: Namespace) -> int:
    """Fit, write the bundle, and print the gate."""
    from vmmr.data.manifest import Manifest
    from vmmr.data.splits import require_no_leakage, training_view
    from vmmr.evaluation.evaluate import with_unknown
    from vmmr.export.bundle import read_bundle, write_bundle
    from vmmr.training.samples import open_side

    bundle = read_bundle(args.bundle)
    manifest = Manifest.load(args.data)
    if not (manifest.splits == "val").any():
        raise ManifestError("there are no validation images", got=args.data, do="mark some rows with the split val")
    train, validation = training_view(manifest), manifest.split("val")
    require_no_leakage(train, validation)
    if (manifest.splits == "test").any():
        for side in (train, validation):
            require_no_leakage(side, manifest.split("test"))
    preprocess = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    seen, held = (
        open_side(bundle.labelled(side)[0], preprocess, levels=bundle.levels, progress=True)
        for side in (train, validation)
    )
    bundle = with_unknown(
        bundle, seen, held, preprocess, score=args.unknown, accept=args.accept, shortest=args.shortest
    )
    assert bundle.detector is not None
    write_bundle(Path(args.bundle), bundle)
    print(json.dumps({"bundle": args.bundle, "unknown": bundle.detector.settings}))
    return 0
