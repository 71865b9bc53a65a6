"""The verbs: `vmmr train`, `distil`, `calibrate`, `extend`, `merge`, `rollback`, `evaluate`, `compare`, `study`,
`predict`, `track`, `triage`, `export`, `bench`, `serve`, `data import | check | render`, `demo`.

The flags of train and distil are the fields of `vmmr.config.TrainConfig`; a recipe gives their defaults, a YAML file
(`--config`) and flags override them. Mistakes of the caller end with one sentence on standard error and status 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

import vmmr
from vmmr.cli.bench import add_bench, run_bench
from vmmr.cli.calibrate import add_calibrate, run_calibrate
from vmmr.cli.data import add_data, add_demo, run_data, run_demo
from vmmr.cli.evaluate import add_evaluate, run_compare, run_evaluate
from vmmr.cli.export import add_export, run_export
from vmmr.cli.extend import add_extend, run_extend, run_merge, run_rollback
from vmmr.cli.predict import add_predict, run_predict, run_track
from vmmr.cli.serve import add_serve, run_serve
from vmmr.cli.study import add_study, run_study
from vmmr.cli.train import add_train, run_train
from vmmr.cli.triage import add_triage, run_triage
from vmmr.errors import VmmrError

__all__ = ["main"]

_VERBS = {
    "bench": run_bench,
    "calibrate": run_calibrate,
    "compare": run_compare,
    "data": run_data,
    "demo": run_demo,
    "distil": run_train,
    "evaluate": run_evaluate,
    "export": run_export,
    "extend": run_extend,
    "merge": run_merge,
    "predict": run_predict,
    "rollback": run_rollback,
    "serve": run_serve,
    "study": run_study,
    "track": run_track,
    "train": run_train,
    "triage": run_triage,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status: 0, 1 (predict, track, triage: some image could not be read; study:
    some run failed), 2 (a mistake)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(words).parse_args(words)
        return _VERBS[args.verb](args[args.verb])
    except VmmrError as error:
        print(f"vmmr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vmmr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left: nothing more to say, not even while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(words: Sequence[str]) -> ArgumentParser:
    root = ArgumentParser(prog="vmmr", description="Vehicle make and model recognition that holds up in bad images.")
    root.add_argument("--version", action="version", version=f"vmmr {vmmr.__version__}")
    verbs = root.add_subcommands(dest="verb")
    add_train(verbs, words)
    add_calibrate(verbs)
    add_extend(verbs)
    add_evaluate(verbs)
    add_study(verbs)
    add_predict(verbs)
    add_triage(verbs)
    add_export(verbs)
    add_bench(verbs)
    add_serve(verbs)
    add_data(verbs)
    add_demo(verbs)
    return root
