"""`vmmr evaluate` and `vmmr compare`: numbers, tables, cards and pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from vmmr.errors import ConfigError
from vmmr.files import write_json

if TYPE_CHECKING:  # neither is needed to say what the verbs are
    from vmmr.data.manifest import Manifest
    from vmmr.export.bundle import Bundle

__all__ = ["add_evaluate", "run_compare", "run_evaluate"]


def add_evaluate(verbs: Any) -> None:
    """Both verbs."""
    evaluate = ArgumentParser(description="Accuracy, calibration and cost of a bundle on one split, clean and noisy.")
    evaluate.add_argument("bundle", type=str, help="bundle folder")
    evaluate.add_argument("--data", required=True, type=str, help="manifest file or folder")
    evaluate.add_argument("--split", default="test", type=str, help="split to evaluate")
    evaluate.add_argument("--noise", action="store_true", help="also under Gaussian noise and every corruption")
    evaluate.add_argument("--severities", nargs="+", type=float, default=[3.0], help="of the corruptions, in [0, 5]")
    evaluate.add_argument("--seed", type=int, default=0, help="of noise and intervals")
    evaluate.add_argument("--json", default=None, type=str, metavar="FILE", help="write the result here")
    evaluate.add_argument("--report", default=None, type=str, metavar="DIR", help="report.html and results.json here")
    evaluate.add_argument("--card", action="store_true", help="write the result into the card of the bundle")
    evaluate.add_argument("--licence", default="", type=str, help="of the images, for the card")
    verbs.add_subcommand("evaluate", evaluate, help="accuracy, clean and noisy")

    compare = ArgumentParser(description="Results of several bundles on the same images, over one another on a page.")
    compare.add_argument("results", nargs="+", type=str, help="JSON files of evaluate, or folders of its reports")
    compare.add_argument("--out", required=True, type=str, metavar="FILE", help="page to write, .html")
    compare.add_argument(
        "--names",
        nargs="+",
        type=str,
        default=None,
        help="of the models, in order; a name that repeats is one model, trained several times",
    )
    compare.add_argument("--markdown", default=None, type=str, metavar="FILE", help="text whose table to renew")
    verbs.add_subcommand("compare", compare, help="results over one another, as a page")


def run_evaluate(args: Namespace) -> int:
    """Judge a bundle; print, and write what the flags ask for."""
    from rich.console import Console
    from rich.table import Table

    from vmmr.data.manifest import Manifest
    from vmmr.evaluation.evaluate import evaluate
    from vmmr.evaluation.robustness import noise_curve
    from vmmr.export.bundle import read_bundle

    if args.licence and not args.card:
        raise ConfigError("the licence is a line of the card", got="--licence without --card", do="pass both")
    bundle = read_bundle(args.bundle)
    manifest = Manifest.load(args.data)
    if args.report:  # now, not after hours of evaluation
        _make_folder(Path(args.report))
    judged = manifest.split(args.split)
    document = evaluate(
        bundle,
        judged,
        wanted=noise_curve(args.severities) if args.noise else ["clean"],
        seed=args.seed,
        validation=manifest.split("val") if args.split != "val" and (manifest.splits == "val").any() else None,
        restored=256,
        timed=True,
        progress=True,
    )
    title = f"{args.bundle}: {document['data']['images']} images, split {args.split}"
    table = Table("condition", "top-1", "95 % interval", "top-5", "classes", "make", "ECE", title=title)
    for name, scores in document["conditions"].items():
        shown = [f"{scores[key]:.1%}" for key in ("top1", "top5", "macro", "make", "ece")]
        low, high = scores["interval"]
        table.add_row(name, shown[0], f"{low:.1%} to {high:.1%}", *shown[1:])
    table.add_section()
    for name, found in document["summary"].items():
        low, high = found["interval"]
        table.add_row(name.replace("_", " "), f"{found['value']:.1%}", f"{low:.1%} to {high:.1%}")
    console = Console()
    console.print(table)
    clean = document["conditions"].get("clean", {})
    if "levels" in clean:
        console.print(_of_levels(clean))
    cost, temperature = document["cost"], document["calibration"]["temperature"]
    console.print(
        f"{cost['parameters']:,} parameters, {cost['macs'] / 1e6:,.0f} million MACs, {cost['latency_ms']:.1f} ms an "
        f"image, {cost['images_per_s']:.0f} images/s in batches of {cost['batch']} on {cost['device']}"
        + (f"; temperature {temperature:.2f}" if temperature is not None else "")
    )
    if args.card:
        _write_card(bundle, args, document)
    if args.json:
        write_json(args.json, document)
    if args.report:
        _write_report(bundle, judged, args, document)
    return 0


def _of_levels(clean: dict[str, Any]) -> str:
    """Accuracy of each level by itself on clean images, and how they go together."""
    shown = [
        f"{level} {scores['top1']:.1%}" if "top1" in scores else f"{level} {scores['mean_error']:.1f} years off"
        for level, scores in clean["levels"].items()
    ]
    together = clean["independent"]
    return (
        f"each level by itself: {', '.join(shown)}; make as the finest level tells it "
        f"{clean['marginal']['make']:.1%}; "
        f"both right {together['joint']:.1%}, both consistent {together['consistency']:.1%}"
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("cannot make the folder of the report", got=error, do="name another") from error


def _write_card(bundle: Bundle, args: Namespace, document: dict[str, Any]) -> None:
    """Renew the card, and let the document name the bundle as it is now."""
    from vmmr.evaluation.card import with_evaluation
    from vmmr.export.bundle import read_bundle, write_bundle

    written = write_bundle(
        Path(args.bundle), replace(bundle, card=with_evaluation(bundle.card, document, licence=args.licence))
    )
    document["bundle"]["digest"] = read_bundle(written).digest


def _write_report(bundle: Bundle, manifest: Manifest, args: Namespace, document: dict[str, Any]) -> None:
    from vmmr.evaluation.compare import name_results, write_comparison
    from vmmr.evaluation.examples import example_strips, pictures_of

    folder = Path(args.report)
    write_json(str(folder / "results.json"), document)
    [name] = name_results([Path(args.bundle)])
    worst = [row["example"] for row in document["worst_classes"]]
    write_comparison(
        folder / "report.html",
        {name: document},
        examples=example_strips({name: bundle}, manifest, seed=args.seed),
        pictures=pictures_of(worst, manifest, bundle),
    )
    print(folder / "report.html")


def run_compare(args: Namespace) -> int:
    """Write the page of several results."""
    from vmmr.evaluation.card import comparison_table
    from vmmr.evaluation.compare import name_results, read_results, require_comparable, write_comparison
    from vmmr.evaluation.markdown import replace_part
    from vmmr.evaluation.report import write_text
    from vmmr.evaluation.seeds import over_trainings

    paths = name_results([Path(source) for source in args.results], args.names)
    documents = {}
    for name, places in paths.items():
        trainings = [read_results(place) for place in places]
        require_comparable({str(place): document for place, document in zip(places, trainings, strict=True)})
        documents[name] = over_trainings(trainings)
    try:
        write_comparison(Path(args.out), documents)
        if args.markdown:
            text = Path(args.markdown).read_text(encoding="utf-8")
            write_text(Path(args.markdown), replace_part(text, "results", comparison_table(documents)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot write the comparison", got=error, do="name files in existing folders") from error
    print(args.out)
    return 0
