"""What is wrong with a set of images, before it is learned from.

Files that are missing or cannot be decoded, classes without images, and duplicates: the same photograph twice, under
two labels or on both sides of a split, where it makes a test score worthless.

Duplicates are exact (the same decoded pixels) or near (the same photograph scaled, compressed or cut a little
differently). Near ones are found in two steps, so that no more than a sliver of all pairs is looked at closely:

1. candidates: perceptual hashes (64 bits, discrete cosine transform, package imagehash) at a Hamming distance of 12
   or less. Above 50,000 images 6 or less, found by bands of bits: still every re-compressed copy, fewer changed cuts.
2. proof: thumbnails of 32 x 32 pixels, high-pass filtered, correlated over small shifts and changes of scale.
   Lookalikes in the same pose share their outline, but not this detail. Of the 32 pairs above 0.8 on 12,208 crops of
   Stanford Cars 31 are, by eye, one photograph; below it studio pictures of different vehicles become common.
"""

from __future__ import annotations

import hashlib
import itertools
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import imagehash
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vmmr.data.decode import decode
from vmmr.data.pixels import thread_map
from vmmr.errors import ImageError

__all__ = ["Duplicates", "Report", "check_manifest", "duplicate_groups"]

_ALL_PAIRS = 50_000  # up to so many images every pair of hashes is compared
_FAR, _CLOSE = 12, 6  # Hamming distance of candidates below and above that
_BANDS = 8  # of 8 bits: at a distance below 8 one of them is equal
_THUMB, _SHIFT, _ZOOMS = 32, 4, (-0.1, -0.05, 0.0, 0.05, 0.1)
_WORTH_A_LOOK, _SAME = 0.4, 0.8  # correlation: without changes of scale, and with the best of them


class _Rows(Protocol):
    """What `check_manifest` needs of a manifest."""

    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def splits(self) -> NDArray[np.str_]: ...
    def path_list(self) -> Sequence[str | Path]: ...


@dataclass(frozen=True)
class Duplicates:
    """Groups of one photograph each.

    groups: the paths of each group. across_splits, across_labels: places in `groups` of those that stand in several
    splits, or under different labels.
    """

    groups: list[list[str]]
    across_splits: list[int]
    across_labels: list[int]


@dataclass(frozen=True)
class Report:
    """What `check_manifest` found.

    rows, files, classes: how many there are; a file may stand in several rows, with a box each.
    splits: rows in each split. balance: fewest, median and most rows of a class, in each split and in "all", over the
    classes that have any. empty_classes: without a row. absent_classes: per split, those with rows only in others.
    missing: files that do not exist. unreadable: files that cannot be decoded, with the reason.
    exact: groups of files with equal pixels. near: groups of one photograph of which files differ in their pixels.
    """

    rows: int
    files: int
    classes: int
    splits: dict[str, int]
    balance: dict[str, tuple[int, float, int]]
    empty_classes: list[str]
    absent_classes: dict[str, list[str]]
    missing: list[str]
    unreadable: dict[str, str]
    exact: Duplicates
    near: Duplicates

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return asdict(self)

    def __rich__(self) -> Table:
        table = Table("checked", "found", title=f"{self.rows:,} rows, {self.files:,} files, {self.classes:,} classes")
        for split, (fewest, median, most) in self.balance.items():
            count = self.rows if split == "all" else self.splits[split]
            table.add_row(f"rows of {_named(split)}", f"{count:,}; {fewest} to {most} a class, median {median:g}")
        table.add_row("classes without a row", _some(self.empty_classes))
        for split, names in self.absent_classes.items():
            table.add_row(f"classes absent from {_named(split)}", _some(names))
        table.add_row("missing files", _some(self.missing))
        table.add_row("unreadable files", _some(list(self.unreadable.values())))
        for kind, found in (("exact", self.exact), ("near", self.near)):
            text = f"{len(found.groups):,} groups of {sum(map(len, found.groups)):,} files; "
            text += f"{len(found.across_splits):,} across splits, {len(found.across_labels):,} across labels"
            table.add_row(f"{kind} duplicates", text)
        return table


def _named(split: str) -> str:
    return split or "no split"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{len(names):,}: {', '.join(names[:3])}{more}" if names else "none"


def check_manifest(
    manifest: _Rows, *, images: bool = True, near: bool = True, workers: int = 2, progress: bool = False
) -> Report:
    """Check the rows of a manifest and, where `images`, the files behind them.

    Without `images` files are only looked for, not opened, and no duplicates are reported; without `near` only exact
    ones. workers: decoding threads. progress: show a bar. Takes a millisecond or two a file.
    """
    classes, labels, splits = manifest.class_names, manifest.labels, np.asarray(manifest.splits, np.str_)
    files, file_of_row = np.unique(
        np.asarray([str(path) for path in manifest.path_list()], np.str_), return_inverse=True
    )
    prints = _fingerprints(files, workers, progress, pixels=True) if images else []
    exact = _by_content(prints) if images else np.arange(len(files))
    groups = _with_near(prints, exact) if images and near else exact
    there = [_mode(Path(str(file))) != 0 for file in files]

    def count(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(labels[rows & (labels >= 0)], minlength=len(classes))

    total = count(np.ones(len(labels), bool))
    by_split = {str(split): count(splits == split) for split in np.unique(splits)}
    return Report(
        rows=len(labels),
        files=len(files),
        classes=len(classes),
        splits={split: int((splits == split).sum()) for split in by_split},
        balance={name: _spread(counts) for name, counts in {"all": total, **by_split}.items() if counts.any()},
        empty_classes=[classes[int(label)] for label in np.flatnonzero(total == 0)],
        absent_classes={
            split: [classes[int(label)] for label in np.flatnonzero((counts == 0) & (total > 0))]
            for split, counts in by_split.items()
        },
        missing=[str(file) for file, found in zip(files, there, strict=True) if not found],
        unreadable={
            str(file): print_.error
            for file, found, print_ in zip(files, there, prints, strict=images)
            if found and print_.error is not None
        },
        exact=_duplicates(exact, None, files, file_of_row, labels, splits),
        near=_duplicates(groups, exact, files, file_of_row, labels, splits),
    )


def duplicate_groups(
    paths: Sequence[str | Path], *, near: bool = True, workers: int = 2, progress: bool = False
) -> NDArray[np.int64]:
    """Which images are one photograph: int64 [N], equal numbers for duplicates, counted from 0 in order of appearance.

    With `near` images are decoded and compared as the module says; without, only files of equal bytes are one group.
    A file that is missing or unreadable is no obstacle here: it is a group of its own, unless its bytes occur twice.
    """
    files, place = np.unique(np.asarray([str(path) for path in paths], np.str_), return_inverse=True)
    prints = _fingerprints(files, workers, progress, pixels=near)
    exact = _by_content(prints)
    groups = (_with_near(prints, exact) if near else exact)[place]
    _, first, ids = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[ids].astype(np.int64)


def _spread(counts: NDArray[np.int64]) -> tuple[int, float, int]:
    some = counts[counts > 0]
    return int(some.min()), float(np.median(some)), int(some.max())


def _duplicates(
    groups: NDArray[np.int64],
    exact: NDArray[np.int64] | None,
    files: NDArray[np.str_],
    file_of_row: NDArray[np.int64],
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
) -> Duplicates:
    """The groups of more than one file, or of one file in several splits; with `exact`, those that join its groups."""
    found = Duplicates([], [], [])
    group_of_row = groups[file_of_row]
    order = np.argsort(group_of_row, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group_of_row[order])) + 1):
        members = np.unique(file_of_row[rows])
        several_splits = len(set(splits[rows])) > 1
        if len(members) < 2 and not several_splits:
            continue
        if exact is not None and len(set(exact[members])) < 2:
            continue
        if several_splits:
            found.across_splits.append(len(found.groups))
        # A file may hold several vehicles: what must agree is the set of its labels.
        if len({frozenset(labels[rows[file_of_row[rows] == member]]) for member in members}) > 1:
            found.across_labels.append(len(found.groups))
        found.groups.append([str(file) for file in files[members]])
    return found


class _Print(NamedTuple):
    content: str | None  # digest of the pixels, or of the file where they were not decoded
    phash: int = 0
    thumb: NDArray[np.uint8] | None = None
    error: str | None = None


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _fingerprints(files: NDArray[np.str_], workers: int, progress: bool, *, pixels: bool) -> list[_Print]:
    def visit(index: int) -> _Print:
        path = Path(str(files[index]))
        error = None
        if pixels:
            try:
                return _pixel_print(decode(path))
            except ImageError as caught:
                error = str(caught)
        if not stat.S_ISREG(_mode(path)):
            return _Print(None, error=error)
        try:
            with path.open("rb") as file:
                return _Print(hashlib.file_digest(file, "sha256").hexdigest(), error=error)
        except OSError:
            return _Print(None, error=error)

    return thread_map(visit, len(files), workers=workers, progress="comparing images" if progress else None)


def _pixel_print(image: NDArray[np.uint8]) -> _Print:
    picture = Image.fromarray(image)
    thumb = np.asarray(picture.resize((_THUMB, _THUMB), Image.Resampling.BOX))
    content = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    bits = np.packbits(imagehash.phash(picture).hash)
    return _Print(content, int.from_bytes(bits.tobytes(), "big"), thumb)


def _by_content(prints: list[_Print]) -> NDArray[np.int64]:
    seen: dict[object, int] = {}
    keys = (index if found.content is None else found.content for index, found in enumerate(prints))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)


def _with_near(prints: list[_Print], exact: NDArray[np.int64]) -> NDArray[np.int64]:
    ids, first = np.unique(exact, return_index=True)
    thumbs = {int(id_): thumb for id_, at in zip(ids, first, strict=True) if (thumb := prints[at].thumb) is not None}
    nodes = np.array(list(thumbs), np.int64)
    hashes = np.array([prints[at].phash for at in first[nodes]], np.uint64)
    stack = np.stack([thumbs[node] for node in thumbs]) if thumbs else np.zeros((0, _THUMB, _THUMB, 3), np.uint8)
    edges = [np.zeros((2, 0), np.int64)]
    for left, right in _candidates(hashes):
        for start in range(0, len(left), 1024):
            pair = np.stack([left[start : start + 1024], right[start : start + 1024]])
            edges.append(nodes[pair[:, _same_photograph(stack[pair[0]], stack[pair[1]])]])
    rows, columns = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(ids), len(ids)))
    return connected_components(graph, directed=False)[1].astype(np.int64)[exact]


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of places whose hashes are close, each once, in portions."""
    if len(hashes) <= _ALL_PAIRS:
        yield from _pairs(hashes, np.arange(len(hashes)), _FAR)
        return
    parts = hashes.astype(">u8").view(np.uint8).reshape(-1, _BANDS)
    for band in range(_BANDS):
        for value in range(256):
            for left, right in _pairs(hashes, np.flatnonzero(parts[:, band] == value), _CLOSE):
                new = (parts[left, :band] != parts[right, :band]).all(axis=1)  # else an earlier band had the pair
                yield left[new], right[new]


def _pairs(
    hashes: NDArray[np.uint64], members: NDArray[np.int64], distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    chosen = hashes[members]
    for start in range(0, len(members), 256):
        apart = np.bitwise_count(chosen[start : start + 256, None] ^ chosen[None, start:])
        left, right = np.nonzero(np.triu(apart <= distance, 1))
        yield members[left + start], members[right + start]


def _same_photograph(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Of pairs of thumbnails, uint8 [N, S, S, 3] each: do they show one photograph? bool [N]."""
    first, second = _detail(left), _detail(right)
    best = _correlation(first, second)
    look = torch.nonzero(best > _WORTH_A_LOOK)[:, 0]
    if len(look) == 0:
        return np.zeros(len(left), bool)
    first, second, refined = first[look], second[look], best[look]
    for x, y in itertools.product(_ZOOMS, _ZOOMS):
        refined = torch.maximum(refined, _correlation(_zoom(first, -x, -y), _zoom(second, x, y)))
    best[look] = refined
    return (best > _SAME).numpy()


def _detail(thumbs: NDArray[np.uint8]) -> Tensor:
    values = thumbs.astype(np.float32)
    values -= gaussian_filter(values, (0, 1.5, 1.5, 0))
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def _zoom(images: Tensor, x: float, y: float) -> Tensor:
    """Enlarge about the centre by cutting off the shares x and y, where positive, of width and height."""
    if max(x, y) <= 0:
        return images
    matrix = torch.tensor([[1 - max(x, 0.0), 0, 0], [0, 1 - max(y, 0.0), 0]]).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False)


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """The largest normalised cross-correlation of [N, 3, S, S] over shifts of up to _SHIFT pixels: [N]."""
    product = (_spectrum(left).conj() * _spectrum(right)).sum(1)
    shifts: Tensor = torch.fft.irfft2(product, s=(_THUMB, _THUMB)).roll((_SHIFT, _SHIFT), (1, 2))
    return shifts[:, : 2 * _SHIFT + 1, : 2 * _SHIFT + 1].amax((1, 2))


def _spectrum(images: Tensor) -> Tensor:
    ramp = torch.arange(1, _THUMB + 1)
    edge = (torch.minimum(ramp, ramp.flip(0)) / 5).clamp(max=1)  # the transform wraps around: fade the border out
    images = images * edge * edge[:, None]
    images = images - images.mean((1, 2, 3), keepdim=True)
    spectrum: Tensor = torch.fft.rfft2(images / images.flatten(1).norm(dim=1).clamp(min=1e-3)[:, None, None, None])
    return spectrum
