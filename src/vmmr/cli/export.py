"""`vmmr export`: a bundle in the form of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_export", "run_export"]


def add_export(verbs: Any) -> None:
    """The verb."""
    export = ArgumentParser(description="Write a bundle as ONNX or OpenVINO, proven to answer as torch does.")
    export.add_argument("bundle", type=str, help="bundle folder")
    export.add_argument("--format", required=True, choices=["onnx", "openvino"], help="whose form")
    export.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "int8"], help="of the computation")
    export.add_argument("--out", required=True, type=str, metavar="DIR", help="folder to write")
    export.add_argument("--data", default=None, type=str, help="manifest file or folder: calibrates int8, judges all")
    export.add_argument("--split", default="train", type=str, help="split to calibrate on")
    export.add_argument("--images", default=300, type=int, help="how many to calibrate on")
    export.add_argument("--seed", default=0, type=int, help="of their choice, and of noise")
    verbs.add_subcommand("export", export, help="write a bundle as ONNX or OpenVINO")


def run_export(args: Namespace) -> int:
    """Export, and print what it costs."""
    from vmmr.data.manifest import Manifest
    from vmmr.export.bundle import read_bundle
    from vmmr.export.export import export_bundle  # slow to import

    artifact = export_bundle(
        read_bundle(args.bundle),
        Path(args.out),
        form=args.format,
        precision=args.precision,
        data=None if args.data is None else Manifest.load(args.data),
        split=args.split,
        images=args.images,
        seed=args.seed,
    )
    print(artifact.card[artifact.card.rindex("## Exported") :].rstrip())
    print(args.out)
    return 0
