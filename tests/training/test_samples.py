from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.errors import DataError, LeakageError
from vmmr.training.samples import Samples, open_samples

Settings = Callable[..., TrainConfig]


def _manifest(
    pictures: Path, folder: Path, rows: list[tuple[int, str]], copies: dict[int, str] | None = None
) -> Manifest:
    """Pictures by number, each with its split; `copies` adds the same bytes under another name."""
    lines = ["path,make,model,split"]
    for number, split in rows:
        shutil.copy(pictures / f"{number}.png", folder / f"{number}.png")
        lines.append(f"{number}.png,Make,Model{number % 4},{split}")
    for number, split in (copies or {}).items():
        shutil.copy(pictures / f"{number}.png", folder / f"copy{number}.png")
        lines.append(f"copy{number}.png,Make,Model{number % 4},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return Manifest.load(folder)


def test_a_given_validation_split_is_taken_as_it_is(samples: Samples) -> None:
    assert (len(samples.train), len(samples.validation), samples.dropped) == (24, 8, 0)
    assert np.bincount(samples.train.labels).tolist() == [6, 6, 6, 6]
    assert samples.preprocess.resized_size == (36, 36)


@pytest.mark.parametrize("word", ["train", ""])
def test_validation_is_carved_and_copies_of_test_images_leave(
    word: str, pictures: Path, tiny: Settings, tmp_path: Path
) -> None:
    rows = [(n, word) for n in range(24)] + [(n, "test") for n in (32, 33)]
    manifest = _manifest(pictures, tmp_path, rows, copies={32: word, 5: "test"})
    samples = open_samples(manifest, tiny(val_fraction=0.25))
    assert samples.dropped == 2  # the copy of 32, and 5 whose copy is tested
    assert len(samples.train) + len(samples.validation) == 23
    assert 3 <= len(samples.validation) <= 8


def test_rows_that_were_never_used_are_not_called_dropped(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    rows = [(n, "train") for n in range(16)] + [(n, "") for n in range(16, 20)] + [(32, "test")]
    samples = open_samples(_manifest(pictures, tmp_path, rows), tiny(val_fraction=0.25))
    assert samples.dropped == 0
    assert len(samples.train) + len(samples.validation) == 16


def test_without_validation_images_nothing_can_be_selected(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    manifest = _manifest(pictures, tmp_path, [(n, "train") for n in range(8)])
    with pytest.raises(DataError, match="no image is left to validate"):
        open_samples(manifest, tiny(val_fraction=0.0))


def test_test_images_are_never_trained_on(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    with pytest.raises(LeakageError):
        open_samples(_manifest(pictures, tmp_path, [(n, "test") for n in range(8)]), tiny())


def test_who_is_where_has_a_hash(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    manifest = _manifest(pictures, tmp_path, [(n, "train") for n in range(24)])
    splits = [open_samples(manifest, tiny(val_fraction=0.25, seed=seed)).splits for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
