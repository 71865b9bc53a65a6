"""`vmmr predict`: pictures in, answers out, a line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from vmmr.errors import DataError

__all__ = ["add_predict", "run_predict"]

_PICTURES = (".jpeg", ".jpg", ".png", ".webp")


def add_predict(verbs: Any) -> None:
    """The verb."""
    predict = ArgumentParser(description="Name the vehicles in pictures.")
    predict.add_argument("model", type=str, help="bundle, or artifact of vmmr export")
    predict.add_argument("images", nargs="+", type=str, help="pictures, or folders of pictures")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--top", type=int, default=5, help="candidates an answer, itself included")
    names = ["auto", "torch", "onnxruntime", "openvino"]
    predict.add_argument("--runtime", default="auto", choices=names, help="what runs the network")
    verbs.add_subcommand("predict", predict, help="name the vehicles in pictures")


def run_predict(args: Namespace) -> int:
    """Answer all pictures; 1 where some could not be read."""
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


def _pictures(sources: Sequence[str]) -> list[str]:
    """Files as they are named, folders as the pictures below them, in order."""
    found: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            below = sorted(str(p) for p in source.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())
            if not below:
                raise DataError("no pictures in this folder", got=source, do=f"it needs {', '.join(_PICTURES)} files")
            found += below
        else:
            found.append(str(source))
    return found
