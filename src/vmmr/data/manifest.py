"""The canonical table of images: which file, which vehicle, where in the picture, which split.

One row is one vehicle in one image. Columns (only `path` and `model` or `make` must be there):

    path                      relative to the folder of the manifest, or absolute
    make, model, body         text, "" where unknown
    year                      whole number, or empty
    colour, viewpoint         text
    left, top, right, bottom  box in pixels, 0-based, half-open; all four or none
    split                     "train", "val", "test", another word, or "" for none
    group                     rows of one group never part over splits
    vehicle_id, camera_id     text

Further columns are ignored. Other names understood: `filename`, `image` for `path`; `class` for `class_name`; `color`
for `colour`. A `class_name` column holds the whole name ("Audi S4 Sedan 2007") and decides the class: `make` and
`year`, where given, are cut off its ends, else it is split as a name of Stanford Cars where it ends in a year, else it
is the model.

A manifest is the word of the person who runs the program, like a command line: absolute paths and ".." are followed.
Whatever lies at a path is only ever handed to the image decoder.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from vmmr.data.columns import (
    BOX,
    WORDS,
    Where,
    canonical,
    combinations,
    joined,
    line_of,
    numbers,
    read_csv,
    used,
    words_of,
)
from vmmr.errors import ManifestError
from vmmr.files import whole_file
from vmmr.taxonomy import Taxonomy, VehicleClass

__all__ = ["Manifest"]


class Manifest:
    """A table of vehicles in images, with the taxonomy that turns its rows into labels.

    Built from any Arrow table with some of the columns above; the rest are added empty. The table is never changed:
    every method gives a new manifest. Parts of a manifest keep the taxonomy of the whole, so their labels agree.

    >>> m = Manifest.from_columns({"path": ["a.jpg", "b.jpg"], "make": ["VW", "Audi"], "model": ["Golf", "A4"]})
    >>> len(m), m.labels.tolist(), m.class_names
    (2, [1, 0], ('Audi A4', 'VW Golf'))
    """

    def __init__(
        self, table: pa.Table, root: Path | str = ".", taxonomy: Taxonomy | None = None, *, where: Where | None = None
    ) -> None:
        self.table = canonical(table, where or (lambda row: f"row {row}"))
        self.root = Path(root)
        self._given = taxonomy

    def _derived(self, table: pa.Table, taxonomy: Taxonomy) -> Manifest:
        """A manifest of a table that is canonical already."""
        derived = object.__new__(Manifest)
        derived.table, derived.root, derived._given = table, self.root, taxonomy
        return derived

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Any], root: Path | str = ".", taxonomy: Taxonomy | None = None
    ) -> Manifest:
        """A manifest from sequences of equal length, numpy or Arrow arrays, by column name."""
        return cls(pa.table(dict(columns)), root, taxonomy)

    @classmethod
    def read(cls, path: Path | str) -> Manifest:
        """Read a CSV (UTF-8, comma, header line) or Parquet file; paths in it start at its folder.

        Raises ManifestError, naming file, line and column, for anything that is not such a table.
        """
        path = Path(path)
        if not path.exists():
            raise ManifestError("no such manifest or folder", got=path, do="check the path")
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise ManifestError("a manifest is a .csv or a .parquet file", got=path.name)
        try:
            if path.suffix.lower() == ".csv":
                return cls(read_csv(path), path.parent, where=lambda row: line_of(path, row))
            return cls(pq.read_table(path), path.parent)
        except ManifestError as error:
            raise ManifestError(f"{path.name}: {error.what}", got=error.got, do=error.do) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
            raise ManifestError(f"{path.name} cannot be read as a manifest", got=error) from error

    @classmethod
    def load(cls, source: Path | str) -> Manifest:
        """A manifest file, or a folder: one that holds `manifest.csv`, `manifest.parquet` or `labels.csv`, one of the
        known data sets (`vmmr.data.datasets.MARKS`), or images in class folders (`vmmr.data.datasets.class_folders`).
        """
        source = Path(source)
        if not source.is_dir():
            return cls.read(source)
        for name in ("manifest.csv", "manifest.parquet", "labels.csv"):
            if (source / name).is_file():
                return cls.read(source / name)
        from vmmr.data.datasets import DATASETS, MARKS  # the readers stand on this module

        known = (name for mark, name in MARKS.items() if (source / mark).exists())
        return DATASETS[next(known, "class_folders")](source)

    def write(self, path: Path | str) -> None:
        """Write CSV or Parquet, by suffix, all or nothing. Columns without any value are left out.

        Paths stay relative where the images lie in or under the folder of the file, else they become absolute.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".csv", ".parquet"):
            raise ManifestError("a manifest is written as .csv or .parquet", got=path.name)
        root, home = self.root.resolve(), path.parent.resolve()
        table = self.table
        if root != home:
            below = root.relative_to(home) if root.is_relative_to(home) else root
            table = table.set_column(0, "path", joined(table["path"], below))
        table = table.select([name for name in table.column_names if name in ("path", "model") or used(table[name])])
        with whole_file(path) as file:
            if suffix == ".csv":
                plain = pa.schema([(f.name, pa.string() if f.type == WORDS else f.type) for f in table.schema])
                pa_csv.write_csv(table.cast(plain), file)
            else:
                pq.write_table(table, file)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name or '-'} {count}" for name, count in sorted(Counter(self.splits.tolist()).items()))
        return f"Manifest({len(self)} rows, {len(self.taxonomy)} classes, {splits}; root {str(self.root)!r})"

    def column(self, name: str) -> NDArray[np.str_]:
        """A text column as numpy strings, "" where unknown."""
        words, codes = words_of(self.table[name])
        return np.asarray(words or [""], dtype=np.str_)[codes]

    @property
    def splits(self) -> NDArray[np.str_]:
        """The split of every row, "" for none."""
        return self.column("split")

    @cached_property
    def boxes(self) -> NDArray[np.int64]:
        """[N, 4] left, top, right, bottom in pixels, 0-based, half-open; -1 where there is no box."""
        columns = [numbers(self.table[name]) for name in BOX]
        return np.stack(columns, axis=1)

    @cached_property
    def vehicles(self) -> tuple[list[tuple[str, str, int | None, str | None]], NDArray[np.int64]]:
        """The distinct (make, model, year, body), and the row of that list each row has."""
        makes, make = words_of(self.table["make"])
        models, model = words_of(self.table["model"])
        bodies, body = words_of(self.table["body"])
        year = numbers(self.table["year"])
        first, rows = combinations(make, model, year + 1, body)
        return [
            (makes[make[i]], models[model[i]], int(year[i]) if year[i] >= 0 else None, bodies[body[i]] or None)
            for i in first
        ], rows

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The taxonomy of the labels: the given one, or the sorted classes of the rows."""
        if self._given is not None:
            return self._given
        kinds = self.vehicles[0]
        return Taxonomy.from_rows(*map(list, zip(*kinds, strict=True))) if kinds else Taxonomy(())

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[N] the label of every row in `taxonomy`; -1 for a class it does not hold (`with_taxonomy(strict=False)`)."""
        kinds, rows = self.vehicles
        index = self.taxonomy._index
        return np.array([index.get(kind[:3], -1) for kind in kinds], dtype=np.int64)[rows]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every label."""
        return self.taxonomy.names

    def with_taxonomy(self, taxonomy: Taxonomy, *, strict: bool = True) -> Manifest:
        """The same rows labelled by `taxonomy`. A class it does not hold raises ManifestError with its name, or,
        where not `strict` (images of unknown vehicles), gets label -1."""
        unknown = [VehicleClass(*kind).name for kind in self.vehicles[0] if kind[:3] not in taxonomy]
        if strict and unknown:
            raise ManifestError(
                f"{len(unknown)} classes are not in the taxonomy",
                got=sorted(set(unknown))[:10],
                do="add them with Taxonomy.merge or drop their rows",
            )
        return self._derived(self.table, taxonomy)

    def upto(self, level: str) -> Manifest:
        """The same rows, told no finer than "make" or "model" ("class": as they are).

        >>> m = Manifest.from_columns({"path": ["a"], "make": ["VW"], "model": ["Golf"], "year": [2012]})
        >>> m.upto("model").class_names, m.upto("make").class_names
        (('VW Golf',), ('VW',))
        """
        table = self.table
        for name in {"make": ("model", "year"), "model": ("year",), "class": ()}[level]:
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.nulls(len(self), table.schema.field(name).type))
        return self if table is self.table else Manifest(table, self.root)

    def with_splits(self, splits: ArrayLike) -> Manifest:
        """The same rows with these splits."""
        place = self.table.schema.get_field_index("split")
        words = pa.array(np.asarray(splits, dtype=np.str_).tolist(), pa.string())
        return Manifest(self.table.set_column(place, "split", words), self.root, self.taxonomy)

    def select(self, rows: ArrayLike) -> Manifest:
        """The rows of a mask of bools or a list of indices, in the order given, under the same taxonomy."""
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise ManifestError("a mask needs one entry a row", got=chosen.shape, do=f"the shape ({len(self)},)")
            chosen = np.flatnonzero(chosen)
        return self._derived(self.table.take(pa.array(chosen.astype(np.int64))), self.taxonomy)

    def split(self, name: str) -> Manifest:
        """The rows of one split: none at all raise ManifestError."""
        mask = self.splits == name
        if not mask.any():
            raise ManifestError("no rows in this split", got=repr(name), do=f"there are {sorted(set(self.splits))}")
        return self.select(mask)

    def path(self, row: int) -> Path:
        """Where the image of a row lies."""
        return self.root / str(self.table["path"][row].as_py())

    def path_list(self) -> list[str]:
        """Where the images lie, one text a row, ready to be opened."""
        return [str(path) for path in joined(self.table["path"], self.root).to_pylist()]
