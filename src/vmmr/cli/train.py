"""`vmmr train` and `vmmr distil`: flags are the fields of `vmmr.config.TrainConfig`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from vmmr.config import TrainConfig
from vmmr.recipes import RECIPES, recipe

__all__ = ["add_train", "run_train"]


def add_train(verbs: Any, words: Sequence[str]) -> None:
    """Both verbs; words: the command line, since the recipe that it names gives the defaults of the flags."""
    train = ArgumentParser(
        description="Train with a recipe; leaves bundle/, metrics.json, config.yaml and logs in DIR."
    )
    train.add_argument("--recipe", default="plain", choices=list(RECIPES), help="where the settings start from")
    _training_flags(train, words, "plain")
    train.add_argument("--teacher", default=None, type=str, help="progressive bundle, for the pmd recipes")
    verbs.add_subcommand("train", train, help="train with a recipe")

    distil = ArgumentParser(description="Distil a progressive teacher into its plain backbone.")
    distil.add_argument("--teacher", required=True, type=str, help="bundle of a pmal recipe")
    students = [name for name in RECIPES if recipe(name).method == "pmd"]
    distil.add_argument("--recipe", default="pmd_fast", choices=students, help="where the settings start from")
    _training_flags(distil, words, "pmd_fast")
    verbs.add_subcommand("distil", distil, help="distil a teacher into a plain backbone")


def run_train(args: Namespace) -> int:
    """Train, and print where the bundle is."""
    from vmmr.training.run import train  # slow to import

    config = TrainConfig(**{field.name: args[field.name] for field in fields(TrainConfig)})
    metrics = train(config, args.data, args.out, teacher=args.teacher, resume=args.resume, accelerator=args.accelerator)
    if metrics:  # the first process of several
        shown = {key: round(metrics[key], 4) for key in ("val_top1", "test_top1") if key in metrics}
        print(json.dumps({"bundle": str(Path(args.out) / "bundle"), **shown}))
    return 0


def _training_flags(parser: ArgumentParser, words: Sequence[str], default: str) -> None:
    """The fields of TrainConfig as flags; the recipe that the command line names gives their defaults, and the teacher,
    where it names one, those of backbone and input."""
    parser.add_argument("--data", required=True, type=str, help="manifest file or folder")
    parser.add_argument("--out", required=True, type=str, help="folder for the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--accelerator", default="auto", type=str, help="auto, cpu or gpu")
    parser.add_argument("--config", action="config", help="YAML file with settings, as a run leaves it")
    parser.add_class_arguments(TrainConfig)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default=default)
    first.add_argument("--teacher")
    named = first.parse_known_args(words)[0]
    if named.recipe in RECIPES:  # another name is refused by the parser itself, with the choices
        parser.set_defaults(recipe(named.recipe).to_dict())
    if named.teacher is not None:
        from vmmr.export.bundle import read_bundle

        teacher = read_bundle(named.teacher)
        taught = teacher.spec.hierarchy
        parser.set_defaults(
            levels=list(taught.names) if taught is not None else [],
            backbone=teacher.spec.backbone,
            backbone_options=teacher.spec.backbone_options,
            size=teacher.preprocess.height,
            crop=teacher.preprocess.crop,
            resize=teacher.preprocess.resize,
        )
