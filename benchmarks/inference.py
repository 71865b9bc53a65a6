"""From JPEG bytes to answers, pictures a second: ours against the loop that people write, on one machine.

    python benchmarks/inference.py [--backbones mobilenetv2_100 resnet50] [--images 64] [--batch 16] [--rounds 5]
        [--threads 0] [--pictures 1024x768@90 640x480@90 ...] [--json FILE]

Two groups of rows, on the first kind of picture. "bytes to answers" decodes, resizes and answers: the usual loop
(Pillow, resize, normalise, stack, timm in eager mode), the same read ahead by a thread for each core, with
torch.compile too, and `Recognizer.stream` on every runtime and precision. "ready tensors" leaves decoding out: timm,
torch.compile, ONNX Runtime and OpenVINO called plainly on our graphs, in each precision, and our runtimes on the same
pixels. Then, for every kind of picture (width x height @ JPEG quality), the usual loop and `stream` on OpenVINO from
bytes to answers. Artifacts run as `vmmr bench` finds it fastest, which is tried first. Networks have random weights,
which costs the same; int8 is calibrated on the benchmark's pictures. Rounds visit the rows in turn, so that a drifting
machine hits all of them alike; the table gives the median over rounds, and ratios to the first row of each group. With
--json the record is written after each network, and networks that it already holds under the same settings are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vmmr.data.manifest import Manifest
from vmmr.data.pixels import cores, ordered
from vmmr.data.preprocess import Preprocess
from vmmr.evaluation import markdown
from vmmr.export.artifact import Artifact
from vmmr.export.bench import tried
from vmmr.export.bundle import Bundle, ModelSpec, build_network
from vmmr.export.export import export_bundle
from vmmr.export.runtime import TorchRuntime
from vmmr.export.tuned import Plan, machine, plans
from vmmr.files import write_json
from vmmr.models import Backbone
from vmmr.recognizer import Recognizer
from vmmr.taxonomy import Taxonomy

CLASSES, SIZE = 196, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURES = ("1024x768@90", "320x240@90", "640x480@90", "640x480@75", "1920x1080@75")
EXPORTS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))
PLAIN = {"vmmr, torch fp32": "timm, eager, channels last"}  # a student's bundle is the plain network
PRECISIONS = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}

Call = Callable[[], object]


def photographs(count: int, kind: str = PICTURES[0], seed: int = 0) -> list[bytes]:
    """JPEGs with structure at every scale down to two pixels. kind: width x height @ quality."""
    size, quality = kind.split("@")
    width, height = map(int, size.split("x"))
    octaves = range(1, int(np.log2(height / 6)) + 1)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        layers = [random.integers(0, 256, (2**k * 3, 2**k * 4, 3), dtype=np.uint8) for k in octaves]
        parts = [np.asarray(Image.fromarray(layer).resize((width, height)), np.float32) for layer in layers]
        file = BytesIO()
        Image.fromarray(np.mean(parts, axis=0).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
        found.append(file.getvalue())
    return found


def random_bundle(backbone: str) -> Bundle:
    """A network with fresh weights, as a bundle."""
    torch.manual_seed(0)
    taxonomy = Taxonomy.from_rows([f"Make {n // 4}" for n in range(CLASSES)], [f"Model {n}" for n in range(CLASSES)])
    spec = ModelSpec("plain", backbone, CLASSES, mean=MEAN, std=STD)
    network = build_network(spec)
    assert isinstance(network, Backbone)
    return Bundle(spec, taxonomy, Preprocess(SIZE, SIZE), network.model.state_dict(), "# random\n", backbone)


def usual_image(data: bytes) -> torch.Tensor:
    """What tutorials do with a file."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    picture = Image.open(BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - mean) / std


def usual_loop(
    model: Callable[[torch.Tensor], torch.Tensor], files: Sequence[bytes], batch: int, *, ahead: bool = False
) -> list[int]:
    """What tutorials do. ahead: read on a thread for each core while the network computes."""
    images: Iterable[torch.Tensor] = map(usual_image, files)
    if ahead:
        images = ordered(usual_image, files, workers=cores(), ahead=2 * batch)
    answers: list[int] = []
    held: list[torch.Tensor] = []
    with torch.no_grad():
        for number, image in enumerate(images, 1):
            held.append(image)
            if len(held) == batch or number == len(files):
                answers += model(torch.stack(held)).softmax(dim=1).argmax(dim=1).tolist()
                held = []
    return answers


def artifacts(
    bundle: Bundle, files: Sequence[bytes], folder: Path, exports: Sequence[tuple[Any, Any]] = EXPORTS
) -> dict[str, Artifact]:
    """The bundle in these forms and precisions."""
    pictures = folder / "pictures" / "train" / "Make 0" / "Model 0"
    pictures.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(files):
        (pictures / f"{number}.jpg").write_bytes(data)
    table = ["path,split,make,model", *(f"{path},train,Make 0,Model 0" for path in sorted(pictures.iterdir()))]
    (folder / "pictures.csv").write_text("\n".join(table))
    manifest = Manifest.load(folder / "pictures.csv")
    return {
        f"{form} {precision}": export_bundle(
            bundle,
            folder / f"{form}-{precision}",
            form=form,
            precision=precision,
            data=manifest if precision == "int8" else None,
            images=len(files),
        )
        for form, precision in exports
    }


def say(text: str) -> None:
    """How far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def fastest(artifact: Artifact, threads: int) -> Plan:
    """As `vmmr bench` finds it, in less time."""
    name = "openvino" if artifact.format == "openvino" else "onnxruntime"
    return tried(artifact, plans(artifact, [name], (2, 4, 16), threads=threads), seconds=0.5)[0][0]


def rows_of(
    bundle: Bundle, kinds: dict[str, list[bytes]], batch: int, threads: int, folder: Path, compiled: bool
) -> tuple[dict[str, dict[str, Call]], dict[str, Plan]]:
    """{group: {row: what is timed}}, and how each artifact is run. kinds: files of each kind of picture; the first is
    that of the groups which are not about kinds."""
    files = next(iter(kinds.values()))
    eager = bundle.network().model
    recognizers = {"torch fp32": Recognizer(bundle, TorchRuntime(bundle, threads=threads), batch_size=batch)}
    chosen: dict[str, Plan] = {}
    say("exporting")
    for name, artifact in artifacts(bundle, files, folder).items():
        chosen[name] = fastest(artifact, threads)
        say(f"{name} runs as {chosen[name]}")
        recognizers[name] = Recognizer(artifact, chosen[name].made(artifact), batch_size=batch)
    whole: dict[str, Call] = {
        "Pillow + timm, eager": lambda: usual_loop(eager, files, batch),
        "Pillow on threads + timm, eager": lambda: usual_loop(eager, files, batch, ahead=True),
    }
    pixels = np.stack([recognizers["torch fp32"].read(data) for data in files[:batch]])
    images = bundle.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
    last = bundle.network().model.to(memory_format=torch.channels_last)
    images_last = images.contiguous(memory_format=torch.channels_last)
    ready: dict[str, Call] = {
        "timm, eager": torch.no_grad()(lambda: eager(images)),
        "timm, eager, channels last": torch.no_grad()(lambda: last(images_last)),
    }
    if compiled:
        fast = torch.compile(bundle.network().model)
        whole["Pillow on threads + torch.compile"] = lambda: usual_loop(fast, files, batch, ahead=True)
        ready["torch.compile"] = torch.no_grad()(lambda: fast(images))
    ready |= plain_runtimes(folder, pixels, threads)
    for name, recognizer in recognizers.items():
        whole[f"vmmr, {name}"] = lambda r=recognizer: list(r.stream(files))  # type: ignore[misc]
        ready[f"vmmr, {name}"] = lambda r=recognizer: r.outputs(pixels)  # type: ignore[misc]
    groups = {"bytes to answers": whole, "ready tensors": ready}
    for kind, those in kinds.items():
        groups[kind] = {"Pillow + timm, eager": lambda f=those: usual_loop(eager, f, batch)}  # type: ignore[misc]
        for form, precision in EXPORTS:
            if form == "openvino":
                own = recognizers[f"{form} {precision}"]
                groups[kind][f"vmmr, {form} {precision}"] = lambda r=own, f=those: list(r.stream(f))  # type: ignore[misc]
    return groups, chosen


def plain_runtimes(folder: Path, pixels: np.ndarray, threads: int) -> dict[str, Call]:
    """The libraries called as their own pages show, on the same graphs, in the same precision."""
    import onnxruntime
    import openvino

    rows: dict[str, Call] = {}
    for form, precision in EXPORTS:
        home = folder / f"{form}-{precision}"
        if form == "onnx":
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(home / "model.onnx"), options)
            rows[f"plain {form} {precision}"] = lambda s=session: s.run(None, {"pixels": pixels})  # type: ignore[misc]
        else:
            hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
            compiled = openvino.Core().compile_model(str(home / "model.xml"), "CPU", hints)
            rows[f"plain {form} {precision}"] = lambda c=compiled: c(pixels)  # type: ignore[misc]
    return rows


def measure(calls: dict[str, Call], count: int, rounds: int, least: float) -> dict[str, dict[str, float]]:
    """Pictures a second of each, the rows in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        say(f"warming {name}")
        call()
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, call in calls.items():
            start, passes = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < least or not passes:
                call()
                passes += 1
            times[name].append(spent / passes)
    found = {}
    for name, seconds in times.items():
        rates = [count / s for s in seconds]
        found[name] = {"images_per_s": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown of one network: {group: {row: numbers}} -> both groups, each with ratios to its first row, and for
    runtimes on ready tensors the share of the same library called plainly; then the kinds of pictures, one a row."""
    parts = []
    for group in ("bytes to answers", "ready tensors"):
        rows = found[group]
        base = next(iter(rows.values()))["images_per_s"]
        last = ["of the plain library"] if group == "ready tensors" else []
        lines = []
        for name, row in rows.items():
            same = PLAIN.get(name, name.replace("vmmr,", "plain"))
            plain = rows.get(same) if same != name else None
            share = [f"{row['images_per_s'] / plain['images_per_s']:.0%}" if plain else ""] if last else []
            spread = f"{row['lowest']:.1f} to {row['highest']:.1f}"
            lines.append([name, f"{row['images_per_s']:.1f}", spread, f"{row['images_per_s'] / base:.2f}", *share])
        parts.append(markdown.table([group, "images/s", "lowest to highest round", "ratio", *last], lines))
    kinds = found["pictures"]
    names = list(found[next(iter(kinds))])
    lines = []
    for kind, size in kinds.items():
        rates = [found[kind][name]["images_per_s"] for name in names]
        cells = [f"{rates[0]:.1f}", *(f"{rate:.1f} ({rate / rates[0]:.2f})" for rate in rates[1:])]
        lines.append([kind.replace("x", " x ").replace("@", ", "), f"{size / 1e3:.0f}", *cells])
    parts.append(markdown.table(["picture, JPEG quality", "kB", *names], lines))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv2_100", "resnet50"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="at least, for a row of a round")
    parser.add_argument("--threads", type=int, default=0, help="of every runtime; 0: all cores")
    parser.add_argument("--pictures", nargs="+", default=[*PICTURES], help="width x height @ JPEG quality")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    threads = args.threads or cores()
    torch.set_num_threads(threads)
    kinds = {kind: photographs(args.images, kind) for kind in args.pictures}
    document: dict[str, Any] = {
        "machine": {**machine(), "torch": torch.__version__},
        "settings": {
            "size": SIZE,
            **{name: getattr(args, name) for name in ("pictures", "images", "batch", "rounds", "seconds")},
            "threads": threads,
        },
        "results": {},
    }
    if args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if {k: before.get(k) for k in ("machine", "settings")} == {k: document[k] for k in ("machine", "settings")}:
            document["results"] = before["results"]
    for backbone in args.backbones:
        if backbone not in document["results"]:
            say(backbone)
            with tempfile.TemporaryDirectory() as folder:
                groups, chosen = rows_of(
                    random_bundle(backbone), kinds, args.batch, threads, Path(folder), compiled=not args.no_compile
                )
                document["results"][backbone] = {
                    "plans": {name: asdict(plan) for name, plan in chosen.items()},
                    "pictures": {kind: statistics.mean(map(len, files)) for kind, files in kinds.items()},
                }
                for group, calls in groups.items():
                    count = min(args.batch, args.images) if group == "ready tensors" else args.images
                    document["results"][backbone][group] = measure(calls, count, args.rounds, args.seconds)
            if args.json:
                write_json(args.json, document)
        print(f"\n{backbone} at {SIZE} px, batch {args.batch}, {threads} threads\n")
        print(table(document["results"][backbone]), flush=True)


if __name__ == "__main__":
    main()
