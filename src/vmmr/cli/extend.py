"""`vmmr extend`, `merge` and `rollback`: new classes or another domain for a bundle that is there, and back."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_extend", "run_extend", "run_merge", "run_rollback"]


def add_extend(verbs: Any) -> None:
    """The verbs."""
    extend = ArgumentParser(description="Let a bundle learn new classes, or another domain; the way back is open.")
    extend.add_argument("bundle", type=str, help="bundle folder")
    extend.add_argument("new", type=str, help="manifest file or folder with the new images; domain: or pictures")
    extend.add_argument("--out", required=True, type=str, metavar="DIR", help="folder to write")
    extend.add_argument("--mode", default="gallery", choices=["gallery", "task", "domain"], help="see docs/extend.md")
    extend.add_argument("--data", default=None, type=str, help="manifest it was trained on, with a split val")
    bound = "share of old images whose answer may change; of a domain on average"
    extend.add_argument("--bound", default=0.02, type=float, help=bound)
    extend.add_argument("--confidence", default=0.9, type=float, help="gallery, task: that the bound holds")
    extend.add_argument("--least", default=5, type=int, help="images that a new class or domain needs")
    extend.add_argument("--max-drop", default=0.5, type=float, help="points that old accuracy may lose")
    extend.add_argument("--force", action="store_true", help="write it even so")
    extend.add_argument("--epochs", default=30, type=int, help="task, domain: of the new bank of BatchNorms")
    extend.add_argument("--align-epochs", default=50, type=int, help="task: of all heads together")
    extend.add_argument("--memory", default=2000, type=int, help="task: old images that are learned with")
    extend.add_argument("--base-unknown", action="store_true", help="task: train an unknown output of the old head too")
    extend.add_argument(
        "--discriminants",
        action="store_true",
        help="task: let linear discriminants of all classes speak with the heads",
    )
    extend.add_argument("--init", default="base", choices=["base", "previous"], help="task: where the bank starts")
    extend.add_argument("--head", default="random", choices=["random", "auxiliary"], help="task: where the head starts")
    extend.add_argument(
        "--aligned",
        default="heads",
        choices=["heads", "unknown"],
        help="task: all of heads, or what is unknown to them",
    )
    extend.add_argument(
        "--keep-absent", action="store_true", help="task: heads learn from batches without their classes"
    )
    extend.add_argument("--reduction", default="sum", choices=["sum", "mean"], help="task: of the losses of heads")
    extend.add_argument("--seed", default=0, type=int, help="task, domain: of everything drawn")
    verbs.add_subcommand("extend", extend, help="let a bundle learn new classes")

    merge = ArgumentParser(description="Make one of the last two tasks of a bundle: an answer costs a pass less.")
    merge.add_argument("bundle", type=str, help="bundle folder whose last extension is a task")
    merge.add_argument("--out", required=True, type=str, metavar="DIR", help="folder to write")
    merge.add_argument("--data", required=True, type=str, help="manifest of all its classes, with a split val")
    merge.add_argument("--max-drop", default=0.5, type=float, help="points that accuracy may lose")
    merge.add_argument("--force", action="store_true", help="write it even so")
    merge.add_argument("--align-epochs", default=50, type=int, help="of all heads together")
    merge.add_argument("--memory", default=2000, type=int, help="images that are learned with")
    merge.add_argument("--seed", default=0, type=int, help="of everything drawn")
    verbs.add_subcommand("merge", merge, help="make one of the last two tasks of a bundle")

    rollback = ArgumentParser(description="The bundle that an extended one was made from, byte for byte.")
    rollback.add_argument("bundle", type=str, help="extended bundle folder")
    rollback.add_argument("--out", required=True, type=str, metavar="DIR", help="folder to write")
    verbs.add_subcommand("rollback", rollback, help="drop the last extension of a bundle")


def run_extend(args: Namespace) -> int:
    """Extend, write, and print what the card says."""
    from vmmr.data.manifest import Manifest
    from vmmr.export.bundle import BUNDLE, write_bundle
    from vmmr.export.folder import require_replaceable
    from vmmr.extend.domain import DomainSettings, extend_domain  # slow to import
    from vmmr.extend.gallery import extend_gallery
    from vmmr.extend.report import card_section, domain_section
    from vmmr.extend.task import extend_task

    out = Path(args.out)
    require_replaceable(out, BUNDLE)  # now, not after the work
    given: dict[str, Any] = {
        "old": None if args.data is None else Manifest.load(args.data),
        "bound": args.bound,
        "least": args.least,
        "max_drop": args.max_drop,
        "force": args.force,
        "progress": True,
    }
    if args.mode == "domain":
        domain = DomainSettings(seed=args.seed)
        domain = replace(domain, plan=replace(domain.plan, epochs=args.epochs))
        bundle, skipped = extend_domain(args.bundle, _of_a_domain(args.new), settings=domain, **given)
    elif args.mode == "task":
        given |= {"settings": _task_settings(args), "confidence": args.confidence}
        bundle, skipped = extend_task(args.bundle, Manifest.load(args.new), **given)
    else:
        bundle, skipped = extend_gallery(args.bundle, Manifest.load(args.new), confidence=args.confidence, **given)
    for path, reason in skipped:
        print(f"vmmr: left out {path}: {reason}", file=sys.stderr)
    write_bundle(out, bundle)
    section = domain_section if args.mode == "domain" else card_section
    print(section(bundle.added).rstrip())
    print(args.out)
    return 0


def _of_a_domain(source: str) -> Any:
    """The table at a place or, of a folder that holds pictures and no table, the pictures: they have no labels."""
    from vmmr.data.datasets.class_folders import IMAGE_SUFFIXES
    from vmmr.data.manifest import Manifest

    beside = sorted(Path(source).iterdir()) if Path(source).is_dir() else []
    pictures = [str(path) for path in beside if path.suffix.lower() in IMAGE_SUFFIXES]
    tables = [path for path in beside if path.suffix in (".csv", ".parquet")]
    return pictures if pictures and not tables else Manifest.load(source)


def _task_settings(args: Namespace) -> Any:
    from vmmr.extend.task import TaskSettings

    settings = TaskSettings()
    norm = replace(
        settings.norm,
        stage1=replace(settings.norm.stage1, epochs=args.epochs),
        stage2=replace(settings.norm.stage2, epochs=args.align_epochs),
        init=args.init,
        head=args.head,
        aligned=args.aligned,
        drop_absent=not args.keep_absent,
        reduction=args.reduction,
    )
    given = {name: getattr(args, name) for name in ("memory", "base_unknown", "discriminants", "seed")}
    return TaskSettings(norm, **given)


def run_merge(args: Namespace) -> int:
    """Merge, write, and print what the card says."""
    from vmmr.data.manifest import Manifest
    from vmmr.export.bundle import BUNDLE, write_bundle
    from vmmr.export.folder import require_replaceable
    from vmmr.extend.merge import merge_tasks  # slow to import
    from vmmr.extend.report import merge_section
    from vmmr.extend.task import TaskSettings

    out = Path(args.out)
    require_replaceable(out, BUNDLE)
    settings = TaskSettings(memory=args.memory, seed=args.seed)
    stage = replace(settings.norm.stage2, epochs=args.align_epochs)
    settings = replace(settings, norm=replace(settings.norm, stage2=stage))
    given: dict[str, Any] = {"max_drop": args.max_drop, "force": args.force, "progress": True}
    bundle = merge_tasks(args.bundle, Manifest.load(args.data), settings=settings, **given)
    write_bundle(out, bundle)
    print(merge_section(bundle.added).rstrip())
    print(args.out)
    return 0


def run_rollback(args: Namespace) -> int:
    """Write the bundle before, and print its digest."""
    from vmmr.export.extension import roll_back

    bundle = roll_back(args.bundle, Path(args.out))
    print(f"{args.out} {bundle.digest}")
    return 0
