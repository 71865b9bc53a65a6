"""`vmmr predict`: pictures in, answers out, a line each or, in bulk, as Parquet; `vmmr track`: one answer a vehicle."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from vmmr.config import RuntimeName
from vmmr.data.datasets.class_folders import IMAGE_SUFFIXES
from vmmr.errors import DataError

__all__ = ["add_predict", "run_predict", "run_track"]

_RUNTIMES = get_args(RuntimeName)


def add_predict(verbs: Any) -> None:
    """The verbs."""
    predict = ArgumentParser(description="Name the vehicles in pictures.")
    predict.add_argument("model", type=str, help="bundle, or artifact of vmmr export")
    predict.add_argument("images", nargs="+", type=str, help="pictures, folders of pictures; with --out also tables")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--top", type=int, default=5, help="candidates an answer, itself included")
    predict.add_argument("--runtime", default="auto", choices=_RUNTIMES, help="what runs the network")
    predict.add_argument("--out", default=None, type=str, metavar="DIR", help="Parquet files here; goes on if killed")
    predict.add_argument("--part", default=1024, type=int, help="with --out: pictures a file")
    predict.add_argument("--engine", default="local", choices=["local", "ray"], help="with --out: who answers")
    predict.add_argument("--workers", default=2, type=int, help="with ray: at most so many, one core each")
    predict.add_argument("--address", default=None, type=str, help="with ray: of a running cluster")
    verbs.add_subcommand("predict", predict, help="name the vehicles in pictures")

    track = ArgumentParser(description="Name the vehicles that tracks follow through a video, one answer a track.")
    track.add_argument("model", type=str, help="bundle, or artifact of vmmr export")
    track.add_argument("frames", type=str, help="video file, or folder of pictures in the order of their names")
    track.add_argument("--sightings", required=True, type=str, help="frame, track, box: .csv or .json")
    track.add_argument("--independence", default=0.0, type=float, help="of a track's frames, in [0, 1]")
    track.add_argument("--runtime", default="auto", choices=_RUNTIMES, help="what runs the network")
    track.add_argument("--json", action="store_true", help="one JSON object a line")
    track.add_argument("--top", type=int, default=5, help="candidates an answer, itself included")
    verbs.add_subcommand("track", track, help="name the vehicles in a video")


def run_predict(args: Namespace) -> int:
    """Answer all pictures; 1 where some could not be read."""
    if args.out is not None:
        return _in_bulk(args)
    from vmmr.answer import Answer
    from vmmr.recognizer import load

    recognizer = load(args.model, runtime=args.runtime)
    print(f"vmmr: {recognizer.runtime.name}, {recognizer.runtime.precision}", file=sys.stderr)
    failed = False
    paths = _pictures(args.images)
    for path, answer in zip(paths, recognizer.stream(paths, top=args.top), strict=True):
        if isinstance(answer, Answer):
            print(json.dumps({"path": path, **answer.to_dict()}) if args.json else f"{path}: {answer}", flush=True)
        else:
            failed = True
            print(json.dumps({"path": path, "error": str(answer)}) if args.json else f"{path}: error: {answer}")
    return 1 if failed else 0


def _in_bulk(args: Namespace) -> int:
    from vmmr.bulk import run_bulk

    found = run_bulk(
        args.model,
        args.images,
        args.out,
        top=args.top,
        part=args.part,
        runtime=args.runtime,
        engine=args.engine,
        workers=args.workers,
        address=args.address,
    )
    print(json.dumps({"out": args.out, **asdict(found)}))
    return 1 if found.failed else 0


def run_track(args: Namespace) -> int:
    """Answer all tracks; 1 where one has no answer."""
    from vmmr.recognizer import load
    from vmmr.tracks import answer_tracks, frames_of, read_sightings

    sightings = read_sightings(args.sightings)
    recognizer = load(args.model, runtime=args.runtime)
    found = answer_tracks(recognizer, frames_of(args.frames), sightings, independence=args.independence, top=args.top)
    for track in found:
        if args.json:
            print(json.dumps(track.to_dict()))
        else:
            said = track.answer or f"error: none of its {track.failed} sightings can be read"
            print(f"{track.track}: {said}, frames {track.first} to {track.last}, {track.frames} of them seen")
    return 1 if any(track.answer is None for track in found) else 0


def _pictures(sources: Sequence[str]) -> list[str]:
    """Files as they are named, folders as the pictures below them, in order."""
    found: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            below = sorted(str(p) for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not below:
                raise DataError(
                    "no pictures in this folder", got=source, do=f"it needs {', '.join(IMAGE_SUFFIXES)} files"
                )
            found += below
        else:
            found.append(str(source))
    return found
