"""Cars that differ in colour, a bundle that knows the old ones, and pictures of new ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vmmr
from vmmr.cli import main
from vmmr.config import TrainConfig
from vmmr.recipes import recipe
from vmmr.training.run import train

Colours = dict[str, tuple[int, int, int]]

OLD: Colours = {"Audi,A4,2012": (200, 40, 40), "Audi,A6,2012": (40, 200, 40), "BMW,M3,2010": (40, 40, 200)}
NEW: Colours = {"Audi,Q9,2027": (200, 200, 40), "VW,ID,2027": (200, 40, 200)}


def draw(folder: Path, cars: Colours, counts: dict[str, int], seed: int = 1) -> Path:
    """Pictures of cars that differ in colour, as a folder with a manifest."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "make", "model", "year", "split"])
        for split, count in counts.items():
            for number, (name, colour) in enumerate(cars.items()):
                for place in range(count):
                    path = f"{split}-{number}-{place}.png"
                    pixels = np.clip(np.array(colour) + random.integers(-40, 40, (36, 48, 3)), 0, 255)
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
                    rows.writerow([path, *name.split(","), split])
    return folder


def pictures(folder: Path, split: str = "test") -> list[Path]:
    """Those of a split, in order."""
    return sorted(folder.glob(f"{split}-*.png"))


def trained(cars: Path, out: Path, config: TrainConfig) -> Path:
    """The bundle of a small and short run."""
    config = config.with_(backbone="test_resnet", size=32, crop=1.0, batch_size=8, near_duplicates=False)
    train(config.with_(lr=5e-3, trunk_lr=5e-3), cars, out, progress=False, test=False)
    return out / "bundle"


def require_alike(bundle: Path, form: str, cars: Path, artifact: Path) -> None:
    """What is exported answers the test pictures of `cars` as the bundle does."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    assert main(["export", str(bundle), "--format", form, "--out", str(artifact)]) == 0
    shown = pictures(cars)
    for found, wanted in zip(vmmr.load(artifact)([*shown]), vmmr.load(bundle)([*shown]), strict=True):
        assert (found.make, found.known, found.reason) == (wanted.make, wanted.known, wanted.reason)
        assert found.confidence == pytest.approx(wanted.confidence, abs=1e-4)


@pytest.fixture(scope="session")
def old_cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("old") / "cars", OLD, {"train": 14, "val": 6, "test": 4}, seed=0)


@pytest.fixture(scope="session")
def new_cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("new") / "cars", NEW, {"train": 12, "test": 4})


@pytest.fixture(scope="session")
def known(old_cars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a detector by neighbours, of which a class has more than the detector looks at."""
    return trained(old_cars, tmp_path_factory.mktemp("run"), recipe("plain").with_(unknown="knn_pca", epochs=4))
