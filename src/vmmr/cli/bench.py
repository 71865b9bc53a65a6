"""`vmmr bench`: how fast a bundle or an artifact answers here, and what runs it fastest."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from vmmr.files import write_json

if TYPE_CHECKING:  # slow to import
    from rich.console import Console

    from vmmr.export.artifact import Artifact

__all__ = ["add_bench", "run_bench"]


def add_bench(verbs: Any) -> None:
    """The verb."""
    bench = ArgumentParser(
        description="Latency and throughput of every runtime that can run a model here. What runs an artifact fastest "
        "with all cores is remembered in the user's cache, and vmmr.load uses it; run it on an idle machine."
    )
    bench.add_argument("model", type=str, help="bundle, or artifact of vmmr export")
    bench.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="pictures in a call")
    bench.add_argument("--threads", nargs="+", type=int, default=[], help="threads of a call; 1 and all cores if none")
    bench.add_argument("--runtimes", nargs="+", type=str, default=[], help="only these")
    bench.add_argument("--seconds", type=float, default=2.0, help="for each row")
    bench.add_argument("--json", default=None, type=str, metavar="FILE", help="write the result here")
    verbs.add_subcommand("bench", bench, help="how fast it answers here")


def run_bench(args: Namespace) -> int:
    """Measure, and print a table."""
    from rich.console import Console
    from rich.table import Table

    from vmmr.export.artifact import Artifact
    from vmmr.export.bench import bench
    from vmmr.recognizer import read_model

    model = read_model(args.model)
    document = bench(
        model,
        batches=args.batches,
        threads=args.threads,
        runtimes=args.runtimes,
        seconds=args.seconds,
    )
    about = document["model"]
    title = f"{about['backbone']} at {about['size'][0]} x {about['size'][1]} px"
    table = Table("runtime", "precision", "batch", "threads", "median ms", "p90 ms", "images/s", title=title)
    for row in document["rows"]:
        shown = [row["runtime"], row["precision"], str(row["batch"]), str(row["threads"])]
        mark = "bold" if row in (document["best"], document["fastest"]) else None
        numbers = (f"{row['median_ms']:.2f}", f"{row['p90_ms']:.2f}", f"{row['images_per_s']:.0f}")
        table.add_row(*shown, *numbers, style=mark)
    console = Console()
    console.print(table)
    if isinstance(model, Artifact):
        _remember_best(model, args, document, console)
    if args.json:
        write_json(args.json, document)
    return 0


def _remember_best(artifact: Artifact, args: Namespace, document: dict[str, Any], console: Console) -> None:
    from vmmr.export.bench import tried
    from vmmr.export.tuned import plans, remember

    found = tried(artifact, plans(artifact, args.runtimes), seconds=args.seconds / 2)
    document["plans"] = [{**asdict(plan), "images_per_s": rate} for plan, rate in found]
    plan, rate = found[0]
    try:
        kept = f"vmmr.load will use it: {remember(artifact, plan)}"
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where home is
        kept = f"it could not be written down for vmmr.load: {error}"
    console.print(
        f"fastest: {plan.runtime}, {plan.threads} threads, {plan.streams} side by side, {plan.batch} pictures each: "
        f"{rate:.0f} images/s. {kept}",
        soft_wrap=True,
    )
