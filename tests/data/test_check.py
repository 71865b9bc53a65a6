from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vmmr.data import check
from vmmr.data.check import check_manifest, duplicate_groups


@dataclass
class Rows:
    paths: Sequence[Path]
    labels: np.ndarray
    splits: np.ndarray
    class_names: Sequence[str] = ("a", "b", "c")

    def path_list(self) -> Sequence[Path]:
        return self.paths


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture with structure at all scales, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(layer.resize(size, Image.Resampling.BICUBIC), float) / 4
    return Image.fromarray(total.astype(np.uint8))


@pytest.fixture
def album(tmp_path: Path) -> list[Path]:
    first, second = scene(1), scene(2)
    first.save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    first.save(tmp_path / "2.png", compress_level=0)  # other bytes, same pixels
    first.save(tmp_path / "3.jpg", quality=60)
    first.crop((4, 3, 156, 118)).resize((131, 100)).save(tmp_path / "4.jpg")
    second.save(tmp_path / "5.jpg")
    scene(3).save(tmp_path / "6.jpg")
    (tmp_path / "7.jpg").write_bytes((tmp_path / "6.jpg").read_bytes()[:500])
    return [tmp_path / f"{i}{'.png' if i < 3 else '.jpg'}" for i in range(8)] + [tmp_path / "absent.jpg"]


def test_groups_by_bytes(album: list[Path]) -> None:
    assert duplicate_groups(album, near=False).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert duplicate_groups(album[::-1], near=False).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_groups_by_sight(album: list[Path]) -> None:
    assert duplicate_groups(album).tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert duplicate_groups([album[5], album[0], album[5], album[4]]).tolist() == [0, 1, 0, 1]
    assert duplicate_groups([]).tolist() == []
    assert duplicate_groups([album[8], album[7]]).tolist() == [0, 1]


def test_report(album: list[Path]) -> None:
    labels = np.array([0, 1, 0, 0, 0, 1, 1, 1, 0])
    splits = np.array(["train"] * 3 + ["test"] + ["train"] * 5)
    report = check_manifest(Rows(album, labels, splits))
    files = [str(path) for path in album]
    assert (report.rows, report.files, report.classes) == (9, 9, 3)
    assert report.splits == {"test": 1, "train": 8}
    assert report.balance == {"all": (4, 4.5, 5), "test": (1, 1, 1), "train": (4, 4, 4)}
    assert report.empty_classes == ["c"]
    assert report.absent_classes == {"test": ["b"], "train": []}
    assert report.missing == files[8:]
    assert list(report.unreadable) == [files[7]]
    assert "truncated" in report.unreadable[files[7]]
    assert report.exact.groups == [files[:3]]
    assert (report.exact.across_splits, report.exact.across_labels) == ([], [0])
    assert report.near.groups == [files[:5]]
    assert (report.near.across_splits, report.near.across_labels) == ([0], [0])
    assert json.loads(json.dumps(report.to_dict()))["near"]["across_splits"] == [0]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report)
    assert "1 groups of 5 files; 1 across splits, 1 across labels" in capture.get()


def test_report_without_near_and_without_images(album: list[Path]) -> None:
    rows = Rows(album, np.zeros(9, np.int64), np.full(9, ""))
    report = check_manifest(rows, near=False)
    assert len(report.exact.groups) == 1
    assert report.near.groups == []
    report = check_manifest(rows, images=False)
    assert report.missing == [str(album[8])]
    assert (report.unreadable, report.exact.groups, report.near.groups) == ({}, [], [])
    assert report.balance == {"all": (9, 9, 9), "": (9, 9, 9)}


def test_several_vehicles_in_one_file_are_no_duplicates_unless_parted(album: list[Path]) -> None:
    paths = [album[5], album[5], album[6], album[6]]
    splits = np.array(["train", "train", "train", "test"])
    report = check_manifest(Rows(paths, np.array([0, 1, 1, 1]), splits))
    assert (report.rows, report.files) == (4, 2)
    assert report.exact.groups == [[str(album[6])]]
    assert (report.exact.across_splits, report.exact.across_labels) == ([0], [])


def test_nothing_to_check() -> None:
    report = check_manifest(Rows([], np.zeros(0, np.int64), np.zeros(0, np.str_)))
    assert (report.rows, report.balance, report.empty_classes) == (0, {}, ["a", "b", "c"])


def test_unknown_classes_are_counted_nowhere(album: list[Path]) -> None:
    report = check_manifest(Rows(album[5:7], np.array([-1, 2]), np.array(["", ""])))
    assert report.balance == {"all": (1, 1, 1), "": (1, 1, 1)}
    assert report.empty_classes == ["a", "b"]


def test_different_scenes_are_no_duplicates(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(40)]
    for i, path in enumerate(paths):
        scene(100 + i).save(path)
    assert len(set(duplicate_groups(paths).tolist())) == 40


def test_flat_images_are_compared_exactly_only(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, value in zip(paths, (0, 0, 1, 255), strict=True):
        Image.new("RGB", (50, 40), (value,) * 3).save(path)
    assert duplicate_groups(paths).tolist() == [0, 0, 1, 2]


def test_candidates_are_all_pairs_that_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 60, np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (10, 600), np.uint64)
    keep = np.arange(10)[:, None] < rng.integers(0, 11, 600)
    hashes = np.bitwise_xor.reduce(np.where(keep, flips, np.uint64(0)), axis=0) ^ np.repeat(seeds, 10)
    distance = [[(int(a) ^ int(b)).bit_count() for b in hashes] for a in hashes]

    def close(most: int) -> list[tuple[int, int]]:
        return [(i, j) for i in range(600) for j in range(i + 1, 600) if distance[i][j] <= most]

    def found() -> list[tuple[int, int]]:
        return sorted(
            (int(i), int(j)) for left, right in check._candidates(hashes) for i, j in zip(left, right, strict=True)
        )

    assert found() == close(12)
    monkeypatch.setattr(check, "_ALL_PAIRS", 10)
    assert found() == close(6)  # once each, although pairs meet in several bands


def test_exact_duplicates_of_stanford_cars(shared: Path) -> None:
    root = shared / "data" / "stanford-cars-160"
    paths = sorted(root.glob("*/*/*.jpg"))
    ids = duplicate_groups(paths, near=False)
    assert len(ids) == 12_208
    sizes = np.bincount(ids)
    assert sizes.max() == 2
    twins = [[paths[row] for row in np.flatnonzero(ids == group)] for group in np.flatnonzero(sizes == 2)]
    assert len(twins) == 22
    assert sum(a.parts[-3] != b.parts[-3] for a, b in twins) == 9
    assert sum(a.parent.name != b.parent.name for a, b in twins) == 21


def test_near_duplicates_of_stanford_cars(shared: Path) -> None:
    root = shared / "data" / "stanford-cars-160"
    folders = ("145_", "147_", "181_", "184_", "096_", "097_", "047_")
    paths = [path for path in sorted(root.glob("*/*/*.jpg")) if path.parent.name.startswith(folders)]
    ids = duplicate_groups(paths)
    twins = {
        tuple(sorted(paths[row].stem for row in np.flatnonzero(ids == group)))
        for group in np.flatnonzero(np.bincount(ids) > 1)
    }
    # The same photographs, cut to slightly different boxes: each pair was looked at.
    assert twins == {("04922", "05994"), ("02952", "03437"), ("02574", "04878"), ("01671", "02712")}
