"""`vmmr study`: a grid of trainings from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_study", "run_study"]


def add_study(verbs: Any) -> None:
    """The verb."""
    study = ArgumentParser(
        description="Train a grid of settings from one file, and analyse it; goes on where it stopped."
    )
    study.add_argument("study", type=str, help="YAML file, see docs/study.md")
    study.add_argument("--data", default=None, type=str, help="manifest file or folder, instead of the file's")
    study.add_argument("--out", default=None, type=str, metavar="DIR", help="folder for runs and pages, likewise")
    study.add_argument("--weights", default=None, type=str, help="backbone's starting weights, likewise")
    study.add_argument("--processes", default=0, type=int, help="runs at a time; 0: one a device")
    study.add_argument("--test", action="store_true", help="show test images what validation selected")
    verbs.add_subcommand("study", study, help="train and analyse a grid of settings")


def run_study(args: Namespace) -> int:
    """Train and analyse; 1 where some run failed."""
    from vmmr import study as studies

    given = {"data": args.data, "out": args.out, "weights": args.weights, "test": args.test or None}
    study = studies.read_study(Path(args.study), **given)
    document = studies.run_study(study, processes=args.processes)
    print((study.out / "study.md").read_text(encoding="utf-8"))
    print(study.out / "study.html")
    return 1 if any(run["error"] is not None for run in document["runs"].values()) else 0
