"""A data set of a few tiny pictures that a tiny network can learn, and settings to match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.training.samples import Samples, open_samples


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with manifest.csv: 4 classes, each of its own colour; 24 train, 8 val and 4 test rows."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    lines = ["path,make,model,split"]
    for number in range(36):
        label = number % 4
        colour = np.array([200 * (label & 1), 100 * (label & 2), 90]) + 20
        pixels = np.clip(colour + random.integers(-20, 20, (36, 36, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,Make,Model{label},{'train' if number < 24 else 'val' if number < 32 else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def tiny(**changes: Any) -> TrainConfig:
    """Settings for the pictures: three batches of eight in each of two epochs."""
    base: dict[str, Any] = {"backbone": "test_resnet", "size": 32, "crop": 32 / 36, "batch_size": 8, "epochs": 2}
    return TrainConfig(**{**base, "near_duplicates": False, "lr": 0.01, "channels_last": False, **changes})


@pytest.fixture(name="tiny", scope="session")
def _tiny() -> Any:
    return tiny


@pytest.fixture(scope="session")
def samples(pictures: Path) -> Samples:
    return open_samples(Manifest.load(pictures), tiny())


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Bit-exactness is promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
