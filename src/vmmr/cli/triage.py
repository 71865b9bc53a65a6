"""`vmmr triage`: what a bundle does not know, grouped into candidates for new models."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from vmmr.config import RuntimeName

__all__ = ["add_triage", "run_triage"]


def add_triage(verbs: Any) -> None:
    """The verb."""
    triage = ArgumentParser(description="Group pictures of unknown vehicles into candidates for new models.")
    triage.add_argument("model", type=str, help="bundle, or artifact of vmmr export, that tells unknown vehicles")
    triage.add_argument("images", nargs="+", type=str, help="folders of pictures, pictures, or tables of them")
    triage.add_argument("--out", required=True, type=str, metavar="DIR", help="page and tables here; goes on if killed")
    triage.add_argument("--distance", default=None, type=float, help="within which groups are one, else by known ones")
    triage.add_argument("--least", default=3, type=int, help="pictures of a candidate")
    triage.add_argument("--far", action="store_true", help="group what is called no vehicle as well")
    triage.add_argument("--part", default=1024, type=int, help="pictures that are answered at a time")
    triage.add_argument("--runtime", default="auto", choices=get_args(RuntimeName), help="what runs the network")
    verbs.add_subcommand("triage", triage, help="group unknown vehicles into candidates for new models")


def run_triage(args: Namespace) -> int:
    """Group, and say what came of it; 1 where some picture could not be read."""
    from vmmr.triage import run_triage as run

    found = run(
        args.model,
        args.images,
        args.out,
        distance=args.distance,
        least=args.least,
        far=args.far,
        part=args.part,
        runtime=args.runtime,
    )
    print(json.dumps({"out": args.out, **asdict(found)}))
    return 1 if found.failed else 0
