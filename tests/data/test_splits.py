"""Splits: nothing leaks, nothing depends on the order of rows, and a leak that was planted is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.data.datasets import stanford_cars
from vmmr.data.manifest import Manifest
from vmmr.data.splits import (
    apply_splits,
    carve_validation,
    drop_test_duplicates,
    groups_of,
    require_no_leakage,
    split_hash,
    splits_to_json,
    training_view,
)
from vmmr.errors import ConfigError, LeakageError, ManifestError

rows = st.lists(
    st.tuples(
        st.integers(0, 3),  # class
        st.sampled_from(["train", "train", "test"]),
        st.integers(-1, 6),  # duplicate group
        st.sampled_from(["", "", "", "g1", "g2"]),
        st.sampled_from(["", "", "", "v1", "v2"]),
    ),
    max_size=40,
)


def build(data: list[tuple[int, str, int, str, str]], root: Path | str = ".") -> tuple[Manifest, np.ndarray]:
    columns = {
        "path": [f"{i}.jpg" for i in range(len(data))],
        "model": [f"m{row[0]}" for row in data],
        "split": [row[1] for row in data],
        "group": [row[3] for row in data],
        "vehicle_id": [row[4] for row in data],
    }
    return Manifest.from_columns(columns, root), np.array([row[2] for row in data], dtype=np.int64)


def components(manifest: Manifest, groups: np.ndarray) -> list[frozenset[int]]:
    """Naive: join sets of rows until nothing changes."""
    keys: dict[tuple[str, Any], set[int]] = {}
    for i in range(len(manifest)):
        keys.setdefault(("path", manifest.table["path"][i].as_py()), set()).add(i)
        if groups[i] >= 0:
            keys.setdefault(("n", int(groups[i])), set()).add(i)
        for name in ("group", "vehicle_id"):
            if manifest.column(name)[i]:
                keys.setdefault((name, manifest.column(name)[i]), set()).add(i)
    sets = list(keys.values())
    for _ in sets:
        merged: list[set[int]] = []
        for fresh in sets:
            touching = [s for s in merged if s & fresh]
            merged = [s for s in merged if not s & fresh] + [fresh.union(*touching)]
        sets = merged
    return [frozenset(s) for s in sets]


@settings(deadline=None)
@given(rows)
def test_groups_recomputed(data: list[tuple[int, str, int, str, str]]) -> None:
    manifest, groups = build(data)
    found = groups_of(manifest, groups)
    assert {frozenset(np.flatnonzero(found == g).tolist()) for g in set(found.tolist())} == set(
        components(manifest, groups)
    )


@settings(deadline=None, max_examples=200)
@given(rows, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), st.integers(0, 5), st.randoms())
def test_validation_carved(data: Any, fraction: float, seed: int, random: Any) -> None:
    manifest, groups = build(data)
    if not any(row[1] == "train" for row in data):
        return
    carved = carve_validation(manifest, fraction, seed, groups)
    before, after = manifest.splits, carved.splits
    assert ((before == after) | ((before == "train") & (after == "val"))).all()
    whole = components(manifest, groups)
    for component in whole:
        rows_of = [i for i in component if before[i] == "train"]
        assert len({str(after[i]) for i in rows_of}) <= 1
    for label in set(manifest.labels[before == "train"].tolist()):
        assert ((manifest.labels == label) & (after == "train")).any()
    order = list(range(len(data)))
    random.shuffle(order)
    again = carve_validation(manifest.select(order), fraction, seed, groups[order])
    assert again.splits.tolist() == after[order].tolist()


def test_single_images_give_exactly_the_share() -> None:
    counts = [1, 2, 4, 5, 10, 24, 25, 100]
    labels = np.repeat(np.arange(len(counts)), counts)
    manifest = Manifest.from_columns({"path": [f"{i}" for i in range(len(labels))], "model": [f"m{i}" for i in labels]})
    carved = carve_validation(manifest, 0.1, 0)
    assert np.bincount(labels[carved.splits == "val"], minlength=8).tolist() == [0, 0, 0, 1, 1, 2, 3, 10]
    assert set(carved.splits.tolist()) == {"train", "val"}
    others = carve_validation(manifest, 0.1, 1)
    assert others.splits.tolist() != carved.splits.tolist()


def test_validation_is_the_same_wherever_the_data_lies(tmp_path: Path) -> None:
    paths = [f"c/{i}.jpg" for i in range(50)]
    here = Manifest.from_columns({"path": paths, "model": ["m"] * 50})
    there = Manifest.from_columns({"path": [str(tmp_path / p) for p in paths], "model": ["m"] * 50}, tmp_path)
    assert carve_validation(here).splits.tolist() == carve_validation(there).splits.tolist()
    assert split_hash(carve_validation(here)) == split_hash(carve_validation(there))


def test_large_groups_come_near_the_share() -> None:
    ids = [f"v{i // 30}" for i in range(1000)]
    manifest = Manifest.from_columns({"path": [str(i) for i in range(1000)], "model": ["m"] * 1000, "vehicle_id": ids})
    carved = carve_validation(manifest, 0.2)
    assert abs(int((carved.splits == "val").sum()) - 200) <= 15


def test_refusals_of_carving() -> None:
    manifest = Manifest.from_columns({"path": ["a", "b"], "model": ["m", "m"], "split": ["train", "val"]})
    with pytest.raises(ConfigError, match="already"):
        carve_validation(manifest)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            carve_validation(manifest.with_splits(["train", "train"]), fraction)
    with pytest.raises(ConfigError, match="groups"):
        groups_of(manifest, [1])
    empty = manifest.select([False, False])
    assert len(carve_validation(empty)) == 0


def test_duplicates_of_test_images_are_dropped() -> None:
    manifest = Manifest.from_columns(
        {
            "path": ["a", "b", "c", "d", "e", "a"],
            "model": ["m"] * 6,
            "split": ["train", "", "test", "val", "train", "test"],
            "vehicle_id": ["", "v", "v", "", "", ""],
        }
    )
    dropped = drop_test_duplicates(manifest, [0, 1, 2, 2, 3, 4])
    assert dropped.splits.tolist() == ["", "", "test", "", "train", "test"]
    assert training_view(dropped).table["path"].to_pylist() == ["e"]
    assert carve_validation(dropped, 0.5).splits.tolist() == dropped.splits.tolist()  # what was dropped stays dropped
    with pytest.raises(LeakageError, match="every training image"):
        drop_test_duplicates(manifest, [0, 0, 0, 0, 0, 0])


def test_only_test_marked() -> None:
    manifest = Manifest.from_columns({"path": list("abc"), "model": ["m"] * 3, "split": ["", "", "test"]})
    assert drop_test_duplicates(manifest, [0, 1, 1]).splits.tolist() == ["train", "", "test"]
    assert training_view(manifest).table["path"].to_pylist() == ["a", "b"]


def test_the_training_view_refuses_test_images() -> None:
    manifest = Manifest.from_columns({"path": list("abc"), "model": ["m"] * 3, "split": ["train", "val", "test"]})
    assert training_view(manifest).splits.tolist() == ["train"]
    assert len(training_view(manifest.with_splits([""] * 3))) == 3
    with pytest.raises(LeakageError, match="never train on test"):
        training_view(manifest.split("test"))
    with pytest.raises(ManifestError, match="no training rows"):
        training_view(manifest.split("val"))


def test_planted_leaks_are_found(tmp_path: Path) -> None:
    for name in ("train/1.jpg", "train/2.jpg", "test/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def part(*paths: str, **more: list[str]) -> Manifest:
        return Manifest.from_columns({"path": list(paths), "model": ["m"] * len(paths), **more}, tmp_path)

    train = part("train/1.jpg", "train/2.jpg")
    require_no_leakage(train, part("test/3.jpg"))
    (tmp_path / "test/soft.jpg").symlink_to(tmp_path / "train/1.jpg")
    (tmp_path / "test/hard.jpg").hardlink_to(tmp_path / "train/2.jpg")
    (tmp_path / "alias").symlink_to(tmp_path / "train")
    for path in ("test/soft.jpg", "test/hard.jpg", "alias/1.jpg", "test/../train/2.jpg", str(tmp_path / "train/1.jpg")):
        with pytest.raises(LeakageError, match="1 test images are in training") as caught:
            require_no_leakage(train, part("test/3.jpg", path))
        assert path in str(caught.value)
    with pytest.raises(LeakageError, match="same file"):  # even where the file is not there
        require_no_leakage(part("train/none.jpg"), part("test/../train/none.jpg"))


def test_leaks_by_group_and_vehicle(tmp_path: Path) -> None:
    columns = {"path": ["a", "b", "c"], "model": ["m"] * 3, "vehicle_id": ["v1", "v2", "v1"], "group": ["", "g", ""]}
    manifest = Manifest.from_columns(columns, tmp_path)
    with pytest.raises(LeakageError, match=r"c \(same vehicle_id\)"):
        require_no_leakage(manifest.select([0]), manifest.select([1, 2]))
    require_no_leakage(manifest.select([0, 2]), manifest.select([1]), ([0, -1], [-1]))
    with pytest.raises(LeakageError, match=r"b \(same picture\)"):
        require_no_leakage(manifest.select([0, 2]), manifest.select([1]), ([0, 5], [5]))
    # Another data set may count its vehicles from one, too.
    other = Manifest.from_columns(columns, tmp_path / "other")
    require_no_leakage(manifest.select([0]), other.select([2]))


@settings(deadline=None)
@given(rows, st.randoms())
def test_splits_as_json(data: Any, random: Any) -> None:
    manifest, _ = build(data)
    text = splits_to_json(manifest)
    order = list(range(len(data)))
    random.shuffle(order)
    bare = manifest.with_splits([""] * len(data)).select(order)
    assert apply_splits(bare, text).splits.tolist() == manifest.splits[order].tolist()
    assert split_hash(manifest) == split_hash(manifest.select(order)) == json.loads(text)["sha256"]


def test_damaged_splits_are_refused() -> None:
    manifest = Manifest.from_columns({"path": ["a", "b"], "model": ["m"] * 2, "split": ["train", "test"]})
    text = splits_to_json(manifest)
    for bad in ("", "[]", "{}", "3", text.replace("train", "val"), text.replace("vmmr-splits", "x")):
        with pytest.raises(ManifestError):
            apply_splits(manifest, bad)
    with pytest.raises(ManifestError, match="the manifest has not"):
        apply_splits(manifest.select([0]), text)
    with pytest.raises(ManifestError, match="do not know"):
        apply_splits(Manifest.from_columns({"path": ["c"], "model": ["m"]}), text)
    twice = Manifest.from_columns({"path": ["a", "a"], "model": ["m"] * 2, "split": ["train", "test"]})
    with pytest.raises(LeakageError, match="two splits"):
        split_hash(twice)


def test_real_cars(shared: Path) -> None:
    manifest = stanford_cars.read(shared / "data/stanford-cars-160")
    carved = carve_validation(manifest)
    per_class = np.bincount(manifest.split("train").labels)
    assert np.array_equal(np.bincount(carved.split("val").labels), np.floor(per_class * 0.1 + 0.5))
    assert np.array_equal(carved.splits == "test", manifest.splits == "test")
    require_no_leakage(training_view(carved), carved.split("test"))
