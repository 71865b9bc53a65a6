"""What the tests share."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

VALIDATION = ("0.png", "5.png", "9.png")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `vmmr bench` remembers stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, annotation files and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("VMMR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the real data is not here; set VMMR_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def cloud() -> tuple[Tensor, Tensor]:
    """Features [40, 6] of four classes, of any length, and their labels."""
    import torch

    random = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    means = torch.rand(4, 6, generator=random)
    features = means[labels] + 0.2 * torch.randn(40, 6, generator=random)
    return features * (1 + torch.arange(40))[:, None], labels


@pytest.fixture(scope="session")
def tiny_cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train and test pictures of three classes that differ in colour: make/model/year below each split."""
    folder = tmp_path_factory.mktemp("cars")
    random = np.random.default_rng(0)
    classes = {"Audi/A4/2012": (200, 40, 40), "Audi/A6/2012": (40, 200, 40), "BMW/M3/2010": (40, 40, 200)}
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in classes.items():
            home = folder / split / name
            home.mkdir(parents=True)
            for number in range(count):
                noise = random.integers(-40, 40, (36, 48, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(home / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished plain run on tiny_cars: bundle/, metrics.json, config.yaml, log.csv."""
    from vmmr.recipes import recipe
    from vmmr.training.run import train

    out = tmp_path_factory.mktemp("runs") / "plain"
    config = recipe("plain").with_(
        backbone="test_resnet", size=32, crop=1.0, epochs=4, batch_size=8, lr=5e-3, trunk_lr=5e-3, near_duplicates=False
    )
    train(config, tiny_cars, out, progress=False)
    return out


@pytest.fixture(scope="session")
def tiny_denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a progressive network with weights at random: it kept its decoders."""
    import torch

    from vmmr.data.preprocess import Preprocess
    from vmmr.export.bundle import Bundle, ModelSpec, build_network, write_bundle
    from vmmr.taxonomy import Taxonomy

    torch.manual_seed(0)
    spec = ModelSpec("progressive", "test_resnet", 2)
    network = build_network(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    cars = Taxonomy.from_rows(["Audi", "BMW"], ["A4", "M3"])
    bundle = Bundle(spec, cars, Preprocess(height=32, width=64, crop=0.5), network.state_dict(), "# A card\n")
    return write_bundle(tmp_path_factory.mktemp("denoiser") / "bundle", bundle)


@pytest.fixture(scope="session")
def tiny_table(tiny_cars: Path) -> Path:
    """tiny_cars as a manifest in which three training pictures of each class are the split val."""
    table = tiny_cars.with_name(f"{tiny_cars.name}.csv")
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "make", "model", "year", "split"])
        for path in sorted(tiny_cars.rglob("*.png")):
            split, make, model, year, name = path.relative_to(tiny_cars).parts
            rows.writerow([path, make, model, year, "val" if split == "train" and name in VALIDATION else split])
    return table


@pytest.fixture(scope="session")
def tiny_known(tiny_run: Path, tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tiny_run that says what it does not know, by the neighbours of its features."""
    from vmmr.cli import main

    folder = shutil.copytree(tiny_run / "bundle", tmp_path_factory.mktemp("known") / "bundle")
    words = ["calibrate", str(folder), "--data", str(tiny_table), "--accept", "0.9", "--shortest", "20"]
    assert main(words) == 0
    return Path(folder)
