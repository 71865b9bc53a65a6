"""Every command and every block of Python on the pages runs, page by page and in order, on tiny data.

A page gets a folder of its own, in which what it takes for granted is there in small (`given`). Trainings are cut short
by the words in TINY. What cannot run in a test stands in NOT_RUN and ELSEWHERE, with the reason; even so its words are
parsed.
"""

from __future__ import annotations

import argparse
import doctest
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from _pytest.mark import ParameterSet
from PIL import Image
from safetensors.torch import save_file

from vmmr import cli
from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.export.bundle import Bundle, ModelSpec, build_network, write_bundle
from vmmr.models import Backbone

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

# Words that make a command small; they come last, and so they win.
TRAINING = "--backbone test_resnet --size 32 --crop 1.0 --epochs 1 --batch_size 8 --near_duplicates false"
TINY = {
    "bench": "--batches 1 --threads 1 --seconds 0.05",
    "data render": "--train 5 --test 1 --size 32",
    "distil": "--epochs 1 --batch_size 8 --near_duplicates false",
    "evaluate": "--severities 3",
    "train": TRAINING,
}

# The same for Python: what a page says, and what is run.
TINY_PYTHON = {
    "draw(world, 100,": "draw(world, 4,",
    'per_class={"train": 40, "test": 10}': 'per_class={"train": 1, "test": 1}',
    "Renderer(128)": "Renderer(32)",
    "Plan(epochs=20,": "Plan(epochs=1,",
    "Plan(epochs=40,": "Plan(epochs=2,",
}

# Commands of ours that are parsed and not run.
NOT_RUN = {
    "vmmr calibrate runs/student/bundle --data cars": (
        "the drawn cars have no split val; docs/unknown.md has a table with one, and there it runs"
    ),
    "vmmr triage runs/student/bundle pictures --out found": "the same; docs/triage.md has another bundle",
    "vmmr extend runs/student/bundle new_cars --out runs/next --data cars": "the same; on docs/extend.md it runs",
    "vmmr merge runs/tasks --data cars --out runs/merged": "takes two tasks; tests/extend/test_task.py merges some",
    "vmmr merge runs/later-task --data cars --out runs/merged": "the same",
    "vmmr rollback runs/next --out runs/before": "the drawn cars have no split val; on docs/extend.md it runs",
    "vmmr serve runs/student/bundle": "runs until it is stopped; tests/serving starts servers",
    "vmmr serve runs/student/bundle --host 0.0.0.0 --token-file token": "the same",
    "vmmr serve runs/student/bundle --allowed-hosts cars.example.org": "the same",
    "vmmr predict runs/student/bundle pictures/ --out answers --engine ray --workers 16 --address auto": (
        "needs a cluster; tests/test_bulk.py has Ray on this machine"
    ),
}

# Programs whose commands are not run.
ELSEWHERE = {
    "curl": "asks a running server; tests/serving asks the same routes",
    "docker": "builds an image from a registry",
    "echo": "into curl",
    "make": "builds an environment first, and then takes minutes; its targets are looked up",
    "pip": "installs; its extras are looked up",
    "python": "benchmarks, minutes to hours; their words are parsed",
    "torchrun": "tests/training/test_processes.py has two processes; the words for vmmr are parsed",
}

# Pages that take longer than the others, and that `make test-slow` runs; the rest of the tests only parses them.
SLOW = {"deploy.md", "evaluation.md", "study.md"}

# What stands for the reader's own on a page.
READER = {
    "balancing.md": """
import torch
last_shared_layer = torch.nn.Linear(4, 4)
features = last_shared_layer(torch.ones(2, 4))
make_loss, model_loss = features.square().mean(), 3 * features.abs().mean()
optimizer = torch.optim.SGD(last_shared_layer.parameters(), lr=0.1)
""",
    "bundle.md": """
from vmmr.taxonomy import Taxonomy
from pathlib import Path
path = Path("copy")
taxonomy, other = Taxonomy.from_rows(["Audi"], ["S4 Sedan"], [2007]), Taxonomy.from_rows(["BMW"], ["M3"], [2010])
""",
    "deploy.md": 'paths = ["car.jpg"]',
    "incremental.md": """
import torch
from vmmr.models import Backbone
backbone = Backbone("test_resnet", 3)
images, labels = torch.rand(12, 3, 32, 32) * 2 - 1, torch.arange(12) % 3
new_images, new_labels = torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8) % 2 + 3
image, second_opinion = images[:2], torch.zeros(2, 5)
dark_images, dark_labels = images * 0.2, labels
""",
    "training.md": """
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.recipes import recipe
from vmmr.training.progressive import Progressive
method = Progressive(ProgressiveNetwork(Backbone("test_resnet", 3), 3), recipe("pmal_published"))
""",
    "unknown.md": """
import torch
from vmmr.models import Backbone
network = Backbone("test_resnet", 3)
features = torch.rand(24, network.model.num_features)
logits = network.model.get_classifier()(features).detach()
batches = [(features, torch.arange(24) % 3, torch.arange(24))]
validation_scores = torch.linspace(-2, 2, 20)
""",
}


def _cars(folder: Path) -> None:
    """A folder with a table: three classes that differ in colour."""
    _drawn(
        folder,
        {
            "Audi,A4,2012,sedan": (200, 40, 40),
            "Audi,A6,2012,wagon": (40, 200, 40),
            "BMW,M3,2010,coupe": (40, 40, 200),
        },
    )


def _new_cars(folder: Path) -> None:
    _drawn(folder, {"Audi,Q9,2027,suv": (200, 200, 40), "VW,ID,2027,sedan": (200, 40, 200)})


def _night_cars(folder: Path) -> None:
    _drawn(
        folder,
        {
            "Audi,A4,2012,sedan": (50, 20, 20),
            "Audi,A6,2012,wagon": (20, 50, 20),
            "BMW,M3,2010,coupe": (20, 20, 50),
        },
    )


def _pictures_at_night(folder: Path) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for place in range(12):
        Image.fromarray(random.integers(0, 60, (36, 48, 3), dtype=np.uint8)).save(folder / f"{place}.png")


def _newer_cars(folder: Path) -> None:
    _drawn(folder, {"Fiat,Q,2028,suv": (40, 200, 200)})


def _drawn(folder: Path, classes: dict[str, tuple[int, int, int]]) -> None:
    random = np.random.default_rng(0)
    rows = ["path,make,model,year,body,viewpoint,split"]
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for number, (name, colour) in enumerate(classes.items()):
            for place in range(count):
                path = f"{split}-{number}-{place}.png"
                pixels = np.clip(np.array(colour) + random.integers(-40, 40, (36, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / path)
                rows.append(f"{path},{name},{'front' if place % 2 else 'rear'},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 36), (200, 40, 40)).save(path)


def _broken(path: Path) -> None:
    path.write_bytes(b"\xff\xd8\xff and no more")


def _pictures(folder: Path) -> None:
    for name in ("a.jpg", "b.png"):
        _picture(folder / name)


def _stanford(folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("Audi S4 Sedan 2007", "BMW M3 Coupe 2012"):
            _picture(folder / split / name / "0001.jpg")


def _weights(path: Path) -> None:
    save_file(Backbone("test_resnet", 10).model.state_dict(), path)


def _film(path: Path) -> None:
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in (60, 120, 180):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")))
        film.mux(stream.encode())


def _sightings(path: Path) -> None:
    path.write_text("frame,track,left,top,right,bottom\n0,7,0,0,40,30\n2,7,8,0,48,30\n", encoding="utf-8")


def _bundle(kind: str = "plain", **settings: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.manual_seed(0)
        taxonomy = Manifest.load("cars").taxonomy
        spec = ModelSpec(kind, "test_resnet", len(taxonomy), **settings)
        network = build_network(spec, taxonomy)
        tensors = (network.model if isinstance(network, Backbone) else network).state_dict()
        path.parent.mkdir(parents=True)
        write_bundle(path, Bundle(spec, taxonomy, Preprocess(32, 32), tensors, "# untrained"))

    return write


def _results(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cli.main(["evaluate", "runs/student/bundle", "--data", "cars", "--json", str(path)]) == 0


def _study(path: Path) -> None:
    """The study of the repository with fewer and smaller trainings."""
    said = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    said["base"] |= {"backbone": "test_resnet", "size": 32, "crop": 1.0, "epochs": 1, "batch_size": 8}
    said["base"] |= {"backbone_options": {}, "near_duplicates": False, "measure_every": 1, "frozen": "layer4"}
    said["rows"] = {name: said["rows"][name] for name in ("class alone", "parallel")}
    said["grid"]["weights"] = {name: said["grid"]["weights"][name] for name in ("AvgNorm",)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(said | {"seeds": [0]}, sort_keys=False), encoding="utf-8")


# What pages take for granted, by the name that they call it, each made from those above it.
GIVEN: dict[str, Callable[[Path], None]] = {
    "cars": _cars,
    "stanford": _cars,
    "STANFORD_CARS": _cars,
    "downloads/stanford": _stanford,
    "car.jpg": _picture,
    "van.jpg": _picture,
    "broken.jpg": _broken,
    "more_cars": _pictures,
    "new_cars": _new_cars,
    "newer_cars": _newer_cars,
    "night_cars": _night_cars,
    "night_pictures": _pictures_at_night,
    "pictures": _pictures,
    "film.mp4": _film,
    "sightings.csv": _sightings,
    "mobilenetv2_100.safetensors": _weights,
    "imagenet.safetensors": _weights,
    "examples/studies/levels.yaml": _study,
    "examples/studies/levels_rendered.yaml": _study,
    "runs/plain/bundle": _bundle(),
    "runs/robust/bundle": _bundle(standardise=True),
    "runs/student/bundle": _bundle(),
    "runs/teacher/bundle": _bundle("progressive"),
    "runs/s0.json": _results,
    "runs/s1.json": _results,
    "runs/s2.json": _results,
    "runs/plain.json": _results,
}


def _blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _commands(page: Path) -> list[list[str]]:
    """Words of each command of a page, without comments."""
    lines = "".join(text for language, text in _blocks(page) if language == "sh").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def _pages() -> list[ParameterSet]:
    """Pages that have something to run."""
    return [
        pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=pytest.mark.slow if page.name in SLOW else ())
        for page in PAGES
        if {"sh", "python"} & {language for language, _ in _blocks(page)}
    ]


@pytest.mark.parametrize("page", _pages())
def test_what_a_page_says_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [word for words in _commands(page) for word in _after(words, "--out")]
    text = page.read_text(encoding="utf-8")
    for name, make in GIVEN.items():
        wanted = name == "cars" or re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", text)
        if wanted and not any(Path(name).is_relative_to(word) for word in made):
            make(Path(name))
    names: dict[str, Any] = {}
    exec(READER.get(page.name, ""), names)
    for language, block in _blocks(page):
        if language == "sh":
            for line in block.splitlines():
                _run(shlex.split(line, comments=True))
        elif language == "python":
            _execute(block, names)


def _run(command: list[str]) -> None:
    match command:
        case []:
            pass  # a line of comment
        case ["vmmr", *words] if " ".join(command) not in NOT_RUN:
            small = TINY.get(words[0], TINY.get(" ".join(words[:2]), ""))
            assert cli.main([*words, *small.split()]) == 0, command
            left = [word for flag in ("--out", "--json", "--report") for word in _after(words, flag)]
            assert [word for word in left if not Path(word).exists()] == [], command
        case ["vmmr", *words] | ["torchrun", "--nproc-per-node", _, "$(which", "vmmr)", *words]:
            assert cli._parser(words).parse_args(words).verb == words[0]
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        case ["pip", *words]:
            extras = ",".join(re.findall(r"\[(.+)\]", " ".join(words))).split(",")
            known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert set(extras) <= set(known["optional-dependencies"]), command
        case ["python", "-c", program]:
            subprocess.run([sys.executable, "-c", program], check=True)
        case ["python", script, *words]:
            _parse(ROOT / script, words)
        case _:
            assert command[0] in ELSEWHERE, command


@pytest.mark.parametrize("name", sorted(SLOW))
def test_the_words_of_a_slow_page_are_understood(name: str) -> None:
    for program, *words in _commands(ROOT / "docs" / name):
        assert program != "vmmr" or cli._parser(words).parse_args(words).verb == words[0]


def _after(words: list[str], flag: str) -> list[str]:
    """What follows a flag, unless it is the next flag."""
    return [word for before, word in pairwise(words) if before == flag and word[:2] != "--"]


class _Parsed(Exception):
    """The words of a script are understood."""


def _parse(script: Path, words: list[str]) -> None:
    parse = argparse.ArgumentParser.parse_args

    def and_stop(parser: argparse.ArgumentParser, *args: Any) -> None:
        parse(parser, *args)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *words])
        patch.syspath_prepend(script.parent)  # as Python does for a script
        patch.setattr(argparse.ArgumentParser, "parse_args", and_stop)
        with pytest.raises(_Parsed):
            runpy.run_path(str(script), run_name="__main__")


def _execute(block: str, names: dict[str, Any]) -> None:
    for said, small in TINY_PYTHON.items():
        block = block.replace(said, small)
    if block.startswith(">>>"):
        example = doctest.DocTestParser().get_doctest(block, names, "page", None, 0)
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
    else:
        exec(block, names)


def test_no_exception_is_left_over() -> None:
    """What is excused, given or made smaller still stands on a page."""
    said = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in (*NOT_RUN, *TINY_PYTHON, *GIVEN) if name not in said] == []
    assert {words[0] for page in PAGES for words in _commands(page)} == {"vmmr", *ELSEWHERE}


def test_the_readme_shows_every_verb() -> None:
    shown = {words[1] for words in _commands(ROOT / "README.md") if words[0] == "vmmr"}
    assert shown == set(cli._VERBS) - {"demo"}  # which `make demo` runs
