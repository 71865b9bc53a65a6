"""`vmmr extend` and `vmmr rollback`: new classes for a bundle that is there, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_extend", "run_extend", "run_rollback"]


def add_extend(verbs: Any) -> None:
    """The verbs."""
    extend = ArgumentParser(description="Let a bundle learn new classes; old answers stay, and the way back is open.")
    extend.add_argument("bundle", type=str, help="bundle folder")
    extend.add_argument("new", type=str, help="manifest file or folder with images of the new classes")
    extend.add_argument("--out", required=True, type=str, metavar="DIR", help="folder to write")
    extend.add_argument("--mode", default="gallery", choices=["gallery"], help="see docs/extend.md")
    extend.add_argument("--data", default=None, type=str, help="manifest it was trained on, with a split val")
    extend.add_argument("--bound", default=0.01, type=float, help="share of old images whose answer may change")
    extend.add_argument("--least", default=5, type=int, help="images that a new class needs")
    extend.add_argument("--max-drop", default=0.5, type=float, help="points that old accuracy may lose")
    extend.add_argument("--force", action="store_true", help="write it even so")
    verbs.add_subcommand("extend", extend, help="let a bundle learn new classes")

    rollback = ArgumentParser(description="The bundle that an extended one was made from, byte for byte.")
    rollback.add_argument("bundle", type=str, help="extended bundle folder")
    rollback.add_argument("--out", required=True, type=str, metavar="DIR", help="folder to write")
    verbs.add_subcommand("rollback", rollback, help="drop the last extension of a bundle")


def run_extend(args: Namespace) -> int:
    """Extend, write, and print what the card says."""
    from vmmr.data.manifest import Manifest
    from vmmr.export.bundle import BUNDLE, write_bundle
    from vmmr.export.folder import require_replaceable
    from vmmr.extend.gallery import extend_gallery  # slow to import
    from vmmr.extend.report import card_section

    out = Path(args.out)
    require_replaceable(out, BUNDLE)  # now, not after the work
    bundle, skipped = extend_gallery(
        args.bundle,
        Manifest.load(args.new),
        old=None if args.data is None else Manifest.load(args.data),
        bound=args.bound,
        least=args.least,
        max_drop=args.max_drop,
        force=args.force,
        progress=True,
    )
    for path, reason in skipped:
        print(f"vmmr: left out {path}: {reason}", file=sys.stderr)
    write_bundle(out, bundle)
    print(card_section(bundle.added).rstrip())
    print(args.out)
    return 0


def run_rollback(args: Namespace) -> int:
    """Write the bundle before, and print its digest."""
    from vmmr.export.extension import roll_back

    bundle = roll_back(args.bundle, Path(args.out))
    print(f"{args.out} {bundle.digest}")
    return 0
