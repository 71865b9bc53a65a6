"""Who learns, who selects, who judges: validation without leaks, and proof that there are none.

Rows that must stay together form one group: the same picture (the duplicate groups of `vmmr.data.check`), the same
file, the same `group` or the same `vehicle_id`, and whatever these chain together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vmmr.data.columns import words_of
from vmmr.data.manifest import Manifest
from vmmr.errors import ConfigError, LeakageError, ManifestError

__all__ = [
    "apply_splits",
    "carve_validation",
    "drop_test_duplicates",
    "groups_of",
    "require_no_leakage",
    "split_hash",
    "splits_to_json",
    "training_view",
]

_FORMAT = "vmmr-splits"
_VERSION = 1


def groups_of(manifest: Manifest, groups: ArrayLike | None = None) -> NDArray[np.int64]:
    """[N] the group of every row: connected by `groups` ([N] whole numbers, negative for none), file, `group` or
    `vehicle_id`. Files are compared by their path in the table."""
    n = len(manifest)
    keys = [words_of(manifest.table["path"].combine_chunks().dictionary_encode())[1]]
    for name in ("group", "vehicle_id"):
        words, codes = words_of(manifest.table[name])
        keys.append(np.where(codes == (words.index("") if "" in words else -1), -1, codes))
    if groups is not None:
        given = np.asarray(groups, dtype=np.int64)
        if given.shape != (n,):
            raise ConfigError("groups need one number a row", got=given.shape, do=f"the shape ({n},)")
        keys.append(np.where(given >= 0, np.unique(given, return_inverse=True)[1], -1))
    rows, nodes, size = [], [], n
    for key in keys:
        some = np.flatnonzero(key >= 0)
        rows.append(some)
        nodes.append(key[some] + size)
        size += int(key.max(initial=-1)) + 1
    row, node = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, node)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:n].astype(np.int64)


def carve_validation(
    manifest: Manifest, fraction: float = 0.1, seed: int = 0, groups: ArrayLike | None = None
) -> Manifest:
    """The manifest with about `fraction` of every class's training rows (halves up) made "val".

    Only training rows move; where no row is "train", those without a split become it first. Whole groups move
    (`groups_of`), and a class never loses its last group. Which ones is decided by a hash of seed and path, so it
    depends neither on the order of the rows nor on the folder the data lies in. Rows whose groups span classes count
    for the lowest label. Raises ConfigError where there are validation rows already.
    """
    if not 0 <= fraction < 1:
        raise ConfigError("fraction of validation must lie in [0, 1)", got=fraction)
    splits = _with_train(manifest.splits)
    if (splits == "val").any():
        raise ConfigError("there are validation rows already", got=int((splits == "val").sum()))
    rows = np.flatnonzero(splits == "train")
    part = manifest.select(rows)
    labels = part.labels
    _, group = np.unique(groups_of(manifest, groups)[rows], return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    size = np.bincount(group, minlength=count)
    home = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(home, group, labels)
    rank = np.full(count, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(rank, group, _hashes(part, seed))

    order = np.lexsort((rank, home))
    home, size = home[order], size[order]
    first = np.flatnonzero(np.r_[True, home[1:] != home[:-1]]) if count else np.zeros(0, dtype=np.int64)
    last = np.r_[first[1:], count][: len(first)] - 1
    klass = np.repeat(np.arange(len(first)), np.diff(np.r_[first, count]))
    target = np.floor(fraction * np.bincount(klass, weights=size) + 0.5)[klass]
    # The groups of a class are taken in order until its share is met as nearly as whole groups allow.
    # A group too big for its class's share is passed over instead of blocking the ones behind it.
    fits = size <= target
    fits[last] = False
    before = np.cumsum(np.where(fits, size, 0)) - np.where(fits, size, 0)
    start = before[first][klass] if count else before
    moved = np.zeros(count, dtype=np.bool_)
    moved[order] = fits & (before - start + size / 2 <= target)

    validation = moved[group]
    # Groups that span classes can still take all rows of one: give it back what it lost.
    kept = np.bincount(labels[~validation] + 1, minlength=len(part.taxonomy) + 1)
    robbed = np.isin(labels, np.flatnonzero(kept[1:] == 0))
    validation &= ~np.isin(group, group[robbed & validation])
    splits[rows[validation]] = "val"
    return manifest.with_splits(splits)


def drop_test_duplicates(manifest: Manifest, groups: ArrayLike | None = None) -> Manifest:
    """The manifest where rows of train and val that share a group with a test row have split "": they are not used.

    Raises LeakageError where nothing would be left to train on.
    """
    splits = _with_train(manifest.splits)
    group = groups_of(manifest, groups)
    shown = np.isin(group, group[splits == "test"]) & np.isin(splits, ("train", "val"))
    if shown.any() and not (splits[~shown] == "train").any():
        raise LeakageError("every training image is a test image", got=f"{int(shown.sum())} rows")
    splits[shown] = ""
    return manifest.with_splits(splits)


def training_view(manifest: Manifest) -> Manifest:
    """The rows a model may learn from: those of split "train", or all of a manifest without any split.

    Raises LeakageError where all there is to learn from are test images, ManifestError where there is nothing.
    """
    splits = _with_train(manifest.splits)
    if (splits == "train").any():
        return manifest.select(splits == "train")
    if (splits == "test").any():
        raise LeakageError(
            "no training rows, only test images", got=repr(manifest), do="give the training split; never train on test"
        )
    raise ManifestError("no training rows", got=repr(manifest), do="check the column 'split'")


def require_no_leakage(train: Manifest, test: Manifest, groups: tuple[ArrayLike, ArrayLike] | None = None) -> None:
    """Raise LeakageError, naming examples, where an image of `test` is also in `train`.

    The same file counts, whatever it is called (links are followed); so do equal numbers in `groups` (one array for
    the rows of each, negative for none) and, for two parts of one folder, an equal `group` or `vehicle_id`.
    """
    found = _shared(_files(train), _files(test), test, "same file")
    if groups is not None:
        found += _shared(_numbers(groups[0], train), _numbers(groups[1], test), test, "same picture")
    # Two data sets may both have a vehicle 17.
    if train.root.resolve() == test.root.resolve():
        for name in ("group", "vehicle_id"):
            found += _shared(train.column(name), test.column(name), test, f"same {name}")
    if found:
        raise LeakageError(
            f"{len(found)} test images are in training",
            got=", ".join(found[:5]),
            do="drop them with vmmr.data.splits.drop_test_duplicates or split again",
        )


def split_hash(manifest: Manifest) -> str:
    """SHA-256 of which path is in which split, to stand beside every result. The order of the rows does not matter.

    >>> m = Manifest.from_columns({"path": ["a", "b"], "model": ["x", "x"], "split": ["train", "test"]})
    >>> split_hash(m) == split_hash(m.select([1, 0])), split_hash(m) == split_hash(m.with_splits(["test", "train"]))
    (True, False)
    """
    return _digest(_by_path(manifest))


def splits_to_json(manifest: Manifest) -> str:
    """The splits as a text: hashes of paths by split. It tells no path, and is checked when applied."""
    table = _by_path(manifest)
    data = {"format": _FORMAT, "version": _VERSION, "sha256": _digest(table), "split": table}
    return json.dumps(data, indent=0, sort_keys=True) + "\n"


def apply_splits(manifest: Manifest, text: str) -> Manifest:
    """The manifest with the splits of `splits_to_json`. Raises ManifestError unless both know the same paths."""
    try:
        data = json.loads(text)
        table = data["split"]
        if data["format"] != _FORMAT or data["version"] != _VERSION or _digest(table) != data["sha256"]:
            raise ValueError("format, version or checksum differ")
        splits = [str(table[key]) for key in _keys(manifest)]
    except KeyError as error:
        raise ManifestError("the splits do not know a path of the manifest", got=error) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError("no text of splits_to_json", got=error) from error
    applied = manifest.with_splits(splits)
    if len(_by_path(applied)) != len(table):
        raise ManifestError("the splits know paths that the manifest has not", got=len(table) - len(_by_path(applied)))
    return applied


def _with_train(splits: NDArray[np.str_]) -> NDArray[np.str_]:
    """Splits wide enough for any name; "" means "train" where nothing else does."""
    wide = splits.astype("<U32" if splits.itemsize < 128 else splits.dtype)
    if not (wide == "train").any():
        wide[wide == ""] = "train"
    return wide


def _paths(manifest: Manifest) -> Iterable[str]:
    """Paths as they stand in the table, absolute ones below the root made relative: equal wherever the data lies."""
    below = f"{manifest.root.resolve()}/"
    return (path.removeprefix(below) for path in manifest.table["path"].to_pylist())


def _hashes(manifest: Manifest, seed: int) -> NDArray[np.uint64]:
    salt = str(seed).encode()
    data = b"".join(
        hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8, key=salt).digest()
        for path in _paths(manifest)
    )
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def _keys(manifest: Manifest) -> list[str]:
    return [
        hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=12).hexdigest() for path in _paths(manifest)
    ]


def _by_path(manifest: Manifest) -> dict[str, str]:
    keys, splits = _keys(manifest), manifest.splits.tolist()
    table = dict(zip(keys, splits, strict=True))
    if any(table[key] != split for key, split in zip(keys, splits, strict=True)):
        raise LeakageError("one image is in two splits", do="keep the rows of an image together (group or path)")
    return table


def _digest(table: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{key} {split}" for key, split in sorted(table.items())).encode()).hexdigest()


def _files(manifest: Manifest) -> NDArray[np.str_]:
    """What tells files apart: device and inode, or the resolved path of a file that is not there."""
    names = []
    for path in manifest.path_list():
        try:
            status = os.stat(path)  # noqa: PTH116 (a Path for each row costs more than the call)
            names.append(f"{status.st_dev}:{status.st_ino}")
        except OSError:
            names.append(os.path.realpath(path))
    return np.asarray(names, dtype=np.str_)


def _numbers(groups: ArrayLike, manifest: Manifest) -> NDArray[np.str_]:
    given = np.asarray(groups, dtype=np.int64)
    if given.shape != (len(manifest),):
        raise ConfigError("groups need one number a row", got=given.shape, do=f"the shape ({len(manifest)},)")
    return np.where(given < 0, "", given.astype(np.str_))


def _shared(train: NDArray[np.str_], test: NDArray[np.str_], rows: Manifest, why: str) -> list[str]:
    hits = np.flatnonzero(np.isin(test, train) & (test != ""))
    return [f"{rows.table['path'][int(i)].as_py()} ({why})" for i in hits]
