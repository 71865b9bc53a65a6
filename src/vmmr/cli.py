"""The verbs: `vmmr train`, `distil`, `evaluate`, `compare`, `study`, `predict`, `data import | check | render`, `demo`.

The flags of train and distil are the fields of `vmmr.config.TrainConfig`; a recipe gives their defaults, a YAML file
(`--config`) and flags override them. Mistakes of the caller end with one sentence on standard error and status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

import vmmr
from vmmr.config import TrainConfig
from vmmr.data.datasets import DATASETS
from vmmr.errors import ConfigError, DataError, VmmrError
from vmmr.recipes import RECIPES, recipe

if TYPE_CHECKING:  # neither is needed to say what the verbs are
    from vmmr.data.manifest import Manifest
    from vmmr.export.bundle import Bundle

__all__ = ["main"]

_PICTURES = (".jpeg", ".jpg", ".png", ".webp")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status: 0, 1 (predict: some image could not be read; study: some run failed), 2 (a
    mistake)."""
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

    predict = ArgumentParser(description="Name the vehicles in pictures.")
    predict.add_argument("bundle", type=str, help="bundle folder")
    predict.add_argument("images", nargs="+", type=str, help="pictures, or folders of pictures")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--top", type=int, default=5, help="candidates an answer, itself included")
    verbs.add_subcommand("predict", predict, help="name the vehicles in pictures")

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

    demo = ArgumentParser(description="Render, train, distil, evaluate, report, predict: the whole way in six minutes.")
    demo.add_argument("--out", default="demo", type=str, help="folder for data, bundles and report")
    demo.add_argument("--seed", type=int, default=0, help="of everything")
    verbs.add_subcommand("demo", demo, help="the whole way, on rendered vehicles")
    return root


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


def _train(args: Namespace) -> int:
    from vmmr.training.run import train  # slow to import

    config = TrainConfig(**{field.name: args[field.name] for field in fields(TrainConfig)})
    metrics = train(config, args.data, args.out, teacher=args.teacher, resume=args.resume, accelerator=args.accelerator)
    if metrics:  # the first process of several
        shown = {key: round(metrics[key], 4) for key in ("val_top1", "test_top1") if key in metrics}
        print(json.dumps({"bundle": str(Path(args.out) / "bundle"), **shown}))
    return 0


def _evaluate(args: Namespace) -> int:
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
        _write_json(args.json, document)
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
    _write_json(str(folder / "results.json"), document)
    [name] = name_results([Path(args.bundle)])
    worst = [row["example"] for row in document["worst_classes"]]
    write_comparison(
        folder / "report.html",
        {name: document},
        examples=example_strips({name: bundle}, manifest, seed=args.seed),
        pictures=pictures_of(worst, manifest, bundle),
    )
    print(folder / "report.html")


def _compare(args: Namespace) -> int:
    from vmmr.evaluation.card import comparison_table, replace_part
    from vmmr.evaluation.compare import name_results, read_results, require_comparable, write_comparison
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


def _study(args: Namespace) -> int:
    from vmmr.study import read_study, run_study

    given = {"data": args.data, "out": args.out, "weights": args.weights, "test": args.test or None}
    study = read_study(Path(args.study), **given)
    document = run_study(study, processes=args.processes)
    print((study.out / "study.md").read_text(encoding="utf-8"))
    print(study.out / "study.html")
    return 1 if any(run["error"] is not None for run in document["runs"].values()) else 0


def _predict(args: Namespace) -> int:
    from vmmr.answer import Answer
    from vmmr.recognizer import load

    recognizer = load(args.bundle)
    failed = False
    paths = _pictures(args.images)
    for start in range(0, len(paths), recognizer.batch_size):
        part = paths[start : start + recognizer.batch_size]
        for path, answer in zip(part, recognizer.answers(part, top=args.top), strict=True):
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


def _data(args: Namespace) -> int:
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
            _write_json(task.json, report.to_dict())
    else:
        from vmmr.data.rendered import World, write_dataset

        counts = {"train": task.train, "test": task.test}
        print(write_dataset(task.out, world=World(task.seed), per_class=counts, size=task.size, seed=task.seed))
    return 0


def _demo(args: Namespace) -> int:
    from vmmr.demo import run_demo  # slow to import

    run_demo(Path(args.out), seed=args.seed)
    return 0


def _write_json(path: str, document: dict[str, Any]) -> None:
    """All or nothing."""
    target = Path(path)
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(target)
    except OSError as error:
        raise ConfigError("cannot write the JSON file", got=error, do="name a file in an existing folder") from error


_VERBS = {
    "compare": _compare,
    "data": _data,
    "demo": _demo,
    "distil": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "study": _study,
    "train": _train,
}
