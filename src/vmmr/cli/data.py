"""`vmmr data import | check | render` and `vmmr demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from vmmr.data.datasets import DATASETS
from vmmr.files import write_json

__all__ = ["add_data", "add_demo", "run_data", "run_demo"]


def add_data(verbs: Any) -> None:
    """The verb and its three tasks."""
    data = ArgumentParser(description="Tables of images: import, check, render.")
    verbs.add_subcommand("data", data, help="import, check or render images")
    tables = data.add_subcommands(dest="task")
    imported = ArgumentParser(description="Write a known data set as a manifest.")
    imported.add_argument("format", choices=list(DATASETS), help="data set")
    imported.add_argument("root", type=str, help="its folder")
    imported.add_argument("--out", required=True, type=str, help="manifest to write, .csv or .parquet")
    imported.add_argument("--strict", action="store_true", help="refuse missing images instead of counting them")
    tables.add_subcommand("import", imported, help="write a known data set as a manifest")
    check = ArgumentParser(description="Look for missing, unreadable and duplicate images, and at the class balance.")
    check.add_argument("source", type=str, help="manifest file or folder")
    check.add_argument("--json", default=None, type=str, metavar="FILE", help="write the findings here")
    tables.add_subcommand("check", check, help="find what is wrong with a data set")
    render = ArgumentParser(description="Draw a labelled set of vehicles, with train and test splits.")
    render.add_argument("--out", required=True, type=str, help="new folder")
    render.add_argument("--train", type=int, default=40, help="training pictures of each model and year")
    render.add_argument("--test", type=int, default=10, help="test pictures of each model and year")
    render.add_argument("--size", type=int, default=128, help="pixels a side")
    render.add_argument("--seed", type=int, default=0, help="of world and pictures")
    tables.add_subcommand("render", render, help="draw a labelled set of vehicles")


def add_demo(verbs: Any) -> None:
    """The verb."""
    demo = ArgumentParser(description="Render, train, distil, evaluate, report, predict: the whole way in six minutes.")
    demo.add_argument("--out", default="demo", type=str, help="folder for data, bundles and report")
    demo.add_argument("--seed", type=int, default=0, help="of everything")
    verbs.add_subcommand("demo", demo, help="the whole way, on rendered vehicles")


def run_data(args: Namespace) -> int:
    """Do the task."""
    task = args[args.task]
    if args.task == "import":
        manifest = DATASETS[task.format](Path(task.root), strict=task.strict)
        manifest.write(task.out)
        print(manifest)
    elif args.task == "check":
        import rich

        from vmmr.data.check import check_manifest
        from vmmr.data.manifest import Manifest

        report = check_manifest(Manifest.load(task.source), progress=True)
        rich.print(report)
        if task.json:
            write_json(task.json, report.to_dict())
    else:
        from vmmr.data.rendered import World, write_dataset

        counts = {"train": task.train, "test": task.test}
        print(write_dataset(task.out, world=World(task.seed), per_class=counts, size=task.size, seed=task.seed))
    return 0


def run_demo(args: Namespace) -> int:
    """Go the whole way."""
    from vmmr import demo  # slow to import

    demo.run_demo(Path(args.out), seed=args.seed)
    return 0
