"""From JPEG bytes to answers, pictures a second: ours against the loop that people write, on one machine.

    python benchmarks/inference.py [--backbones mobilenetv2_100 resnet50] [--images 64] [--batch 16] [--rounds 5]
        [--threads 0] [--json FILE]

Two groups of rows. "bytes to answers" decodes, resizes and answers: the usual loop (Pillow, resize, normalise, stack,
timm in eager mode), the same with torch.compile, and `Recognizer.stream` on every runtime and precision. "ready
tensors" leaves decoding out: timm, torch.compile, ONNX Runtime and OpenVINO called plainly, and our runtimes on pixels.
Networks have random weights, which costs the same; int8 is calibrated on the benchmark's pictures. Rounds visit the
rows in turn, so that a drifting machine hits all of them alike; the table gives the median over rounds, and ratios to
the first row of each group.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.export.artifact import Artifact
from vmmr.export.bundle import Bundle, ModelSpec, build_network
from vmmr.export.export import export_bundle
from vmmr.export.runtime import TorchRuntime
from vmmr.models import Backbone
from vmmr.recognizer import Recognizer
from vmmr.taxonomy import Taxonomy

CLASSES, SIZE = 196, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXPORTS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))

Call = Callable[[], object]


def photographs(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of 1024 x 768, quality 90, with structure at every scale."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        layers = [random.integers(0, 256, (2**k * 3, 2**k * 4, 3), dtype=np.uint8) for k in range(1, 8)]
        parts = [np.asarray(Image.fromarray(layer).resize((1024, 768)), np.float32) for layer in layers]
        file = BytesIO()
        Image.fromarray(np.mean(parts, axis=0).astype(np.uint8)).save(file, "JPEG", quality=90)
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


def usual_loop(model: Callable[[torch.Tensor], torch.Tensor], files: Sequence[bytes], batch: int) -> list[int]:
    """What tutorials do."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    answers: list[int] = []
    with torch.no_grad():
        for start in range(0, len(files), batch):
            images = []
            for data in files[start : start + batch]:
                picture = Image.open(BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
                images.append((tensor - mean) / std)
            answers += model(torch.stack(images)).softmax(dim=1).argmax(dim=1).tolist()
    return answers


def artifacts(bundle: Bundle, files: Sequence[bytes], folder: Path) -> dict[str, Artifact]:
    """The bundle in every form and precision."""
    pictures = folder / "pictures" / "train" / "Make 0" / "Model 0"
    pictures.mkdir(parents=True)
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
        for form, precision in EXPORTS
    }


def rows_of(
    bundle: Bundle, files: list[bytes], batch: int, threads: int, folder: Path, compiled: bool
) -> dict[str, dict[str, Call]]:
    """{group: {row: what is timed}}."""
    eager = bundle.network().model
    recognizers = {"torch fp32": Recognizer(bundle, TorchRuntime(bundle, threads=threads), batch_size=batch)}
    for name, artifact in artifacts(bundle, files, folder).items():
        recognizers[name] = Recognizer(artifact, artifact.runtime(threads=threads), batch_size=batch)
    whole: dict[str, Call] = {"Pillow + timm, eager": lambda: usual_loop(eager, files, batch)}
    pixels = np.stack([recognizers["torch fp32"].read(data) for data in files[:batch]])
    images = bundle.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
    ready: dict[str, Call] = {"timm, eager": torch.no_grad()(lambda: eager(images))}
    if compiled:
        fast = torch.compile(bundle.network().model)
        whole["Pillow + torch.compile"] = lambda: usual_loop(fast, files, batch)
        ready["torch.compile"] = torch.no_grad()(lambda: fast(images))
    for name, recognizer in recognizers.items():
        whole[f"vmmr, {name}"] = lambda r=recognizer: list(r.stream(files))  # type: ignore[misc]
        ready[f"vmmr, {name}"] = lambda r=recognizer: r.outputs(pixels)  # type: ignore[misc]
    ready |= plain_runtimes(folder, pixels, threads)
    return {"bytes to answers": whole, "ready tensors": ready}


def plain_runtimes(folder: Path, pixels: np.ndarray, threads: int) -> dict[str, Call]:
    """The libraries called as their own pages show, on the same graph."""
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "onnx-fp32" / "model.onnx"), options)
    compiled = openvino.Core().compile_model(
        str(folder / "openvino-fp32" / "model.xml"), "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    return {
        "plain ONNX Runtime": lambda: session.run(None, {"pixels": pixels}),
        "plain OpenVINO (its own choice of precision)": lambda: compiled(pixels),
    }


def measure(calls: dict[str, Call], count: int, rounds: int, least: float) -> dict[str, dict[str, float]]:
    """Pictures a second of each, the rows in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv2_100", "resnet50"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for a row of a round")
    parser.add_argument("--threads", type=int, default=0, help="of every runtime; 0: all cores")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    threads = args.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    files = photographs(args.images)
    document: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "torch": torch.__version__},
        "settings": {"images": args.images, "batch": args.batch, "rounds": args.rounds, "threads": threads},
        "results": {},
    }
    for backbone in args.backbones:
        with tempfile.TemporaryDirectory() as folder:
            groups = rows_of(
                random_bundle(backbone), files, args.batch, threads, Path(folder), compiled=not args.no_compile
            )
            for group, calls in groups.items():
                count = len(files) if group == "bytes to answers" else min(args.batch, len(files))
                found = measure(calls, count, args.rounds, args.seconds)
                document["results"].setdefault(backbone, {})[group] = found
                base = next(iter(found.values()))["images_per_s"]
                print(f"\n{backbone} at {SIZE} px, batch {args.batch}, {threads} threads: {group}\n")
                print("| | images/s | lowest to highest round | ratio |\n|---|---|---|---|")
                for name, row in found.items():
                    spread = f"{row['lowest']:.1f} to {row['highest']:.1f}"
                    print(f"| {name} | {row['images_per_s']:.1f} | {spread} | {row['images_per_s'] / base:.2f} |")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
